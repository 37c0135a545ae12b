"""The outbox: what a row holds, that it is sent as it stands, and that nobody waits for the broker."""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any

import pytest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test.utils import CaptureQueriesContext

from folio_events import outbox, publish, receiver, tenant_context
from folio_events.brokers import get_broker
from folio_events.brokers.memory import MemoryBroker
from folio_events.message import Record
from folio_events.models import OutboxMessage, Publication, RelayCursor
from folio_events.relay import drain
from folio_events.tenants import CallContext, TenantMiddleware, call_context
from folio_events.testing import deliver_all
from tests.testapp.models import Book

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db

_CALL = {
    "x-okapi-url": "http://okapi:9130",
    "x-okapi-tenant": "diku",
    "x-okapi-token": "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0.sig",
    "x-okapi-request-id": "123456/inventory",
    "x-okapi-user-id": "6c9a3b5e-6f2b-4d39-9d2a-1f6a1c5b7e10",
}


def drain_all() -> int:
    """Drain until nothing is left; how many messages were published."""
    published, more = 0, True
    while more:
        result = drain()
        published, more = published + result.published, result.more
    return published


def headers_of(record: Record) -> dict[str, str]:
    """The headers of a record as text; none of them may be missing or repeated."""
    names = [name for name, _value in record.headers]
    assert len(names) == len(set(names))
    return {name: (value or b"").decode() for name, value in record.headers}


def body_of(record: Record) -> Any:
    return json.loads(record.value or b"")


def new_row(number: int) -> outbox.OutboxRow:
    event = outbox.new_event("library.note", "NOTED", str(number), {"number": number})
    return outbox.make_row(event, "circulation")


class TestAppend:
    def test_many_rows_are_appended_in_few_statements_and_in_order(self):
        """A thousand rows take a few inserts, and their ids rise in the order given."""
        rows = [new_row(number) for number in range(1000)]
        with transaction.atomic(), CaptureQueriesContext(connection) as captured:
            outbox.append(rows, using="default")
        inserts = [q for q in captured.captured_queries if q["sql"].startswith("INSERT")]
        assert len(inserts) <= 10
        stored = OutboxMessage.objects.order_by("id").values_list("event_id", flat=True)
        assert list(stored) == [row.event_id for row in rows]

    def test_no_rows_are_no_statement(self, django_assert_num_queries):
        """Appending nothing asks the database nothing."""
        with django_assert_num_queries(0):
            outbox.append([], using="default")

    def test_a_row_holds_what_it_was_given(self):
        """What is appended is what is read back."""
        with tenant_context("diku"):
            row = new_row(1)
        outbox.append([row], using="default")
        (stored,) = OutboxMessage.objects.all()
        for name, value in row._asdict().items():
            found = getattr(stored, name)
            assert (bytes(found) if isinstance(value, bytes) else found) == value, name

    @pytest.mark.postgres
    def test_ids_come_from_a_sequence_that_gives_single_numbers(self):
        """The sequence of ids has no cache: a cache would hand out blocks, out of commit order."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT cache_size, cycle FROM pg_sequences WHERE sequencename = %s",
                ["folio_events_outboxmessage_id_seq"],
            )
            assert cursor.fetchall() == [(1, False)]


class TestHeaders:
    def test_the_five_headers_of_the_call_reach_the_message(self, memory_broker: MemoryBroker):
        """An event carries on the five headers of the call in which it was recorded."""
        with call_context(CallContext(tenant="diku", headers=_CALL)):
            Book.objects.create(title="Emma")
            publish("library.note", key="1", payload={})
        assert drain_all() == 2
        for topic in ("folio.library.book", "folio.library.note"):
            (record,) = memory_broker.records(topic)
            sent = headers_of(record)
            assert {name: sent[name] for name in _CALL} == _CALL

    def test_without_a_call_there_are_none_of_its_headers(self, memory_broker: MemoryBroker):
        """An event recorded outside a call has the CloudEvents headers and no x-okapi ones."""
        Book.objects.create(title="Emma")
        drain_all()
        (record,) = memory_broker.records("folio.library.book")
        names = headers_of(record).keys()
        assert not [name for name in names if name.startswith("x-okapi")]
        assert {"ce_id", "ce_time", "ce_type", "ce_source", "ce_specversion"} <= names

    def test_what_repeats_is_kept_apart_from_what_does_not(self):
        """Two events of one call and type differ in no repeating header; secrets are their own."""
        for request in ("1/a", "2/b"):
            headers = {**_CALL, "x-okapi-request-id": request}
            with call_context(CallContext(tenant="diku", headers=headers)):
                publish("library.note", key="1", payload={})
        first, second = OutboxMessage.objects.order_by("id")
        assert bytes(first.repeating_headers) == bytes(second.repeating_headers)
        assert _CALL["x-okapi-token"] not in bytes(first.repeating_headers).decode()
        own = dict(json.loads(bytes(second.own_headers)))
        assert own["x-okapi-request-id"] == "2/b"
        assert own["x-okapi-token"] == _CALL["x-okapi-token"]

    @pytest.mark.usefixtures("only_test_receivers")
    def test_the_token_is_in_no_log(self, memory_broker: MemoryBroker, caplog, folio_events):
        """Neither recording, sending, refusing nor failing writes a call's token to a log."""
        caplog.set_level(logging.DEBUG)
        folio_events(
            BROKER={
                "BACKEND": "folio_events.brokers.memory.MemoryBroker",
                "OPTIONS": {"max_message_bytes": 2000},
            }
        )

        @receiver("library.note")
        def fail(event):
            raise RuntimeError(event)

        with call_context(CallContext(tenant="diku", headers=_CALL)):
            publish("library.note", key="1", payload={})
            publish("library.note", key="2", payload={"text": "x" * 3000})
        deliver_all()
        assert "withheld" in caplog.text
        assert "will retry" in caplog.text
        assert _CALL["x-okapi-token"] not in caplog.text


