"""What waits, tenant by tenant: in the outbox, and behind a group on a collection topic."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from folio_events import publish, tenant_context
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.brokers.database import DatabaseBroker
from folio_events.brokers.memory import MemoryBroker
from folio_events.consumer import Consumer
from folio_events.message import Message
from folio_events.metrics import EventsCollector
from folio_events.models import OutboxMessage, RelayCursor, RelayGap
from folio_events.monitoring.lag import TenantLag, group_lag, outbox_lag
from folio_events.relay import drain
from folio_events.topics import wire_topic
from tests.faulty_broker import FaultyBroker
from tests.note_topic import note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _tenancy(folio_events: Callable[..., None], only_test_receivers: None) -> None:
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")


def record(tenant: str, count: int, *, key: str = "k") -> None:
    for number in range(count):
        with tenant_context(tenant):
            publish("library.note", key=key, payload={"number": number})


def counts(lag: dict[str, TenantLag]) -> dict[str, int]:
    return {tenant: found.messages for tenant, found in lag.items()}


# In the outbox


def test_the_outbox_says_what_waits_of_each_tenant(faulty_broker: FaultyBroker) -> None:
    """Exactly, with the oldest, until the relay has published it."""
    assert outbox_lag() == {}
    record("a", 3)
    record("b", 2)
    old = timezone.now() - timedelta(seconds=90)
    first = OutboxMessage.objects.filter(tenant="b").earliest("id")
    OutboxMessage.objects.filter(pk=first.pk).update(occurred_at=old)
    waiting = outbox_lag()
    assert counts(waiting) == {"a": 3, "b": 2}
    assert waiting["b"].oldest_at == old
    drain()
    assert outbox_lag() == {}
    record("b", 1)
    assert counts(outbox_lag()) == {"b": 1}


def test_rows_below_the_cursor_count_where_the_relay_holds_them(
    faulty_broker: FaultyBroker,
) -> None:
    """What it could not publish in its turn is as late as anything."""
    record("a", 2, key="held")
    record("b", 3, key="free")
    record("a", 1, key="free")
    faulty_broker.acknowledges = lambda message: message.key != b"held"
    drain()
    assert RelayGap.objects.exists()
    record("c", 1)
    assert counts(outbox_lag()) == {"a": 2, "c": 1}


@pytest.mark.postgres
def test_the_outbox_is_not_read_whole() -> None:
    """Of a hundred thousand rows the two that wait are found by the index."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO folio_events_outboxmessage (event_id, topic, event_type, tenant, key,"
            " payload, repeating_headers, own_headers, occurred_at)"
            " SELECT gen_random_uuid(), 'library.note', 'note', 'a', n, 'x', '[]', '', now()"
            " FROM generate_series(1, 100000) AS n"
        )
        cursor.execute("ANALYZE folio_events_outboxmessage")
    last = OutboxMessage.objects.latest("id").pk
    moment = timezone.now()
    RelayCursor.objects.create(position=last - 2, version=1, updated_at=moment)
    RelayGap.objects.create(first_id=last - 50_000, last_id=last - 50_000)
    read = "SELECT idx_tup_fetch, seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = %s"
    with transaction.atomic(), connection.cursor() as cursor:
        assert counts(outbox_lag()) == {"a": 3}
        cursor.execute(read, ["folio_events_outboxmessage"])
        by_index, sequentially = cursor.fetchone()
    assert sequentially == 0
    assert by_index <= 10


@pytest.fixture
def scraped() -> Callable[..., dict[tuple[str, str], float]]:
    """The samples of one scrape that have a label, by name and its value."""

    def scrape(label: str, groups: list[str]) -> dict[tuple[str, str], float]:
        return {
            (family.name.removeprefix("folio_events_"), sample.labels[label]): sample.value
            for family in EventsCollector(groups=groups).collect()
            for sample in family.samples
            if label in sample.labels
        }

    return scrape


