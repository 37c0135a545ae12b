"""Living with changes: old rows and processes on a new schema, and what was unregistered."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections

from folio_events import events, hooks, publish, relay
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import (
    BrokerRecord,
    ConsumerOffset,
    Delivery,
    InboxEntry,
    OutboxMessage,
    Publication,
    RelayGap,
    WithheldMessage,
)
from folio_events.receivers import registry
from folio_events.redelivery import RetryPass, retry_due
from folio_events.testing import deliver_all
from tests import statements_of_0001 as before
from tests.note_topic import LOGICAL, WIRE, Mood, NoteTopic, effects, note_receiver
from tests.outbox_writer import database_address
from tests.real_commands import RealCommand, environment
from tests.testapp.events import BookEvents
from tests.testapp.models import Book

pytestmark = pytest.mark.django_db(transaction=True)


def migrate(*target: str) -> None:
    call_command("migrate", "folio_events", *target, verbosity=0)


@pytest.fixture
def migrated() -> Iterator[None]:
    """Whatever the test does, the newest migration is applied after it."""
    yield
    migrate()


def note(key: str = "k", number: int = 0) -> None:
    publish(LOGICAL, key=key, payload={"number": number})


def body(event_id: uuid.UUID, number: int) -> bytes:
    return json.dumps(
        {"id": str(event_id), "type": "note", "timestamp": 1, "data": {"number": number}}
    ).encode()


class OldProcess:
    """Does what the version before did, in its own words, each step in a transaction."""

    def __init__(self) -> None:
        self.session = psycopg.connect(**database_address())

    def rows(self, statement: str, **parameters: Any) -> list[Any]:
        with self.session.transaction():
            found = self.session.execute(statement, parameters or None)
            return found.fetchall() if found.description else []

    def append(self, key: str, number: int) -> int:
        event_id = uuid.uuid4()
        [row] = self.rows(before.APPEND, event_id=event_id, key=key, payload=body(event_id, number))
        return int(row[0])

    def drain(self) -> list[int]:
        """Read, record and advance; the ids that it read."""
        position = next((row[1] for row in self.rows(before.READ_CURSOR)), 0)
        gaps = self.rows(before.READ_GAPS)
        assert self.rows(before.ANY_WITHHELD) == []
        first, last = [gap[0] for gap in gaps], [gap[1] for gap in gaps]
        _, *found = self.rows(before.READ, first=first, last=last, position=position, limit=100)
        assert self.rows(before.HOLDERS) == []
        ids = [row[0] for row in found]
        with self.session.transaction(), self.session.cursor() as cursor:
            with cursor.copy(before.RECORD) as copy:
                for number in ids:
                    copy.write_row((number, WIRE, 0, number, "2026-03-04T12:00:00Z"))
            cursor.execute(before.ADVANCE, {"position": max(ids), "version": 1})
        return ids


@pytest.fixture
def old_process() -> Iterator[OldProcess]:
    process = OldProcess()
    yield process
    process.session.close()


@pytest.mark.postgres
@pytest.mark.usefixtures("migrated")
class TestVersionBefore:
    @pytest.fixture(params=["before migrate", "after migrate"], autouse=True)
    def _schema(self, request: pytest.FixtureRequest) -> None:
        """Rows that it wrote before, and processes that go on after, a migration."""
        if request.param == "before migrate":
            migrate("0001")

    def test_its_relay_and_the_new_one_take_turns(
        self, old_process: OldProcess, memory_broker: MemoryBroker
    ) -> None:
        """Each reads what is written by the other's version, from where the other stopped."""
        first = [old_process.append("a", number) for number in range(3)]
        assert old_process.drain() == first
        old_process.append("b", 3)
        migrate()
        note("c", 4)
        assert relay.drain().published == 2
        last = old_process.append("d", 5)
        assert old_process.drain() == [last]
        note("e", 6)
        assert relay.drain().published == 1
        assert Publication.objects.count() == OutboxMessage.objects.count() == 7

    def test_its_gaps_and_withheld_messages_are_taken_over(
        self, old_process: OldProcess, memory_broker: MemoryBroker
    ) -> None:
        """A row in a gap is published; one behind a refused message follows it."""
        in_gap, refused, follower = (old_process.append(key, 0) for key in ("a", "b", "b"))
        old_process.rows(before.ADD_GAP, id=in_gap)
        old_process.rows(before.ADD_GAP, id=refused + 1000)
        old_process.rows(before.DROP_GAP, id=refused + 1000)
        for _ in range(2):
            old_process.rows(before.WITHHOLD, id=refused, key="b")
        old_process.rows(before.ADVANCE, position=refused, version=1)
        migrate()
        relay.drain()
        relay.drain()
        assert [p.pk for p in Publication.objects.all()] == [in_gap]
        assert not RelayGap.objects.exists()
        assert list(WithheldMessage.objects.order_by("pk").values_list("pk", "state")) == [
            (refused, "refused"),
            (follower, "waiting"),
        ]

    def test_its_effects_offsets_and_deliveries_count(
        self, old_process: OldProcess, notes: NoteTopic
    ) -> None:
        """What took effect takes no second one, and what failed is retried."""
        note_receiver("notes")
        done, failed = uuid.uuid4(), uuid.uuid4()
        old_process.rows(before.START)
        assert old_process.rows(before.LOCK) == [(WIRE, 0, 0)]
        effect = {"receivers": ["notes"], "event_ids": [done], "replays": [0]}
        assert len(old_process.rows(before.TAKE_EFFECT, **effect)) == 1
        assert old_process.rows(before.TAKE_EFFECT, **effect) == []
        parameters = {"key": "k", "raw_key": b"k", "payload": body(failed, 1)}
        for _ in range(2):
            old_process.rows(before.FAIL, event_id=failed, **parameters)
        [(claimed, receiver, attempts)] = old_process.rows(before.CLAIM)
        assert (receiver, attempts) == ("notes", 1)
        old_process.rows(before.FAIL_AGAIN, id=claimed)
        old_process.rows(before.MOVE, offset=2)
        migrate()
        for event_id, number in ((done, 0), (failed, 1)):
            notes.put(number=number, event_id=event_id)
        notes.put(number=0, event_id=done)
        notes.put(number=2)
        notes.consume()
        assert ConsumerOffset.objects.get().offset == 4
        assert retry_due() == RetryPass(resolved=3)
        assert effects("notes") == [1, 2]
        assert InboxEntry.objects.count() == 3