class TestBytes:
    def test_the_bytes_stored_are_the_bytes_sent(self, memory_broker: MemoryBroker):
        """What goes over the wire is the stored payload, byte for byte, with the stored key."""
        Book.objects.create(title="Ærøskøbing \U0001f4da", price="1.50").save()
        publish("library.note", key="Ærø", payload={"nested": {"ü": [1, None, 1.5]}})
        publish("library.note", key=None, payload={})
        drain_all()
        stored = {
            str(row.event_id): (row.key and row.key.encode(), bytes(row.payload or b""))
            for row in OutboxMessage.objects.all()
        }
        sent = {
            headers_of(record)["ce_id"]: (record.key, record.value)
            for topic in ("folio.library.book", "folio.library.note")
            for record in memory_broker.records(topic)
        }
        assert len(sent) == 4
        assert sent == stored

    def test_the_id_is_made_when_the_event_is_recorded(self, memory_broker: MemoryBroker):
        """The id of the returned event is the id stored, and the id in body and header."""
        event = publish("library.note", key="1", payload={})
        row = OutboxMessage.objects.get()
        drain_all()
        (record,) = memory_broker.records("folio.library.note")
        body_id = uuid.UUID(body_of(record)["id"])
        assert event.id == row.event_id == body_id
        assert headers_of(record)["ce_id"] == str(event.id)

    @pytest.mark.django_db(transaction=True)
    def test_a_message_sent_again_is_the_same_message(self, memory_broker: MemoryBroker):
        """A row that is published once more has the id, bytes and headers of the first time."""
        Book.objects.create(title="Emma")
        drain_all()
        RelayCursor.objects.update(position=0, version=1)
        assert drain_all() == 1
        first, *others = memory_broker.records("folio.library.book")
        assert others
        for other in others:
            assert (other.key, other.value, other.headers) == (
                first.key,
                first.value,
                first.headers,
            )

    def test_a_message_carries_its_outbox_id(self, memory_broker: MemoryBroker):
        """The header ce_sequence is the outbox id, so that readers can tell old from new."""
        for _ in range(3):
            publish("library.note", key="1", payload={})
        drain_all()
        sequences = [
            int(headers_of(record)["ce_sequence"])
            for record in memory_broker.records("folio.library.note")
        ]
        assert sequences == list(OutboxMessage.objects.order_by("id").values_list("id", flat=True))

    def test_publishing_leaves_the_row_as_it_is(self, memory_broker: MemoryBroker):
        """The outbox is append-only: a published row has not changed, and stands where it stood."""
        Book.objects.create(title="Emma")
        before = OutboxMessage.objects.values().get()
        drain_all()
        assert OutboxMessage.objects.values().get() == before
        assert Publication.objects.get().outbox_message_id == before["id"]


class TestOutage:
    def test_after_an_outage_everything_is_published(self, memory_broker: MemoryBroker):
        """While the broker is away events pile up; once it is back each is sent, once, in order."""
        memory_broker.available = False
        books = [Book.objects.create(title=str(number)) for number in range(20)]
        for copies in range(2, 5):
            for book in books:
                book.copies = copies
                book.save()
                if book.pk % 7 == 0:
                    assert drain().published == 0
        memory_broker.available = True
        while drain(limit=11).more:
            pass
        records = memory_broker.records("folio.library.book")
        assert len(records) == OutboxMessage.objects.count() == Publication.objects.count() == 80
        for book in books:
            bodies = [body_of(r) for r in records if r.key == str(book.pk).encode()]
            assert [body["new"]["copies"] for body in bodies] == [1, 2, 3, 4]

    def test_writing_never_asks_the_broker(self, memory_broker: MemoryBroker, monkeypatch):
        """Neither a save nor publish() calls the broker: a request does not wait for it."""

        def asked(*args: object, **kwargs: object) -> None:
            raise AssertionError(args)

        for name in ("publish", "missing_topics", "create_topics", "max_message_bytes"):
            monkeypatch.setattr(MemoryBroker, name, asked)
        Book.objects.create(title="Emma").delete()
        publish("library.note", key="1", payload={})
        assert OutboxMessage.objects.count() == 3
        with pytest.raises(AssertionError):
            drain()

    def test_a_request_is_answered_while_the_broker_is_away(self, memory_broker, rf, folio_events):
        """A request's write succeeds while the broker is down; its event waits, with its headers."""
        folio_events(TENANCY="folio")
        broker = get_broker()
        assert isinstance(broker, MemoryBroker)
        broker.available = False

        def view(_request: HttpRequest) -> HttpResponse:
            return HttpResponse(Book.objects.create(title="Emma").title, status=201)

        answer = TenantMiddleware(view)(rf.post("/books", headers=_CALL))
        assert isinstance(answer, HttpResponse)
        assert answer.status_code == 201
        assert drain().unavailable
        broker.available = True
        assert drain_all() == 1
        (record,) = broker.records("folio.diku.library.book")
        assert _CALL.items() <= headers_of(record).items()