def test_each_tenants_backlog_and_delay_are_metrics(
    faulty_broker: FaultyBroker, scraped: Callable[..., dict[tuple[str, str], float]]
) -> None:
    """Those who wait for a tenant's burst see whose it is, and how late they are."""
    record("a", 3)
    record("b", 1)
    old = timezone.now() - timedelta(seconds=90)
    OutboxMessage.objects.filter(tenant="b").update(occurred_at=old)
    found = scraped("tenant", [])
    assert found["tenant_outbox_waiting", "a"] == 3
    assert 90 <= found["tenant_outbox_oldest_seconds", "b"] < 150


def test_the_lag_of_groups_that_are_asked_for_is_a_metric(
    memory_broker: MemoryBroker, scraped: Callable[..., dict[tuple[str, str], float]]
) -> None:
    """It is read from the broker at each scrape, so nobody has it unasked."""
    note_receiver("notes")
    memory_broker.create_topics([TopicSpec(wire_topic("library.note", None), 1, 1)])
    put(memory_broker, ["a", "b", "b"])
    assert scraped("group", []) == {}
    found = scraped("tenant", ["events"])
    assert (found["tenant_lag", "a"], found["tenant_lag", "b"]) == (1, 2)
    assert 0 <= found["tenant_lag_oldest_seconds", "a"] < 60


# Behind a group


def put(broker: Broker, owners: list[str], *, partition_key: bytes | None = None) -> None:
    """Put a message for each owner into the collection's topic."""
    wire = wire_topic("library.note", None)
    messages = [
        Message(
            wire,
            partition_key or str(number).encode(),
            json.dumps({"number": number}).encode(),
            [("folio.tenantId", owner.encode())] if owner else [],
        )
        for number, owner in enumerate(owners)
    ]
    reports = broker.publish(messages, timeout=30)
    assert not [report for report in reports if isinstance(report, Exception)]


@pytest.fixture(params=["memory", "database", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest, folio_events: Callable[..., None]) -> Broker:
    """A topic of four partitions on each broker."""
    if request.param == "database":
        folio_events(BROKER={"BACKEND": "folio_events.brokers.database.DatabaseBroker"})
        found = get_broker()
        assert isinstance(found, DatabaseBroker)
    else:
        found = request.getfixturevalue(f"{request.param}_broker")
    found.create_topics([TopicSpec(wire_topic("library.note", None), 4, 1)])
    return found


@pytest.fixture
def group(broker: Broker) -> str:
    name = f"lag-{uuid.uuid4().hex[:8]}"
    note_receiver("notes", group=name)
    return name


def test_a_lag_that_is_read_whole_is_told_exactly(broker: Broker, group: str) -> None:
    """From the group's own offset on; what names no tenant is counted apart."""
    put(broker, ["a"] * 10)
    consumer = Consumer(group, broker=broker)
    handled = 0
    while handled < 10:
        handled += consumer.step(timeout=1)
    consumer.close()
    assert group_lag(group, broker=broker).tenants == {}
    before = timezone.now() - timedelta(seconds=60)
    put(broker, ["b", "a", "b", "c", "", "b"])
    found = group_lag(group, broker=broker)
    assert (found.messages, found.sampled) == (6, 6)
    assert counts(dict(found.tenants)) == {"a": 1, "b": 3, "c": 1, "": 1}
    assert before < found.tenants["b"].oldest_at < timezone.now() + timedelta(seconds=1)


def test_a_long_lag_is_told_from_a_sample(broker: Broker, group: str) -> None:
    """A burst at its end shows as well as what is first: the places are spread."""
    put(broker, ["a", "b"] * 1000)
    put(broker, ["a"] * 2000)
    found = group_lag(group, broker=broker, sample=400)
    assert found.messages == 4000
    assert 300 <= found.sampled <= 400
    assert set(found.tenants) == {"a", "b"}
    told = counts(dict(found.tenants))
    assert sum(told.values()) == pytest.approx(4000, abs=2)
    assert told["a"] == pytest.approx(3000, rel=0.15)


def test_a_group_that_has_not_begun_lags_by_all_there_is(broker: Broker, group: str) -> None:
    """Without an offset it would begin at the first message."""
    put(broker, ["a"] * 5)
    assert counts(dict(group_lag(group, broker=broker).tenants)) == {"a": 5}
