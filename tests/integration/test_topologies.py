"""One suite for every topology of topics on every broker: what is published comes to its receivers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
from django.db import transaction

from folio_events import Event, current_tenant, publish, receiver, tenant_context
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.brokers.kafka import KafkaBroker
from folio_events.conf import DATABASE_BROKER, KAFKA_BROKER, get_settings
from folio_events.consumer import Consumer
from folio_events.message import Message
from folio_events.relay import drain
from tests.conftest import kafka_options

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("only_test_receivers"),
]

Change = Callable[..., None]
TENANTS = ["diku", "foo-tenant", "fs_00001"]
#: Quicker than a real group needs.
IMPATIENT = {
    "heartbeat.interval.ms": 200,
    "session.timeout.ms": 10_000,
    "topic.metadata.refresh.interval.ms": 300,
}
TOPICS = {
    "DI_COMPLETED": {"NAMESPACE": "Default"},
    "consortia.state": {"ENVIRONMENT_ONLY": True, "PARTITIONS": 1},
}
#: By name: what FOLIO_EVENTS says, and what stands before the logical topic of diku's events.
TOPOLOGIES: dict[str, tuple[dict[str, Any], str]] = {
    "no tenants": ({"TENANCY": None}, "{env}."),
    "a topic for each tenant": ({"TENANCY": "folio"}, "{env}.diku."),
    "a tenant collection": ({"TENANCY": "folio", "TENANT_COLLECTION": "ALL"}, "{env}.ALL."),
}


@pytest.fixture(params=["memory", "database", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: Any, folio_events: Change) -> Iterator[Broker]:
    """The setting BROKER names each in turn; the environment is the test's own."""
    backend: dict[str, Any] = {
        "memory": {"BACKEND": "folio_events.brokers.memory.MemoryBroker"},
        "database": {"BACKEND": DATABASE_BROKER},
        "kafka": {"BACKEND": KAFKA_BROKER},
    }[request.param]
    if request.param == "kafka":
        backend["OPTIONS"] = kafka_options(consumer=IMPATIENT)
    folio_events(
        BROKER=backend, ENV=f"e{uuid.uuid4().hex[:8]}", TOPIC_PARTITIONS=2, TOPICS=TOPICS,
        GROUP=f"g{uuid.uuid4().hex[:8]}",
    )  # fmt: skip
    found = get_broker()
    yield found
    if isinstance(found, KafkaBroker):
        found.close()


@pytest.fixture(params=TOPOLOGIES)
def topology(request: Any, broker: Broker, folio_events: Change) -> str:
    """FOLIO_EVENTS has each in turn; its name."""
    folio_events(**TOPOLOGIES[request.param][0])
    return str(request.param)


def listen(topic: str, **options: Any) -> list[Event]:
    """Register a receiver; the events that it was started with, in their order."""
    seen: list[Event] = []

    def function(event: Event) -> None:
        assert current_tenant() == event.tenant
        seen.append(event)

    receiver(topic, name=f"tests.{topic}.{uuid.uuid4().hex}", **options)(function)
    return seen


def put(topic: str, number: int, tenant: str | None = None, key: str = "k") -> None:
    """Publish a numbered event in a transaction of its own."""
    with tenant_context(tenant), transaction.atomic():
        publish(topic, key=key, payload={"number": number})


def send(broker: Broker) -> None:
    """Send what is recorded."""
    while drain(broker=broker).published:
        pass


def consume(broker: Broker, done: Callable[[], bool], group: str | None = None) -> None:
    """Send what is recorded, and let a group read until a condition holds and no more comes."""
    send(broker)
    # A change of the settings makes another broker: in memory, one without what was sent.
    consumer = Consumer(group or get_settings().GROUP, broker=broker)
    deadline = time.monotonic() + 40
    try:
        while consumer.step(timeout=0.2) or not done():
            assert time.monotonic() < deadline, "it did not come in time"
    finally:
        consumer.close()


def owners(topology: str) -> list[str | None]:
    return [None] if topology == "no tenants" else [*TENANTS]


def numbers(events: Collection[Event], tenant: str | None) -> list[int]:
    return [event.payload["number"] for event in events if event.tenant == tenant]


def test_each_tenants_events_reach_their_receivers(topology: str, broker: Broker) -> None:
    """With their own tenant, topic and type, and no other receiver's."""
    items, loans = listen("inventory.item"), listen("circulation.loan")
    tenants = owners(topology)
    for number, tenant in enumerate(tenants):
        put("inventory.item", number, tenant)
        put("circulation.loan", 10 + number, tenant)
        put("inventory.item-note", 20 + number, tenant)

    consume(broker, lambda: len(items) == len(loans) == len(tenants))

    for seen, topic, first in ((items, "inventory.item", 0), (loans, "circulation.loan", 10)):
        assert {event.topic for event in seen} == {topic}
        assert {event.type for event in seen} == {topic.rpartition(".")[2]}
        assert {tenant: numbers(seen, tenant) for tenant in tenants} == {
            tenant: [first + number] for number, tenant in enumerate(tenants)
        }


