"""Compacted topics: what a deletion leaves in them, and what no compaction takes away."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.core import checks
from django.db import transaction
from django.utils import timezone

from folio_events import Event, events, publish, receiver, tenant_context, triggers
from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.database import DatabaseBroker
from folio_events.brokers.memory import MemoryBroker
from folio_events.dialects import read_headers
from folio_events.exceptions import EncodingError
from folio_events.message import Message, Record
from folio_events.models import BrokerRecord, Delivery, InboxEntry, OutboxMessage, WithheldMessage
from folio_events.operations.retention import purge
from folio_events.relay import drain
from folio_events.testing import captured_events
from folio_events.withheld import release
from tests.note_topic import WIRE, NoteTopic, effects, note_receiver
from tests.testapp.models import Book, Chapter, Shelf

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db

#: Type, key and whether there is a body.
Left = tuple[str, str | None, bool]


@pytest.fixture(autouse=True)
def compacted(folio_events: Callable[..., None]) -> None:
    """The topics of the test models are compacted."""
    names = ("library.book", "library.chapter", "library.shelf", "library.tag", "library.note")
    forms = ("forms.signal-part", "forms.trigger-part", "forms.trigger", "forms.signal")
    folio_events(TOPICS={name: {"CLEANUP_POLICY": "compact"} for name in (*names, *forms)})


def left(topic: str | None = None) -> list[Left]:
    """What the outbox holds, in the order of ids."""
    rows = OutboxMessage.objects.order_by("id")
    return [
        (row.event_type, row.key, row.payload is not None)
        for row in (rows if topic is None else rows.filter(topic=topic))
    ]


def form_model(name: str) -> Any:
    """A model of the app that is there on PostgreSQL only."""
    return apps.get_model("triggerapp", name)


def emptied() -> None:
    """Begin with an empty outbox."""
    OutboxMessage.objects.all().delete()


class TestRecording:
    def test_a_deletion_is_an_event_and_a_tombstone_behind_it(self) -> None:
        """Receivers get the row as it was, and the broker forgets the key."""
        book = Book.objects.create(title="Dune")
        key = str(book.pk)
        book.delete()

        assert left() == [("CREATE", key, True), ("DELETE", key, True), ("DELETE", key, False)]
        ids = OutboxMessage.objects.values_list("event_id", flat=True)
        assert len(set(ids)) == 3

    def test_a_deletion_from_another_topic_is_an_event_alone(
        self, folio_events: Callable[..., None]
    ) -> None:
        """Without compaction a tombstone would tell nobody anything."""
        folio_events(TOPICS={"library.book": {"CLEANUP_POLICY": "delete"}})
        book = Book.objects.create(title="Dune")
        book.delete()

        assert [kind for kind, _key, _body in left()] == ["CREATE", "DELETE"]

    @pytest.mark.parametrize("count", [3, 120])
    def test_each_row_of_a_bulk_deletion_leaves_a_tombstone(self, count: int) -> None:
        """All events come first; COPY, which many rows go by, writes the same."""
        Book.objects.bulk_create(Book(title=f"b{n}") for n in range(count))
        keys = {str(pk) for pk in Book.objects.values_list("pk", flat=True)}
        emptied()

        Book.objects.all().delete()

        found = left()
        assert len(found) == 2 * count
        assert {key for _kind, key, body in found if body} == keys
        assert {key for _kind, key, body in found[count:] if not body} == keys

    def test_a_rollback_takes_the_tombstone_too(self) -> None:
        """It is part of the transaction of the deletion."""
        book = Book.objects.create(title="Dune")
        with transaction.atomic():
            book.delete()
            transaction.set_rollback(True)

        assert [kind for kind, _key, _body in left()] == ["CREATE"]

    def test_a_key_that_a_row_gives_up_gets_a_tombstone(self) -> None:
        """The last event of the old key would stand for a row for ever."""
        old, new = Book.objects.create(title="old"), Book.objects.create(title="new")
        chapter = Chapter.objects.create(book=old, title="I")
        emptied()

        chapter.book = new
        chapter.save()

        assert left() == [("UPDATE", str(new.pk), True), ("DELETE", str(old.pk), False)]

    def test_a_key_that_another_row_has_gets_no_tombstone(self) -> None:
        """It would have the broker forget an event that stands for a row."""
        book, other = Book.objects.create(title="a"), Book.objects.create(title="b")
        first, second = (Chapter.objects.create(book=book, title=t) for t in ("I", "II"))
        emptied()

        first.delete()
        second.book = other
        second.save()

        assert left() == [
            ("DELETE", str(book.pk), True),
            ("UPDATE", str(other.pk), True),
            ("DELETE", str(book.pk), False),
        ]

    def test_an_event_without_key_is_refused_when_it_is_recorded(
        self, declare: Callable[..., None]
    ) -> None:
        """Kafka would refuse it when nobody is there any more to hear of it."""
        declare(Book, key="price")
        with (
            pytest.raises(EncodingError, match=r"testapp\.Book.*'library\.book' is compacted"),
            transaction.atomic(),
        ):
            Book.objects.create(title="Dune", price=None)
        with pytest.raises(EncodingError, match=r"library\.note.*compacted"):
            publish("library.note", key=None, payload={})
        assert left() == []


class TestPublish:
    def test_none_for_a_payload_is_a_tombstone(self) -> None:
        """It is recorded like any event, and the event says what it is."""
        event = publish("library.note", key=7, payload=None)

        assert (event.key, event.type, event.is_tombstone, event.payload) == (
            "7", "DELETE", True, {},
        )  # fmt: skip
        row = OutboxMessage.objects.get()
        assert (row.event_id, row.payload) == (event.id, None)

    def test_a_topic_that_is_not_compacted_takes_none(self) -> None:
        """A forgotten payload is the likelier reason; the message says how it could be meant."""
        with pytest.raises(EncodingError, match=r"library\.loan.*cleanup_policy=.compact"):
            publish("library.loan", key=7, payload=None)

    @pytest.mark.parametrize("given", [{"key": None}, {"key": 7, "type": "note"}])
    def test_a_tombstone_is_a_key_and_nothing_else(self, given: dict[str, Any]) -> None:
        """Without a key it says nothing, and its type would be lost."""
        with pytest.raises(EncodingError, match="a key and nothing else"):
            publish("library.note", payload=None, **given)


class TestRelay:
    @pytest.mark.parametrize("backend", ["memory.MemoryBroker", "database.DatabaseBroker"])
    def test_a_tombstone_goes_out_without_body_and_with_its_headers(
        self, folio_events: Callable[..., None], backend: str
    ) -> None:
        """Tracing and tenant of it can still be read."""
        folio_events(BROKER={"BACKEND": f"folio_events.brokers.{backend}"}, TENANCY="folio")
        with tenant_context("diku"):
            event = publish("library.note", key="a", payload=None)
        assert drain().published == 1

        (record,) = _records("folio.diku.library.note")
        assert (record.key, record.value) == (b"a", None)
        headers = read_headers(record.headers)
        assert headers["ce_id"] == str(event.id)
        assert headers["ce_type"] == "library.note.DELETE"
        assert headers["folio.tenantid"] == "diku"
        assert int(headers["ce_sequence"]) == OutboxMessage.objects.get().pk

    def test_a_withheld_tombstone_goes_out_when_it_is_released(
        self, memory_broker: MemoryBroker
    ) -> None:
        """It follows what was refused of its key, and stays a tombstone."""
        memory_broker.options["max_message_bytes"] = 1000
        publish("library.note", key="a", payload={"text": "x" * 1000})
        publish("library.note", key="a", payload=None)
        drain()
        assert WithheldMessage.objects.count() == 2

        memory_broker.options["max_message_bytes"] = 2000
        release([WithheldMessage.objects.earliest("pk").pk])
        while drain().more or WithheldMessage.objects.filter(state="waiting").exists():
            pass

        assert [record.value is None for record in memory_broker.records(WIRE)] == [False, True]


def _records(topic: str) -> list[Record]:
    with closing(get_broker().read([topic], latest=False)) as reader:
        return reader.poll(100, 1)


class TestReceivers:
    def test_a_tombstone_reaches_who_asks_for_it(self, notes: NoteTopic) -> None:
        """The event of the deletion has told the others; for all of them the offset moves on."""
        seen: list[Event] = []
        others = note_receiver("others")
        note_receiver("picky", types=["DELETE"])

        receiver("library.note", name="asked", types=["note"], tombstones=True)(seen.append)
        notes.put("k", 1)
        notes.put_raw(None)
        notes.put("k", 2)

        assert notes.consume() == 3
        assert others == [1, 2]
        assert effects("picky") == []
        assert [(e.type, e.key, e.is_tombstone) for e in seen] == [
            ("note", "k", False), ("DELETE", "k", True), ("note", "k", False),
        ]  # fmt: skip
        assert not Delivery.objects.exists()

    def test_a_foreign_tombstone_is_no_dead_letter(self, notes: NoteTopic) -> None:
        """Kafka's own tools write a key and nothing more."""
        note_receiver("any")
        notes.put_raw(None, b"k")
        notes.put_raw(None, b"\xff")

        assert notes.consume() == 2
        assert not Delivery.objects.exists()
        assert not InboxEntry.objects.exists()

    def test_neither_key_nor_body_is_a_dead_letter(self, notes: NoteTopic) -> None:
        """Of such a record nobody knows what it was to say."""
        note_receiver("any")
        notes.put_raw(None, None)
        notes.consume()

        assert Delivery.objects.get().state == "dead"

    def test_captured_events_have_the_tombstone(self) -> None:
        """A project's own tests see what is recorded."""
        book = Book.objects.create(title="Dune")
        with captured_events() as captured:
            book.delete()

        assert [(e.type, e.is_tombstone) for e in captured.events] == [
            ("DELETE", False), ("DELETE", True),
        ]  # fmt: skip


