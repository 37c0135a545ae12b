"""Several schemas of one PostgreSQL database, each with an outbox of its own."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections, transaction

from folio_events import publish, receiver, relay
from folio_events.brokers.memory import MemoryBroker
from folio_events.consumer import Consumer
from folio_events.models import (
    InboxEntry,
    OutboxMessage,
    Publication,
    RelayCursor,
    RelayGap,
)
from folio_events.operations.erasure import erase_events
from folio_events.relay import Drain
from folio_events.wakeup import Listener
from tests.faulty_broker import FaultyBroker
from tests.note_topic import LOGICAL, WIRE
from tests.outbox_writer import OutboxWriter

_ALIASES = {"north": "north", "south": "south", "north again": "elsewhere,north"}
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True, databases=["default", *_ALIASES]),
]

_PATIENCE = 30


@pytest.fixture(scope="module", autouse=True)
def _schemas(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Aliases for two schemas of the test's database, and a second one for the first of them."""
    with django_db_blocker.unblock():
        for alias, path in _ALIASES.items():
            database = copy.deepcopy(connections.settings["default"])
            database["NAME"] = connection.settings_dict["NAME"]
            database["OPTIONS"]["options"] = f"-c search_path={path}"
            connections.settings[alias] = database
        for name in ("north", "south"):
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE SCHEMA {name}")
            call_command("migrate", database=name, run_syncdb=True, verbosity=0)
        yield
        for alias in _ALIASES:
            connections[alias].close()
            del connections[alias]
            del connections.settings[alias]
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA north, south CASCADE")


@contextmanager
def search_path(name: str) -> Iterator[None]:
    """What packages for tenants in schemas do with the one connection of a project."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET search_path = {name}")
        try:
            yield
        finally:
            cursor.execute("RESET search_path")


def note(using: str, key: str = "k", number: int = 0) -> None:
    publish(LOGICAL, key=key, payload={"number": number, "schema": using}, using=using)


def in_log(broker: MemoryBroker) -> list[bytes | None]:
    return [record.value for partition in broker._log.get(WIRE, []) for record in partition]


def aside(function: Callable[[], Any]) -> Any:
    """Run a function in a thread that closes its connections at the end."""

    def run() -> Any:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(_PATIENCE)


def test_each_schema_has_an_outbox_a_cursor_and_a_relay(memory_broker: MemoryBroker) -> None:
    """What is written by one alias is read, counted and erased by that alias alone."""
    for number in range(3):
        note("north", number=number)
    note("south")
    assert relay.drain(using="north").published == 3
    assert len(in_log(memory_broker)) == 3
    assert Publication.objects.using("south").count() == 0
    assert relay.drain(using="south").published == 1
    assert OutboxMessage.objects.count() == RelayCursor.objects.count() == 0
    assert erase_events(topic=LOGICAL, key="k", reason="x", using="south").outbox_messages == 1
    assert OutboxMessage.objects.using("north").count() == 3


def test_a_relay_of_one_schema_does_not_wait_for_that_of_another(
    faulty_broker: FaultyBroker,
) -> None:
    """While one waits for the broker the other publishes; a second one of its own stands by."""
    inside, go_on = threading.Event(), threading.Event()
    free = MemoryBroker({})

    def hold() -> None:
        inside.set()
        assert go_on.wait(_PATIENCE)

    note("north")
    note("south")
    faulty_broker.before_publish = hold

    def drain_north() -> Drain:
        try:
            return relay.drain(using="north", broker=faulty_broker)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(drain_north)
        assert inside.wait(_PATIENCE)
        try:
            assert relay.drain(using="south", broker=free).published == 1
            assert relay.drain(using="north", broker=free).standby
        finally:
            go_on.set()
        assert busy.result(_PATIENCE).published == 1


def test_two_aliases_of_one_schema_share_its_relay(memory_broker: MemoryBroker) -> None:
    """What counts is the table that the search path leads to, not the name of the alias."""
    note("north")
    with relay.paused("north"):
        assert aside(lambda: relay.drain(using="north again")).standby
    assert relay.drain(using="north again").published == 1
    assert not relay.drain(using="north").published


def test_a_transaction_in_one_schema_leaves_no_gap_in_another(memory_broker: MemoryBroker) -> None:
    """Ids that were rolled back are given up while another schema's writer is still at work."""
    writer = OutboxWriter()
    try:
        writer.execute("SET search_path = south")
        writer.commit()
        writer.append("late", topic=LOGICAL)
        try:
            with connections["north"].cursor() as cursor:
                cursor.execute("SELECT nextval('folio_events_outboxmessage_id_seq')")
            note("north")
            for _ in range(3):
                relay.drain(using="north")
            assert RelayGap.objects.using("north").count() == 0
        finally:
            writer.commit()
    finally:
        writer.close()
    assert relay.drain(using="south").published == 1


def test_a_writer_in_one_schema_does_not_wait_for_a_key_of_another() -> None:
    """Each schema has its loan 1; a transaction holds it for its own schema only."""

    def write(using: str) -> None:
        with transaction.atomic(using=using):
            with connections[using].cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '300ms'")
            note(using)

    with transaction.atomic(using="north"):
        note("north")
        aside(lambda: write("south"))
        with pytest.raises(OperationalError, match="lock timeout"):
            aside(lambda: write("north again"))


def test_relays_of_two_schemas_hear_their_wake_ups(folio_events: Callable[..., None]) -> None:
    """Both listen at once, and what proves it to one does not disturb the other."""
    folio_events(WAKE_UP=True)
    listeners = {name: Listener(name) for name in ("north", "south")}
    stop = threading.Event()
    try:
        for _ in range(3):
            for listener in listeners.values():
                listener.wait(stop, poll=0.0, longest=0.2)
        assert {listener.mode for listener in listeners.values()} == {"listen"}
    finally:
        for listener in listeners.values():
            listener.close()


def test_a_consumer_keeps_inbox_and_offsets_in_the_schema_of_its_receivers(
    memory_broker: MemoryBroker, only_test_receivers: None
) -> None:
    """A receiver of one alias takes an event of another schema into its own."""
    got: list[Any] = []
    receiver(LOGICAL, name="south's", using="south")(lambda event: got.append(event.payload))
    note("north")
    relay.drain(using="north")
    consumer = Consumer("events", broker=memory_broker)
    try:
        assert consumer.step(timeout=0) == 1
    finally:
        consumer.close()
    assert [payload["schema"] for payload in got] == ["north"]
    assert InboxEntry.objects.using("south").count() == 1
    assert InboxEntry.objects.using("north").count() == 0
    assert InboxEntry.objects.count() == 0


def test_a_search_path_that_is_set_on_the_connection_leads_the_relay(
    memory_broker: MemoryBroker,
) -> None:
    """One connection and one cache of cursors serve many schemas, each from where it stands."""
    for number in range(3):
        for name in ("north", "south"):
            with search_path(name):
                note("default", number=number)
                if name == "north":
                    note("default", number=number)
        for name in ("north", "south"):
            with search_path(name):
                expected = 2 if name == "north" else 1
                assert relay.drain().published == expected
                assert relay.drain().published == 0
    assert len(in_log(memory_broker)) == 9
    assert OutboxMessage.objects.count() == 0


def test_a_shared_outbox_serves_writers_in_every_schema(memory_broker: MemoryBroker) -> None:
    """With the tables in one shared schema, rows of a tenant's and their events are one commit."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA tenant; CREATE TABLE tenant.own (id int)")
    try:
        with search_path("tenant, public"):
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO own VALUES (1)")
            note("default")
        assert relay.drain().published == 1
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA tenant CASCADE")
