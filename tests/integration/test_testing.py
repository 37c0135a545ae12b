"""folio_events.testing, as the tests of a project use it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.db import transaction
from django.test import TestCase, TransactionTestCase, override_settings

from folio_events import (
    Event,
    RejectEvent,
    RetryPolicy,
    publish,
    receiver,
    suppress_events,
    tenant_context,
    testing,
)
from folio_events.models import Delivery, InboxEntry, OutboxMessage, Publication
from folio_events.receivers import registry
from folio_events.relay import drain
from folio_events.tenants import CallContext, call_context
from folio_events.testing import CapturedEvents, captured_events, deliver_all
from tests.testapp.models import Book, Chapter, Effect

BROKERS = ["memory.MemoryBroker", "database.DatabaseBroker"]
_FIRST, _SECOND = "library.first", "library.second"


@pytest.fixture(params=BROKERS)
def either_broker(request, folio_events) -> None:
    """The memory broker, then the database broker."""
    folio_events(BROKER={"BACKEND": f"folio_events.brokers.{request.param}"})


def note(event: Event, receiver_name: str = "note") -> None:
    Effect.objects.create(receiver=receiver_name, event_id=event.id, key=event.key or "")


@pytest.mark.django_db
@pytest.mark.usefixtures("either_broker", "only_test_receivers")
class TestDeliverAll:
    def test_what_was_saved_reaches_the_receivers(self):
        """A saved model's event takes effect in each receiver, and the counts say so."""
        receiver("library.book", name="one")(note)
        receiver("library.*", name="two", group="others")(lambda event: note(event, "two"))
        book = Book.objects.create(title="Emma")
        done = deliver_all()
        assert (done.published, done.dispatched, done.retried) == (1, 2, 0)
        assert set(Effect.objects.values_list("receiver", "key")) == {
            ("note", str(book.pk)),
            ("two", str(book.pk)),
        }

    def test_a_second_call_finds_nothing_to_do(self):
        """What was delivered once is not delivered again."""
        receiver("library.book")(note)
        Book.objects.create(title="Emma")
        deliver_all()
        done = deliver_all()
        assert (done.published, done.dispatched, done.retried) == (0, 0, 0)
        assert Effect.objects.count() == 1

    def test_without_receivers_events_are_published(self):
        """A project that only sends can use it too."""
        Book.objects.create(title="Emma")
        assert deliver_all().published == 1
        assert Publication.objects.count() == 1

    def test_with_nothing_recorded_there_is_nothing_to_do(self):
        """With an empty outbox and a receiver whose topic does not exist yet, it returns."""
        receiver("library.book")(note)
        assert deliver_all().published == 0

    def test_events_that_receivers_cause_are_delivered_too(self):
        """It goes on until no event causes another."""

        @receiver(_FIRST)
        def pass_on(event: Event) -> None:
            publish(_SECOND, key=event.key, payload={})

        receiver(_SECOND)(note)
        publish(_FIRST, key="1", payload={})
        done = deliver_all()
        assert (done.published, done.dispatched) == (2, 2)
        assert Effect.objects.count() == 1

    def test_more_events_than_a_batch_are_delivered(self, folio_events):
        """Batches of relay and consumer do not limit it, and each key keeps its order."""
        folio_events(RELAY_BATCH_SIZE=7, CONSUMER_BATCH_SIZE=5)
        receiver("library.book")(note)
        books = [Book.objects.create(title=str(number)) for number in range(10)]
        for book in books:
            book.save()
            book.save()
        assert deliver_all().published == 30
        for book in books:
            key = str(book.pk)
            got = Effect.objects.filter(key=key).order_by("id").values_list("event_id", flat=True)
            sent = OutboxMessage.objects.filter(key=key).order_by("id")
            assert list(got) == list(sent.values_list("event_id", flat=True))

    def test_a_loop_is_reported(self, monkeypatch):
        """Receivers that cause each other's events for ever end in an error, not in a hang."""
        monkeypatch.setattr(testing, "MAX_ROUNDS", 10)

        @receiver(_FIRST)
        def again(event: Event) -> None:
            publish(_FIRST, key=event.key, payload={})

        publish(_FIRST, key="1", payload={})
        with pytest.raises(RuntimeError, match=r"after 10 rounds: is there a loop"):
            deliver_all()

    def test_a_failed_event_is_retried_until_it_succeeds(self):
        """A delivery whose time has come is run within the same call."""
        runs: list[int] = []

        @receiver(_FIRST, retry=RetryPolicy(attempts=3, backoff=0))
        def fail_twice(event: Event) -> None:
            runs.append(1)
            if len(runs) < 4:  # a batch that failed starts its receivers once more
                raise ValueError
            note(event)

        publish(_FIRST, key="1", payload={})
        assert deliver_all().retried == 2
        assert Delivery.objects.get().state == "resolved"
        assert Effect.objects.count() == 1

    def test_a_dead_letter_can_be_looked_at(self):
        """What a receiver rejects is a dead delivery afterwards; others are not affected."""

        @receiver(_FIRST, name="rejects")
        def reject(event: Event) -> None:
            raise RejectEvent("no such loan")

        receiver(_FIRST, name="takes")(note)
        publish(_FIRST, key="1", payload={})
        deliver_all()
        delivery = Delivery.objects.get()
        assert (delivery.state, delivery.receiver) == ("dead", "rejects")
        assert "no such loan" in delivery.error
        assert Effect.objects.count() == 1

    def test_a_delivery_whose_time_has_not_come_waits(self):
        """It does not wait for a backoff: the delivery is there to be looked at."""

        @receiver(_FIRST, retry=RetryPolicy(backoff=3600))
        def fail(event: Event) -> None:
            raise ValueError

        publish(_FIRST, key="1", payload={})
        deliver_all()
        assert Delivery.objects.get().state == "retrying"

    def test_after_a_rollback_only_later_events_are_delivered(self):
        """What a test leaves behind when it is rolled back does not come up in the next one."""
        got: list[str] = []

        @receiver(_FIRST)
        def keep(event: Event) -> None:
            got.append(str(event.payload["name"]))
            note(event)

        for name in ("first test", "second test", "third test"):
            with transaction.atomic():
                publish(_FIRST, key="1", payload={"name": name})
                assert deliver_all().published == 1
                assert Effect.objects.count() == 1
                transaction.set_rollback(True)
        assert got == ["first test", "second test", "third test"]

    def test_the_tenant_of_the_event_is_that_of_the_receiver(self, folio_events):
        """Receivers run in the event's tenant."""
        folio_events(TENANCY="folio")
        tenants: list[str | None] = []
        receiver("library.book")(lambda event: tenants.append(event.tenant))
        for tenant in ("diku", "college"):
            with tenant_context(tenant):
                Book.objects.create(title="Emma")
        deliver_all()
        assert sorted(map(str, tenants)) == ["college", "diku"]