class TestPurge:
    """Of the database broker's log."""

    @pytest.fixture
    def log(self) -> Callable[..., list[tuple[bytes | None, bytes | None]]]:
        """Puts records of some age into a topic, purges, and returns what is left."""
        broker = DatabaseBroker({})
        topic = "folio.library.note"
        broker.create_topics([TopicSpec(topic, 1, 1)])

        def put(
            *pairs: tuple[bytes | None, bytes | None], days: float
        ) -> list[tuple[bytes | None, bytes | None]]:
            broker.publish([Message(topic, key, value, []) for key, value in pairs], timeout=1)
            stamp = int((timezone.now() - timedelta(days=days)).timestamp() * 1000)
            BrokerRecord.objects.update(timestamp=stamp)
            purge()
            rows = BrokerRecord.objects.order_by("offset").values_list("key", "value")
            return [
                (None if k is None else bytes(k), None if v is None else bytes(v)) for k, v in rows
            ]

        return put

    def test_the_last_record_of_each_key_stays(self, log: Callable[..., Any]) -> None:
        """A consumer that comes in a year finds the state of every key."""
        records = [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (None, b"x")]

        assert log(*records, days=400) == [(b"b", b"1"), (b"a", b"2")]

    def test_what_is_young_stays(self, log: Callable[..., Any]) -> None:
        """Within the retention nothing is compacted away."""
        records = [(b"a", b"1"), (b"a", b"2"), (b"a", None)]

        assert log(*records, days=0) == records

    def test_a_tombstone_goes_last(
        self, log: Callable[..., Any], folio_events: Callable[..., None]
    ) -> None:
        """Past its own retention, when every consumer had the time to see it."""
        options = {"CLEANUP_POLICY": "compact", "DELETE_RETENTION": 500 * 86_400}
        folio_events(TOPICS={"library.note": options})
        assert log((b"a", b"1"), (b"a", None), days=400) == [(b"a", None)]

        options["DELETE_RETENTION"] = 300 * 86_400
        folio_events(TOPICS={"library.note": {**options}})
        assert log(days=400) == []

    def test_a_tombstone_stays_as_long_as_on_kafka(self, log: Callable[..., Any]) -> None:
        """Thirty days where the topic says nothing, whichever the broker."""
        assert log((b"a", b"1"), (b"a", None), days=29) == [(b"a", None)]
        assert log(days=31) == []

    def test_a_topic_that_deletes_as_well_keeps_nothing(
        self, log: Callable[..., Any], folio_events: Callable[..., None]
    ) -> None:
        """With "compact,delete" age counts for all."""
        folio_events(TOPICS={"library.note": {"CLEANUP_POLICY": "compact,delete"}})

        assert log((b"a", b"1"), days=400) == []


