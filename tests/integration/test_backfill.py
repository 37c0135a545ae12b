"""Rows that are there already become events, once each, without disturbing anybody."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import F

from folio_events import Event, ModelEvents, capture, events, outbox, receiver, suppress_events
from folio_events.brokers.memory import MemoryBroker
from folio_events.consumer import Consumer
from folio_events.exceptions import ConfigurationError, InvalidStateError
from folio_events.models import Backfill, OutboxMessage
from folio_events.operations import backfill
from folio_events.operations.backfill import (
    HEADER,
    cancel,
    declared,
    find,
    resume,
    run,
    start,
    step,
)
from folio_events.relay import drain
from folio_events.tenants import tenant_context
from tests.testapp.models import Book, Chapter, Shelf

pytest_plugins = ("tests.second_connection",)
pytestmark = pytest.mark.django_db(transaction=True)
Other = Callable[[Callable[[], Any]], Future[Any]]


def old_books(count: int, **values: Any) -> list[Book]:
    """Rows from before there were events."""
    with suppress_events():
        return [Book.objects.create(title=f"book {n}", **values) for n in range(count)]


def recorded() -> list[dict[str, Any]]:
    """The bodies in the outbox, in their order, with the key."""
    rows = OutboxMessage.objects.order_by("id").values_list("payload", "key")
    return [{**json.loads(bytes(payload or b"")), "key": key} for payload, key in rows]


def own_headers() -> list[dict[str, str]]:
    rows = OutboxMessage.objects.order_by("id").values_list("own_headers", flat=True)
    return [dict(json.loads(bytes(headers))) for headers in rows]


def books() -> ModelEvents:
    return declared("testapp.Book")


def done(job: Backfill, **options: Any) -> Backfill:
    job = run(job, **options)
    assert job.state == Backfill.State.DONE
    return job


def test_each_row_is_an_event_with_its_state_and_the_mark_of_the_job() -> None:
    """Type, key and ``new`` as of the row; the job's id under our name and FOLIO's."""
    made = old_books(3, copies=2)
    job = done(start(books()))
    assert [(e["type"], e["key"], e["new"]["title"]) for e in recorded()] == [
        ("REINDEX", str(book.pk), book.title) for book in made
    ]
    assert all("old" not in body for body in recorded())
    assert own_headers() == [{HEADER: str(job.pk), "reindex-job-id": str(job.pk)}] * 3
    assert (job.passed, job.events, job.total) == (3, 3, 3)


@pytest.mark.parametrize(
    ("kind", "names"), [("ITERATE", {HEADER, "iteration-job-id"}), ("CREATE", {HEADER})]
)
def test_the_type_is_chosen_and_has_folios_header(kind: str, names: set[str]) -> None:
    """A type of FOLIO's back-fills brings the header that FOLIO's consumers look for."""
    old_books(1)
    done(start(books(), kind=kind))
    assert recorded()[0]["type"] == kind
    assert own_headers()[0].keys() == names


def test_a_receiver_can_tell_a_backfill(memory_broker: MemoryBroker) -> None:
    """By the type and by the header; the events of what it writes do not carry the mark on."""
    seen: list[tuple[str, str | None]] = []

    @receiver("library.book", types=["REINDEX"], name="seen")
    def see(event: Event) -> None:
        seen.append((event.type, event.headers.get(HEADER)))
        Chapter.objects.create(book_id=int(event.key or 0), title="one")

    old_books(1)
    job = done(start(books()))
    drain()
    consumer = Consumer("events", broker=memory_broker)
    while consumer.step(timeout=0):
        pass
    consumer.close()
    assert seen == [("REINDEX", str(job.pk))]
    assert HEADER not in own_headers()[-1]


def test_events_without_state_have_the_key_alone() -> None:
    """As FOLIO's inventory sends them: receivers ask for the row."""
    (book,) = old_books(1)
    done(start(books(), kind="ITERATE", keys_only=True))
    (body,) = recorded()
    assert body.keys() & {"old", "new"} == set()
    assert (body["type"], body["key"]) == ("ITERATE", str(book.pk))


def test_private_fields_and_serializers_apply() -> None:
    """What a declaration hides from live events a back-fill hides too."""

    class Declared(ModelEvents):
        topic = "library.shelf"
        fields = ["id", "label"]
        private = ["label"]

    with suppress_events():
        shelf = Shelf.objects.create(label="secret")
    events.register(Shelf)(Declared)
    try:
        done(start(declared("testapp.Shelf")))
    finally:
        events.unregister(Shelf)
    assert recorded()[0]["new"] == {"id": shelf.pk, "label": "***"}