def titles(captured: CapturedEvents) -> list[str]:
    return [event.payload["new"]["title"] for event in captured]


@pytest.mark.django_db
class TestCapturedEvents:
    def test_the_events_of_the_block_are_collected(self):
        """Afterwards the events are there as receivers would get them, in order."""
        with captured_events() as captured:
            book = Book.objects.create(title="Emma", copies=1)
            book.copies = 2
            book.save()
            publish("library.note", key="1", payload={"text": "hello"})
        assert len(captured) == 3
        create, update, published = captured
        assert captured[1] is update
        assert (create.topic, create.type, create.key) == ("library.book", "CREATE", str(book.pk))
        assert create.old is None
        assert update.old == create.new
        assert update.payload["new"]["copies"] == 2
        assert published.payload == {"text": "hello"}

    def test_an_event_is_the_one_that_was_published(self):
        """Id, time and payload are those of the event that publish() returned."""
        with captured_events() as captured:
            event = publish("library.note", key="1", payload={"text": "hello"})
        (found,) = captured
        for name in ("id", "topic", "type", "key", "tenant", "payload", "occurred_at"):
            assert getattr(found, name) == getattr(event, name), name

    def test_events_outside_the_block_are_not(self):
        """What was recorded before and after is left out."""
        Book.objects.create(title="before")
        with captured_events() as captured:
            Book.objects.create(title="within")
        Book.objects.create(title="after")
        assert titles(captured) == ["within"]

    def test_an_empty_block_has_no_events(self):
        """Nothing recorded, nothing collected."""
        with captured_events() as captured:
            pass
        assert list(captured) == []

    def test_blocks_may_be_nested(self):
        """The inner block has its own events, the outer one all."""
        with captured_events() as outer:
            Book.objects.create(title="one")
            with captured_events() as inner:
                Book.objects.create(title="two")
        assert titles(inner) == ["two"]
        assert titles(outer) == ["one", "two"]

    def test_rolled_back_events_are_not_collected(self):
        """What a rollback within the block took along was never there."""
        with captured_events() as captured:
            with transaction.atomic():
                Book.objects.create(title="undone")
                transaction.set_rollback(True)
            Book.objects.create(title="done")
        assert titles(captured) == ["done"]

    def test_an_error_of_the_block_passes(self):
        """The block's own error is not swallowed."""
        with pytest.raises(InterruptedError), captured_events():
            raise InterruptedError

    def test_tenant_headers_and_cause_are_shown(self, folio_events):
        """The event shows whose it is and which call and event caused it."""
        folio_events(TENANCY="folio")
        cause = uuid.uuid4()
        headers = {"x-okapi-request-id": "1/a", "x-okapi-tenant": "diku"}
        context = CallContext(tenant="diku", headers=headers, cause_id=cause)
        with captured_events() as captured, call_context(context):
            Book.objects.create(title="Emma")
        (event,) = captured
        assert (event.tenant, event.request_id, event.cause_id) == ("diku", "1/a", str(cause))
        assert event.headers["ce_type"] == "library.book.CREATE"
        assert event.wire_topic == "folio.diku.library.book"

    def test_events_are_collected_although_they_were_published(self, memory_broker):
        """A relay that runs meanwhile takes nothing away."""
        with captured_events() as captured:
            Book.objects.create(title="Emma")
            drain()
        assert len(captured) == 1