@pytest.mark.usefixtures("migrated")
def test_a_relay_that_runs_while_migrate_runs_goes_on(tmp_path: Path) -> None:
    """Back and forth under a relay and a writer at work: nothing is lost, doubled or inverted."""
    daemon = RealCommand(tmp_path, "relay_events", env=environment())
    stop = threading.Event()
    written = 0

    def write() -> int:
        count = 0
        try:
            while not stop.is_set():
                note("k", count)
                count += 1
                stop.wait(0.005)
        finally:
            connections.close_all()
        return count

    try:
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                daemon.wait_for(Publication.objects.exists)
                for _ in range(2):
                    migrate("0001")
                    migrate()
            finally:
                stop.set()
            written = writing.result(30)
        daemon.wait_for(lambda: Publication.objects.count() == written)
    finally:
        daemon.process.kill()
    records = BrokerRecord.objects.order_by("offset").values_list("value", flat=True)
    numbers = [json.loads(bytes(value or b""))["data"]["number"] for value in records]
    assert numbers == list(range(written))


class TestUnregistered:
    def test_events_of_a_model_that_is_no_longer_registered_are_published(
        self, memory_broker: MemoryBroker
    ) -> None:
        """What was committed reaches the broker, whatever the code declares by then."""
        Book.objects.create(title="Emma")
        events.unregister(Book)
        hooks.install()
        try:
            Book.objects.create(title="Persuasion")
            assert relay.drain().published == 1
        finally:
            events.register(Book)(BookEvents)
            hooks.install()
        assert Publication.objects.get().topic == "folio.library.book"

    def test_deliveries_of_a_removed_receiver_harm_nobody(self, notes: NoteTopic) -> None:
        """They stay as they are; other receivers and retries go on, also within their key."""
        note_receiver("gone", Mood(0))
        note_receiver("here", Mood(0))
        notes.put(number=0)
        notes.consume()
        registry.remove("gone")
        notes.restart()
        notes.put(number=1)
        notes.consume()
        registry.remove("here")
        note_receiver("here")
        Delivery.objects.update(next_attempt_at="2020-01-01T00:00:00Z")
        assert retry_due() == RetryPass(resolved=2)
        assert effects("here") == [0, 1]
        assert Delivery.objects.get(receiver="gone").state == "retrying"

    def test_a_group_that_is_no_more_stops_no_consumer(self, only_test_receivers: None) -> None:
        """Its offset rows stay behind; the other groups read on."""
        note_receiver("gone", group="gone")
        note_receiver("here")
        note()
        deliver_all()
        registry.remove("gone")
        note(number=1)
        deliver_all()
        assert effects("here") == [0, 1]
        assert set(ConsumerOffset.objects.values_list("group", flat=True)) == {"gone", "events"}


@pytest.mark.usefixtures("migrated")
class TestUninstall:
    def test_tables_with_unpublished_events_are_not_dropped(
        self, memory_broker: MemoryBroker
    ) -> None:
        """'migrate zero' names what is left and undoes no migration; once it is gone, it goes."""
        note()
        with pytest.raises(CommandError, match="1 outbox messages are not published"):
            migrate("zero")
        assert OutboxMessage.objects.count() == 1
        relay.drain()
        migrate("zero")
        assert "folio_events_outboxmessage" not in connection.introspection.table_names()

    def test_tables_with_open_deliveries_are_not_dropped(self, notes: NoteTopic) -> None:
        """An event that a receiver has not had is as good as lost with them."""
        note_receiver("picky", Mood(0))
        notes.put()
        notes.consume()
        with pytest.raises(CommandError, match="1 deliveries are open"):
            migrate("zero")
        Delivery.objects.update(state="discarded")
        migrate("zero")

    def test_other_steps_back_are_free(self) -> None:
        """What drops no table needs nothing to be settled."""
        note()
        migrate("0001")
        assert OutboxMessage.objects.count() == 1
