"""Settings of topics that could lose events are found before they do."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from django.core.management import CommandError, call_command

from folio_events.brokers.kafka import KafkaBroker
from folio_events.brokers.kafka.durability import Durability, warnings
from folio_events.conf import KAFKA_BROKER
from folio_events.topics import wire_topic
from tests.contract.stage import message, publish
from tests.note_topic import note_receiver
from tests.services import KafkaCluster, kafka

SAFE = Durability(replicas=3, min_insync=2, unclean_election=False)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (SAFE, []),
        (SAFE._replace(replicas=1, min_insync=1), ["W020"]),
        (SAFE._replace(min_insync=1), ["W021"]),
        (SAFE._replace(replicas=2, min_insync=3), ["W022"]),
        (SAFE._replace(replicas=1), ["W020", "W022"]),
        (SAFE._replace(unclean_election=True), ["W023"]),
        (Durability(1, 1, unclean_election=True), ["W020"]),
    ],
    ids=["safe", "one replica", "one in sync", "never enough", "one of two", "unclean", "laptop"],
)
def test_what_puts_events_at_risk_is_named(kept: Durability, expected: list[str]) -> None:
    """By an id, with the topics and what to set."""
    found = warnings({"bad": kept, "good": SAFE})

    assert [warning.id for warning in found] == [f"folio_events.{number}" for number in expected]
    assert all("1 topics" in warning.msg and "bad" in warning.msg for warning in found)
    assert all(warning.hint for warning in found)


def test_a_warning_names_a_few_of_many_topics() -> None:
    """A thousand tenants have one warning, not a thousand."""
    (warning,) = warnings({f"t{n}": SAFE._replace(min_insync=1) for n in range(1000)})

    assert warning.msg == "1000 topics have min.insync.replicas 1: t0, t1, t10, t100, t101, and 995 more."  # fmt: skip


@pytest.fixture(scope="module")
def three_brokers() -> Iterator[KafkaCluster]:
    with kafka(brokers=3) as cluster:
        yield cluster


def create(cluster: KafkaCluster, replicas: int, name: str = "", **config: object) -> str:
    name = name or f"t{uuid.uuid4().hex[:10]}"
    settings = {key.replace("_", "."): str(value) for key, value in config.items()}
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})
    client.create_topics([NewTopic(name, 1, replicas, config=settings)])[name].result(30)
    return name


def let_all_brokers_know(cluster: KafkaCluster) -> None:
    """Return when each broker has heard of all topics that were created before."""
    # Topics become known in order, and a record on three replicas has been on each broker.
    topic = create(cluster, 3)
    broker = KafkaBroker({"bootstrap.servers": cluster.bootstrap})
    publish(broker, [message(topic)])
    broker.close()


@pytest.mark.kafka
@pytest.mark.django_db  # as its neighbours, so that the brokers are started once
def test_kafka_is_asked_for_replicas_and_settings(three_brokers: KafkaCluster) -> None:
    """Also for those that a topic has from the broker; a topic that is missing is left out."""
    broker = KafkaBroker({"bootstrap.servers": three_brokers.bootstrap})
    safe = create(three_brokers, 3)
    single = create(three_brokers, 1, min_insync_replicas=1)
    loose = create(three_brokers, 3, min_insync_replicas=1)
    stuck = create(three_brokers, 2, min_insync_replicas=3)
    unclean = create(three_brokers, 3, unclean_leader_election_enable="true")
    let_all_brokers_know(three_brokers)

    found = broker.check_topics([safe, single, loose, stuck, unclean, "missing"])

    broker.close()
    assert [(warning.id, warning.msg.rpartition(": ")[2]) for warning in found] == [
        ("folio_events.W020", f"{single}."),
        ("folio_events.W021", f"{loose}."),
        ("folio_events.W022", f"{stuck}."),
        ("folio_events.W023", f"{unclean}."),
    ]


@pytest.mark.kafka
@pytest.mark.django_db
@pytest.mark.parametrize("arguments", [[], ["--check"]], ids=["create", "check"])
def test_create_topics_warns_of_topics_that_could_lose_events(
    three_brokers: KafkaCluster, only_test_receivers: None, settings: Any, arguments: list[str]
) -> None:
    """On the error stream, with the id; those that it creates itself are safe."""
    settings.FOLIO_EVENTS = {
        "ENV": f"t{uuid.uuid4().hex[:10]}",
        "GROUP": "tests",
        "BROKER": {
            "BACKEND": KAFKA_BROKER,
            "OPTIONS": {"bootstrap.servers": three_brokers.bootstrap},
        },
    }
    note_receiver("loose", topic="library.loose")
    loose = create(three_brokers, 3, wire_topic("library.loose", None), min_insync_replicas=1)
    let_all_brokers_know(three_brokers)
    out, err = io.StringIO(), io.StringIO()

    if arguments:
        with pytest.raises(CommandError, match="missing"):
            call_command("create_topics", *arguments, stdout=out, stderr=err)
    else:
        call_command("create_topics", stdout=out, stderr=err)

    assert err.getvalue().startswith(
        f"(folio_events.W021) 1 topics have min.insync.replicas 1: {loose}."
    )
    assert err.getvalue().count("folio_events.W") == 1
