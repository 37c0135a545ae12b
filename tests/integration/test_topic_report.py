"""The report of topics: what is, what topics of each tenant would be, what a collection would."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from folio_events import declare_topic
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec, TopicState
from folio_events.brokers.memory import MemoryBroker
from folio_events.operations.topic_report import Size, topic_report
from folio_events.provisioning import enable_tenant, named_topics
from folio_events.topics.declared import declared_topics

pytestmark = pytest.mark.django_db


@pytest.fixture
def counted(folio_events: Callable[..., None]) -> Callable[..., MemoryBroker]:
    """Change the topology; every topic has two partitions, and three copies by declaration."""

    def change(**keys: object) -> MemoryBroker:
        folio_events(
            BROKER={"BACKEND": "folio_events.brokers.memory.MemoryBroker"},
            **{"TOPIC_PARTITIONS": 2, "TOPIC_REPLICATION": 3, **keys},
        )
        broker = get_broker()
        assert isinstance(broker, MemoryBroker)
        return broker

    return change


def test_topics_are_counted_now_and_under_a_collection(
    counted: Callable[..., MemoryBroker],
) -> None:
    """By tenant and by topic; a tenant that is to come can be reckoned for."""
    broker = counted(TENANCY="folio")
    enable_tenant("diku")
    enable_tenant("college")
    broker.create_topics([TopicSpec("folio.diku.not.ours", 50, 1)])
    topics = len(named_topics())

    report = topic_report(tenants=["future"])

    # The memory broker tells of no copies.
    assert report.now == Size(2 * topics, 4 * topics, 4 * topics)
    assert report.by_tenant == dict.fromkeys(("college", "diku"), Size(topics, 2 * topics, 2 * topics))  # fmt: skip
    assert report.by_topic["library.book"] == Size(2, 4, 4)
    assert report.tenants == ["college", "diku", "future"]
    assert report.per_tenant == Size(3 * topics, 6 * topics, 18 * topics)
    assert report.collection == Size(topics, 2 * topics, 6 * topics)
    assert report.collection.files == 6 * topics


def test_a_collection_is_reckoned_from_too(counted: Callable[..., MemoryBroker]) -> None:
    """Its tenants are to be named: no topic tells them."""
    counted(TENANCY="folio", TENANT_COLLECTION="ALL")
    enable_tenant("diku")
    topics = len(named_topics())

    report = topic_report(tenants=["diku", "college"])

    assert report.by_tenant == {"ALL": Size(topics, 2 * topics, 2 * topics)}
    assert report.per_tenant.topics == 2 * topics
    assert report.collection.topics == topics


def test_a_topic_of_the_environment_counts_once(counted: Callable[..., MemoryBroker]) -> None:
    """Whatever the topology."""
    counted(TENANCY="folio")
    before = topic_report(tenants=["a", "b"])
    declare_topic("library.shared", environment_only=True, partitions=1, replication=1)
    try:
        after = topic_report(tenants=["a", "b"])
    finally:
        declared_topics.remove("library.shared")

    assert after.per_tenant == before.per_tenant + Size(1, 1, 1)
    assert after.collection == before.collection + Size(1, 1, 1)


def test_copies_that_the_broker_chooses_are_taken_from_what_is_there(
    counted: Callable[..., MemoryBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the declaration leaves them to it."""
    broker = counted(TENANCY="folio", TOPIC_REPLICATION=-1)
    enable_tenant("diku")

    def with_copies(names: Any) -> dict[str, TopicState]:
        return {name: TopicState(2, 4, {}) for name in names}

    monkeypatch.setattr(broker, "describe_topics", with_copies)

    report = topic_report()

    assert report.by_topic["library.book"] == Size(1, 2, 8)
    assert report.collection.replicas == 4 * report.collection.partitions


def test_the_command_prints_a_table_or_json(counted: Callable[..., MemoryBroker]) -> None:
    """The same numbers."""
    counted(TENANCY="folio")
    enable_tenant("diku")
    table, machine = io.StringIO(), io.StringIO()

    call_command("topic_report", "--tenant", "college", stdout=table)
    call_command("topic_report", "--tenant", "college", "--json", stdout=machine)

    found = json.loads(machine.getvalue())
    assert found["tenants"] == ["college", "diku"]
    rows = {line[:44].strip(): line[44:].split() for line in table.getvalue().splitlines()}
    for name, key in (("now", "now"), ("one for each of 2 tenants", "per_tenant"), ("under a tenant collection", "collection")):  # fmt: skip
        assert rows[name] == [str(n) for n in found[key].values()]
    assert rows["tenant diku"] == rows["now"]


def test_a_broker_that_is_away_is_an_error(counted: Callable[..., MemoryBroker]) -> None:
    """Without a traceback."""
    counted(TENANCY="folio").available = False
    with pytest.raises(CommandError, match="Unavailable"):
        call_command("topic_report", stdout=io.StringIO())


@pytest.mark.kafka
def test_topics_on_apache_kafka_are_counted(
    kafka_broker: Broker, folio_events: Callable[..., None]
) -> None:
    """With their copies."""
    folio_events(TENANCY="folio", TOPIC_PARTITIONS=2)
    created = enable_tenant("diku")

    report = topic_report()

    assert report.now == Size(len(created), 2 * len(created), 2 * len(created))
    assert report.per_tenant == report.now