class TestTriggers:
    pytestmark = pytest.mark.postgres

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        """The triggers as they are for compacted topics."""
        for model in map(form_model, ("TriggerItem", "TriggerPart")):
            declaration = events.find(model)
            assert declaration is not None
            triggers.trigger_of(declaration).install(model)

    @pytest.mark.parametrize("form", ["signal", "trigger"])
    def test_both_forms_leave_the_same(self, form: str) -> None:
        """Deletions, keys that rows give up, and keys that other rows have."""
        item_model, part_model = (form_model(f"{form}{name}") for name in ("Item", "Part"))
        one, two = (item_model.objects.create(pk=pk, title="t") for pk in (901, 902))
        parts = [part_model.objects.create(item=one, title=t) for t in "ab"]
        emptied()

        parts[0].delete()
        parts[1].item = two
        parts[1].save()
        parts[1].delete()
        one.delete()

        assert left(f"forms.{form}-part") == [
            ("DELETE", "901", True),
            ("UPDATE", "902", True),
            ("DELETE", "901", False),
            ("DELETE", "902", True),
            ("DELETE", "902", False),
        ]
        assert left(f"forms.{form}") == [("DELETE", "901", True), ("DELETE", "901", False)]

    @pytest.mark.parametrize("name", ["SignalPart", "TriggerPart"])
    def test_a_row_without_key_is_refused(self, name: str) -> None:
        """The write fails, and says why."""
        with (
            pytest.raises(EncodingError, match=f"triggerapp.{name}.*compacted"),
            transaction.atomic(),
        ):
            form_model(name).objects.create(item=None, title="lost")

    def test_the_stored_headers_are_those_of_an_event(self) -> None:
        """The relay makes of them what it makes of others."""
        form_model("TriggerItem").objects.create(pk=903, title="t").delete()

        row = OutboxMessage.objects.filter(topic="forms.trigger").latest("id")
        assert row.payload is None
        assert ["ce_type", "forms.trigger.DELETE"] in json.loads(bytes(row.repeating_headers))


def test_a_key_of_several_rows_is_warned_of(declare: Callable[..., None]) -> None:
    """Of their events a compacted topic would keep the last one only."""
    declare(Shelf, topic="library.shelf", key="label")

    found = [m for m in checks.run_checks(tags=["folio_events"]) if m.id == "folio_events.W014"]

    assert any("'library.shelf' is compacted" in str(message.msg) for message in found)
    assert not any("library.book" in str(message.msg) for message in found)