def test_a_killed_job_goes_on_where_it_stood() -> None:
    """Position and events are one transaction: nothing is left out, and nothing comes twice."""
    made = old_books(7)
    job = start(books())
    step(job, limit=3)
    stored = find(job.pk)
    assert (stored.passed, OutboxMessage.objects.count()) == (3, 3)
    done(resume(job.pk))
    assert [int(body["key"]) for body in recorded()] == [book.pk for book in made]


def test_a_chunk_that_fails_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the position nor a part of its events stays."""
    old_books(4)
    job = start(books())
    step(job, limit=2)

    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Backfill, "save", fail)
        with pytest.raises(RuntimeError):
            step(job, limit=2)
    assert OutboxMessage.objects.count() == 2
    assert find(job.pk).passed == 2


def test_a_process_whose_job_was_taken_over_stops() -> None:
    """It records nothing more; the other one has each row once."""
    old_books(4)
    job = start(books())
    step(job, limit=2)
    taken = resume(job.pk)
    with pytest.raises(InvalidStateError, match="has taken back-fill"):
        run(job)
    done(taken)
    assert OutboxMessage.objects.count() == 4


def test_two_at_once_on_one_model_are_refused() -> None:
    """The refusal names the job that runs; after its end another may begin."""
    old_books(1)
    job = start(books())
    with pytest.raises(InvalidStateError, match=rf"Back-fill {job.pk} of testapp.Book is running"):
        start(books())
    cancel(job.pk)
    second = start(books())
    with pytest.raises(InvalidStateError, match=f"{second.pk}"):
        resume(job.pk)
    done(second)
    start(books())


def test_a_cancelled_job_stops_before_its_next_chunk() -> None:
    """What it has recorded stays; it can be resumed, a job that is done cannot."""
    old_books(5)
    job = start(books())
    step(job, limit=2)
    assert cancel(job.pk)
    assert not cancel(job.pk)
    assert run(job).state == Backfill.State.CANCELLED
    assert OutboxMessage.objects.count() == 2
    done(resume(job.pk))
    assert OutboxMessage.objects.count() == 5
    with pytest.raises(InvalidStateError, match="is done"):
        resume(job.pk)


def test_rows_that_come_later_are_left_to_their_own_events() -> None:
    """A back-fill ends however many rows are written meanwhile."""
    old_books(2)
    job = start(books())
    old_books(3)
    assert done(job).events == 2


def test_filters_and_a_start_choose_rows() -> None:
    """By lookups of the model's fields, and behind a primary key."""
    few, many = old_books(2, copies=1), old_books(3, copies=5)
    done(start(books(), filters={"copies__gte": "5"}))
    done(start(books(), since=many[1].pk))
    assert [int(body["key"]) for body in recorded()] == [*(b.pk for b in many), many[2].pk]
    assert backfill.count(books(), filters={"copies": "1"}) == len(few)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "UPDATE"}, "cannot be of 'UPDATE'"),
        ({"filters": {"nothing": "1"}}, "filter"),
        ({"filters": {"copies": "many"}}, "filter"),
        ({"since": "many"}, "no primary key"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    """Before anything is recorded."""
    with pytest.raises(ConfigurationError, match=said):
        start(books(), **options)
    assert not Backfill.objects.exists()


class TestTenants:
    def declare(self, **values: Any) -> ModelEvents:
        declaration = type("Declared", (ModelEvents,), {"topic": "library.shelf", **values})
        events.register(Shelf)(declaration)
        return declared("testapp.Shelf")

    @pytest.fixture(autouse=True)
    def _declared(self, folio_events: Callable[..., None]) -> Any:
        folio_events(TENANCY="folio")
        yield
        events.unregister(Shelf)

    def test_rows_of_other_tenants_are_left_out(self) -> None:
        """Where a column says whose a row is, it decides."""
        declaration = self.declare(tenant=F("label"))
        with suppress_events():
            for label in ("diku", "other", "diku"):
                Shelf.objects.create(label=label)
        with tenant_context("diku"):
            job = start(declaration)
        done(job)
        assert [body["new"]["label"] for body in recorded()] == ["diku", "diku"]
        assert {body["tenant"] for body in recorded()} == {"diku"}

    def test_rows_that_do_not_say_whose_they_are_are_refused(self) -> None:
        """Unless the operator says so: a shared table would be given away."""
        declaration = self.declare()
        with suppress_events():
            Shelf.objects.create(label="one")
        with tenant_context("diku"):
            with pytest.raises(ConfigurationError, match=r"other tenants.*--every-row"):
                start(declaration)
            job = start(declaration, every_row=True)
        done(job)
        assert [body["tenant"] for body in recorded()] == ["diku"]

    def test_two_tenants_may_be_at_work_at_once(self) -> None:
        """Each has its own rows."""
        declaration = self.declare(tenant=F("label"))
        for tenant in ("diku", "other"):
            with tenant_context(tenant), suppress_events():
                Shelf.objects.create(label=tenant)
                start(declaration)
        assert Backfill.objects.filter(state="running").count() == 2


class TestPace:
    def test_a_long_outbox_is_waited_for(self, folio_events: Callable[..., None]) -> None:
        """Live events do not queue up behind a back-fill; it goes on when there is room."""
        folio_events(OUTBOX_SOFT_LIMIT=3)
        old_books(8)
        reasons: list[str] = []
        stop = threading.Event()

        def held_up(reason: str) -> None:
            reasons.append(reason)
            stop.set()

        job = start(books())
        step(job, limit=4)
        job = run(job, stop=stop, held_up=held_up)
        assert job.state == Backfill.State.RUNNING
        assert OutboxMessage.objects.count() == 4
        assert reasons == ["at least 3 messages wait in the outbox; does a relay run?"]
        drain()
        done(job, held_up=lambda _reason: drain())
        assert OutboxMessage.objects.count() == 8

    def test_a_job_that_waits_can_be_cancelled(self, folio_events: Callable[..., None]) -> None:
        """Though no relay makes room."""
        folio_events(OUTBOX_SOFT_LIMIT=1)
        old_books(2)
        job = start(books())
        step(job, limit=1)
        job = run(job, held_up=lambda _reason: cancel(job.pk))
        assert job.state == Backfill.State.CANCELLED

    def test_a_refusal_of_the_outbox_ends_nothing(
        self, folio_events: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Live writes may have taken the room between the look and the chunk."""
        folio_events(OUTBOX_HARD_LIMIT=4)
        outbox._backlogs.clear()
        old_books(6)
        monkeypatch.setattr(backfill, "outbox_reason", lambda _using: "")
        monkeypatch.setattr(backfill, "_CHUNK", 3)

        def make_room(reason: str) -> None:
            assert "OUTBOX_HARD_LIMIT" in reason
            # It is told once, so room has to be there after it.
            deadline = time.monotonic() + 30
            while not (result := drain()).published:
                assert time.monotonic() < deadline, result
            outbox._backlogs.clear()

        monkeypatch.setattr(backfill, "_PAUSE", 0)
        done(start(books()), held_up=make_room)
        assert OutboxMessage.objects.count() == 6

    def test_a_rate_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Chunks are as small as the rate and as far apart as it asks."""
        waits: list[float] = []

        class Stop(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                waits.append(timeout or 0)
                return False

        old_books(6)
        passed: list[int] = []
        done(start(books()), rate=2, stop=Stop(), told=passed.append)
        assert passed == [2, 2, 2, 0]
        assert all(0.8 < wait <= 1 for wait in waits[:3])

    def test_memory_and_statements_do_not_grow_with_the_table(
        self, django_assert_max_num_queries: Any
    ) -> None:
        """A chunk asks for its own rows, by key and not by number."""
        old_books(60)
        job = start(books())
        step(job, limit=20)
        with django_assert_max_num_queries(10) as asked:
            step(job, limit=20)
        assert not any("OFFSET" in query["sql"] for query in asked.captured_queries)


@pytest.mark.postgres
class TestConcurrentWrites:
    def test_an_event_says_nothing_older_than_the_event_before_it(
        self,
        other: Other,
        until_somebody_waits: Callable[[], None],
    ) -> None:
        """A row that is being changed is waited for; its new state is what the back-fill says."""
        (book,) = old_books(1)
        job = start(books())
        with transaction.atomic():
            Book.objects.filter(pk=book.pk).update(title="changed")
            running = other(lambda: run(job))
            until_somebody_waits()
        running.result(30)
        assert [(e["type"], e["new"]["title"]) for e in recorded()] == [
            ("UPDATE", "changed"),
            ("REINDEX", "changed"),
        ]

    def test_a_live_write_comes_after_the_event_of_the_row_it_changes(
        self,
        other: Other,
        until_somebody_waits: Callable[[], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It waits for the chunk, so that no older state is said after it."""
        (book,) = old_books(1)
        job = start(books())
        writing: list[Future[Any]] = []
        record = capture.record_changes

        def write_meanwhile(*args: Any, **options: Any) -> None:
            writing.append(other(lambda: Book.objects.filter(pk=book.pk).update(title="changed")))
            until_somebody_waits()
            record(*args, **options)

        monkeypatch.setattr(backfill, "record_changes", write_meanwhile)
        step(job)
        writing[0].result(30)
        assert [(e["type"], e["new"]["title"]) for e in recorded()] == [
            ("REINDEX", "book 0"),
            ("UPDATE", "changed"),
        ]

    def test_a_row_that_somebody_holds_does_not_stop_writers_of_others(
        self,
        other: Other,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The chunk gives way and comes again smaller, up to the one row that is held."""
        made = old_books(30)
        job = start(books())
        monkeypatch.setattr(backfill, "_PAUSE", 0.01)
        held = threading.Event()
        with transaction.atomic():
            Book.objects.select_for_update().get(pk=made[20].pk)
            running = other(lambda: run(job, held_up=lambda _reason: held.set()))
            assert held.wait(20)
            deadline = time.monotonic() + 20
            while find(job.pk).passed < 20 and time.monotonic() < deadline:
                connection.cursor().execute("SELECT pg_sleep(0.01)")
            assert find(job.pk).passed == 20
        running.result(30)
        assert [int(e["key"]) for e in recorded()] == [book.pk for book in made]

    def test_a_row_that_is_deleted_meanwhile_has_no_event(self) -> None:
        """Nor does it count as one, but it is passed."""
        made = old_books(3)
        job = start(books())
        declaration = books()
        Book.objects.filter(pk=made[1].pk)._raw_delete("default")
        rows = backfill.matching_rows(declaration, {}, using="default")
        with transaction.atomic():
            pks = [book.pk for book in made]
            assert backfill._record(declaration, rows, pks, job, "default") == 2

    def test_keys_that_rows_share_are_locked_in_order(self) -> None:
        """Chapters of one book and the book's own publish() are one chain."""
        (book,) = old_books(1)
        with suppress_events():
            for number in range(3):
                Chapter.objects.create(book=book, title=str(number))
        done(start(declared("testapp.Chapter")))
        assert {body["key"] for body in recorded()} == {str(book.pk)}


def test_a_large_table_is_estimated_and_counted_when_asked() -> None:
    """The planner knows about how many; SQLite counts."""
    with suppress_events():
        Book.objects.bulk_create([Book(title=str(n)) for n in range(200)])
    rows = backfill.matching_rows(books(), {}, using="default")
    assert backfill.count_rows(rows, exact=True) == 200
    assert backfill.count_rows(rows, exact=False) == 200


@pytest.mark.postgres
def test_an_estimate_needs_no_count(django_assert_num_queries: Any) -> None:
    """A dry run over a large table asks the planner and nobody else."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO testapp_book (title, copies, extra) "
            "SELECT 'x', 1, '{}' FROM generate_series(1, 20000)"
        )
        cursor.execute("ANALYZE testapp_book")
    with django_assert_num_queries(1) as asked:
        assert backfill.count(books()) == pytest.approx(20_000, rel=0.1)
    assert "EXPLAIN" in asked.captured_queries[0]["sql"]


def test_republishing_names_rows_one_by_one() -> None:
    """Rows that are gone are left out."""
    made = old_books(3)
    count = backfill.republish(books(), [made[2].pk, made[0].pk, 0], kind="UPDATE")
    assert count == 2
    assert [(e["type"], int(e["key"])) for e in recorded()] == [
        ("UPDATE", made[0].pk),
        ("UPDATE", made[2].pk),
    ]


def test_an_unknown_job_is_named() -> None:
    """By its id."""
    with pytest.raises(InvalidStateError, match="There is no back-fill"):
        find(uuid.uuid4())