@contextmanager
def receiving(topic: str) -> Iterator[None]:
    """Have ``note`` receive a topic during a block, and no other receiver."""
    before = list(registry)
    for known in before:
        registry.remove(known.name)
    receiver(topic, name="note")(note)
    try:
        yield
    finally:
        registry.remove("note")
        for known in before:
            registry.add(known)


class _Shelving:
    """A user's test in each kind of Django's test cases."""

    def shelve(self, broker: str) -> None:
        backend = {"BACKEND": f"folio_events.brokers.{broker}"}
        with (
            override_settings(FOLIO_EVENTS={**settings.FOLIO_EVENTS, "BROKER": backend}),
            receiving("library.chapter"),
        ):
            with captured_events() as captured:
                Chapter.objects.create(book=Book.objects.create(title="Emma"), title="One")
            assert [event.topic for event in captured] == ["library.book", "library.chapter"]
            done = deliver_all()
            assert (done.published, done.dispatched) == (2, 1)
            assert Effect.objects.get().event_id == captured[1].id
            assert InboxEntry.objects.count() == 1


class TestInTestCase(_Shelving, TestCase):
    """Django's TestCase, which runs in a transaction that is rolled back."""

    def test_events_are_delivered_with_the_memory_broker(self):
        """deliver_all() works within the test's transaction, with the memory broker."""
        self.shelve("memory.MemoryBroker")

    def test_events_are_delivered_with_the_database_broker(self):
        """deliver_all() works within the test's transaction, with the database broker."""
        self.shelve("database.DatabaseBroker")

    def test_events_are_delivered_again_in_another_test(self):
        """A test that ran before does not change what this one delivers."""
        self.shelve("database.DatabaseBroker")


class TestInTransactionTestCase(_Shelving, TransactionTestCase):
    """Django's TransactionTestCase, which commits and empties the tables."""

    def test_events_are_delivered_with_the_memory_broker(self):
        """deliver_all() works in autocommit, with the memory broker."""
        self.shelve("memory.MemoryBroker")

    def test_events_are_delivered_with_the_database_broker(self):
        """deliver_all() works in autocommit, with the database broker."""
        self.shelve("database.DatabaseBroker")


class TestOrdinaryTestCase(TestCase):
    """A user's test that knows nothing of processes and commits."""

    book: Book

    @classmethod
    @suppress_events()
    def setUpTestData(cls):
        cls.book = Book.objects.create(title="Emma")
        Book.objects.bulk_create([Book(title="Persuasion"), Book(title="Sanditon")])
        Book.objects.filter(title="Sanditon").update(copies=3)

    def test_fixtures_of_a_suppressed_function_leave_no_event(self):
        """What setUpTestData() writes under the decorator suppress_events() is no event."""
        assert Book.objects.count() == 3
        assert not OutboxMessage.objects.exists()

    def test_an_event_is_there_without_a_commit(self):
        """Within the test's own transaction, each write has its event as soon as it returns."""
        self.book.copies = 2
        self.book.save()
        assert OutboxMessage.objects.get().event_type == "UPDATE"
        Book.objects.update(copies=5)
        with captured_events() as captured:
            Book.objects.all().delete()
        assert OutboxMessage.objects.count() == 7
        assert [(event.old or {})["copies"] for event in captured] == [5, 5, 5]

    def test_a_suppressed_function_may_be_called_again(self):
        """Each call of a decorated function is suppressed, and what comes between is not."""

        @suppress_events()
        def stock(title: str) -> Book:
            return Book.objects.create(title=title)

        with captured_events() as captured:
            stock("Emma")
            Book.objects.create(title="Sanditon")
            stock("Persuasion")
        assert [(event.new or {})["title"] for event in captured] == ["Sanditon"]

    def test_a_suppressed_coroutine_is_suppressed_while_it_runs(self):
        """The decorator waits for the end of an async function, not for its first step."""

        @suppress_events()
        async def stock(title: str) -> None:
            await sync_to_async(Book.objects.create)(title=title)

        with captured_events() as captured:
            async_to_sync(stock)("Emma")
            Book.objects.create(title="Sanditon")
        assert [(event.new or {})["title"] for event in captured] == ["Sanditon"]