def test_topics_have_the_topologys_names_on_the_broker(topology: str, broker: Broker) -> None:
    """Namespace and environment-only topics included."""
    seen = [listen(topic) for topic in ("inventory.item", "DI_*", "consortia.state")]
    for topic in ("inventory.item", "DI_COMPLETED", "consortia.state"):
        put(topic, 1, "diku")

    consume(broker, lambda: all(map(len, seen)))

    env = get_settings().ENV
    before = TOPOLOGIES[topology][1].format(env=env)
    assert broker.list_topics(f"{env}.") == {
        f"{before}inventory.item",
        f"{before.replace(env, f'{env}.Default', 1)}DI_COMPLETED",
        f"{env}.consortia.state",
    }
    assert [[event.topic for event in events] for events in seen] == [
        ["inventory.item"],
        ["DI_COMPLETED"],
        ["consortia.state"],
    ]


def test_the_events_of_a_key_come_in_their_order(topology: str, broker: Broker) -> None:
    """Each tenant's for itself."""
    seen = listen("inventory.item")
    tenants = owners(topology)
    for number in range(10):
        for tenant in tenants:
            put("inventory.item", number, tenant)

    consume(broker, lambda: len(seen) == 10 * len(tenants))

    for tenant in tenants:
        assert numbers(seen, tenant) == list(range(10))


def test_an_event_takes_effect_once_in_each_group(topology: str, broker: Broker) -> None:
    """And not again when the group comes back."""
    first, second = listen("inventory.item", group="one"), listen("inventory.*", group="two")
    put("inventory.item", 1, "diku")

    for group, seen in (("one", first), ("two", second), ("one", first), ("two", second)):
        consume(broker, lambda seen=seen: bool(seen), group=f"{group}")  # type: ignore[misc]  # its own

    assert len(first) == len(second) == 1


def test_the_consumers_pattern_narrows_what_is_read(
    topology: str, broker: Broker, folio_events: Change
) -> None:
    """To one tenant's topic, or to the collection's; what is read keeps its tenant and topic."""
    env = get_settings().ENV
    items, loans = listen("inventory.item"), listen("circulation.loan")
    for number, tenant in enumerate(owners(topology)):
        put("inventory.item", number, tenant)
        put("circulation.loan", number, tenant)
    segment = TOPOLOGIES[topology][1].format(env=env).replace(".", r"\.")
    folio_events(CONSUMER_PATTERN=rf"{segment}(?:inventory|users)\.\w+")

    wanted = len(owners(topology)) if topology == "a tenant collection" else 1
    consume(broker, lambda: len(items) == wanted)

    assert {event.topic for event in items} == {"inventory.item"}
    expected = owners(topology) if topology != "a topic for each tenant" else ["diku"]
    assert {event.tenant for event in items} == set(expected)
    assert loans == []

    folio_events(CONSUMER_PATTERN=None)
    consume(broker, lambda: len(items) == len(loans) == len(owners(topology)))


def test_one_pattern_takes_a_tenants_topic_and_a_collections(
    broker: Broker, folio_events: Change
) -> None:
    """A consumer reads both during a switch, in whatever order, and no third."""
    env = get_settings().ENV
    seen = listen("inventory.item")
    for number, (tenant, collection) in enumerate(
        [("diku", None), ("diku", "ALL"), ("foo-tenant", "ALL"), ("foo-tenant", None)]
    ):
        folio_events(TENANCY="folio", TENANT_COLLECTION=collection)
        put("inventory.item", number, tenant)
        send(broker)
    folio_events(CONSUMER_PATTERN=rf"({env}\.)(diku|ALL)\.inventory\.item")

    consume(broker, lambda: len(seen) == 3)

    assert {tenant: sorted(numbers(seen, tenant)) for tenant in ("diku", "foo-tenant")} == {
        "diku": [0, 1],
        "foo-tenant": [2],
    }


def test_two_environments_on_one_broker_never_see_each_other(
    topology: str, broker: Broker, folio_events: Change
) -> None:
    """Not even where one's name begins with the other's, and all else is the same."""
    env = get_settings().ENV
    names = [env, f"{env}-2", f"x{env}"]
    seen = listen("*.*")
    state = listen("consortia.state")
    for number, name in enumerate(names):
        folio_events(ENV=name)
        for topic in ("inventory.item", "consortia.state"):
            put(topic, number, "diku")
        send(broker)

    for number, name in enumerate(names):
        seen.clear()
        state.clear()
        folio_events(ENV=name)
        consume(broker, lambda: len(seen) == 2 and len(state) == 1)
        assert [event.payload["number"] for event in (*seen, *state)] == [number] * 3


def test_a_topic_of_another_environment_is_no_bodys_here(broker: Broker) -> None:
    """Neither one whose environment goes on after a dot, nor one without any."""
    env = get_settings().ENV
    seen = listen("inventory.item")
    strangers = [f"{env}.x.inventory.item", f"{env}x.inventory.item", "inventory.item"]
    broker.create_topics([TopicSpec(name, 1, 1) for name in strangers])
    broker.publish([Message(name, b"k", b'{"number": 9}', []) for name in strangers], timeout=30)
    put("inventory.item", 1)

    consume(broker, lambda: bool(seen))

    assert [event.payload["number"] for event in seen] == [1]
