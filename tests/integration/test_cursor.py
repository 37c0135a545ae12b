"""The cursor returns every committed row once, each key in commit order, and waits for nobody."""

from __future__ import annotations

import copy
import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest
from django.db import transaction

from folio_events import cursor as cursor_module
from folio_events import publish, relay, suppress_events
from folio_events.brokers.memory import MemoryBroker
from folio_events.cursor import OutboxCursor, OutboxRow, Range, Snapshot
from folio_events.models import OutboxMessage, RelayCursor, RelayGap
from tests.faults.oracle import Breach, Change, breaches_of_effects
from tests.outbox_writer import OutboxWriter, database_address, outbox_writers
from tests.testapp.models import Book

postgres = pytest.mark.postgres
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def cursor() -> OutboxCursor:
    """A cursor that stands behind all rows, without gaps."""
    begun = OutboxCursor("default")
    append_committed(1)
    while take(begun) or stored_gaps():
        pass
    return begun


@pytest.fixture
def writers() -> Iterator[list[OutboxWriter]]:
    with outbox_writers(3) as opened:
        yield opened


def take(cursor: OutboxCursor, limit: int = 100) -> list[int]:
    """One read as the relay does it: ids of the rows, position and gaps stored."""
    with transaction.atomic():
        cursor.load()
        ids = [row.id for row in cursor.read(limit)]
        cursor.save()
    return ids


def stored_gaps() -> list[tuple[int, int]]:
    return list(RelayGap.objects.order_by("first_id").values_list("first_id", "last_id"))


@postgres
def test_a_row_that_commits_late_below_read_ids_is_returned(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """However many reads have passed it, the row comes with the first read after its commit."""
    late, quick, _ = writers
    below, above = late.append("late"), quick.append("quick")
    quick.commit()
    assert take(cursor) == [above]
    assert [take(cursor) for _ in range(3)] == [[], [], []]
    late.commit()
    assert take(cursor) == [below]
    assert take(cursor) == []


@postgres
def test_late_rows_come_in_the_order_of_ids_together_with_newer_ones(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """Gaps and tail are one batch in ascending order."""
    one, two, three = writers
    a, b, c = one.append(), two.append("other"), three.append("third")
    three.commit()
    assert take(cursor) == [c]
    two.commit()
    one.commit()
    d = one.append()
    one.commit()
    assert take(cursor) == [a, b, d]


@postgres
def test_a_rolled_back_id_is_forgotten_and_stalls_nothing(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """Rows above it are returned at once, and after the next read nobody asks for it."""
    one, two, _ = writers
    gone = one.append()
    above = two.append()
    two.commit()
    assert take(cursor) == [above]
    assert (gone, gone) in stored_gaps()
    one.rollback()
    next_one = two.append()
    two.commit()
    assert take(cursor) == [next_one]
    assert stored_gaps() == []
    assert not cursor.gaps.fresh
    assert not cursor.gaps.waiting


@postgres
def test_a_rollback_that_ended_before_the_first_read_is_forgotten_by_the_second(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """The hole is asked for once more, since a commit shows before its locks go."""
    one, two, _ = writers
    hole = one.append()
    one.rollback()
    above = two.append()
    two.commit()
    assert take(cursor) == [above]
    assert (hole, hole) in stored_gaps()
    assert take(cursor) == []
    assert stored_gaps() == []


@postgres
def test_a_rolled_back_bulk_is_one_range(cursor: OutboxCursor, writers: list[OutboxWriter]) -> None:
    """A hundred thousand ids that never come are one stored row, and are forgotten."""
    one, two, _ = writers
    holder = two.append()
    one.execute(
        "SELECT count(nextval('folio_events_outboxmessage_id_seq')) FROM generate_series(1, 100000)"
    )
    one.rollback()
    above = one.append()
    one.commit()
    assert take(cursor) == [above]
    assert stored_gaps() == [(holder, above - 1)]
    two.rollback()
    assert take(cursor) == []
    assert stored_gaps() == []


@postgres
def test_a_transaction_held_open_among_rollbacks_delays_nothing_else(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """What commits meanwhile comes with the next read, and reads ask for nothing in vain."""
    held, rolled_back, quick = writers
    first = held.append("held")
    for _ in range(20):
        rolled_back.append("never")
        rolled_back.rollback()
        written = quick.append("quick")
        quick.commit()
        assert take(cursor) == [written]
    take(cursor)
    assert not cursor.gaps.fresh
    assert cursor.gaps.waiting
    held.commit()
    assert take(cursor) == [first]
    assert stored_gaps() == []


@postgres
@pytest.mark.parametrize("verb", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_prepared_transaction_holds_its_gap_until_it_ends(
    cursor: OutboxCursor, writers: list[OutboxWriter], verb: str, restarted: bool
) -> None:
    """Its session may be long gone; a cursor that starts meanwhile holds the gap as well."""
    one, two, _ = writers
    prepared = one.append()
    above = two.append("other")
    two.commit()
    assert take(cursor) == [above]
    one.execute("PREPARE TRANSACTION 'cursor test'")
    one.commit()
    one.append("another transaction of that session")
    one.rollback()
    try:
        if restarted:
            cursor = OutboxCursor("default")
        assert [take(cursor) for _ in range(4)] == [[], [], [], []]
        assert any(first <= prepared <= last for first, last in stored_gaps())
    finally:
        two.session.autocommit = True
        two.execute(f"{verb} PREPARED 'cursor test'")
    assert take(cursor) == ([prepared] if verb == "COMMIT" else [])
    assert take(cursor) == []
    assert stored_gaps() == []


@postgres
def test_a_transaction_prepared_before_the_first_read_is_waited_for(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """The gap's holder never had a session that the cursor could see."""
    one, two, _ = writers
    prepared = one.append()
    one.execute("PREPARE TRANSACTION 'cursor test'")
    one.commit()
    above = two.append("other")
    two.commit()
    assert take(cursor) == [above]
    assert [take(cursor) for _ in range(3)] == [[], [], []]
    two.session.autocommit = True
    two.execute("COMMIT PREPARED 'cursor test'")
    assert take(cursor) == [prepared]


@postgres
def test_ids_of_savepoints_are_returned_or_forgotten_with_their_transaction(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """A released savepoint's row commits with the transaction, a rolled-back one's never."""
    one, two, _ = writers
    one.execute("SAVEPOINT outer_one")
    a = one.append()
    one.execute("SAVEPOINT inner_one")
    b = one.append()
    one.execute("ROLLBACK TO inner_one")
    one.execute("SAVEPOINT second")
    c = one.append()
    one.execute("RELEASE second")
    one.execute("RELEASE outer_one")
    above = two.append("other")
    two.commit()
    assert take(cursor) == [above]
    assert take(cursor) == []
    one.commit()
    assert take(cursor) == [a, c]
    assert b not in take(cursor)
    assert stored_gaps() == []


@postgres
def test_an_id_drawn_by_a_transaction_without_transaction_id_is_waited_for(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """Between drawing the id and writing the row a transaction is known by its virtual id only."""
    one, two, _ = writers
    # The fixture has drawn an id: the sequence has more at hand without writing.
    one.execute("LOCK TABLE folio_events_outboxmessage IN ROW EXCLUSIVE MODE")
    drawn = one.one("SELECT nextval('folio_events_outboxmessage_id_seq')")
    assert one.one("SELECT pg_current_xact_id_if_assigned()") is None
    above = two.append("other")
    two.commit()
    assert take(cursor) == [above]
    assert [take(cursor) for _ in range(2)] == [[], []]
    assert one.append("slow", outbox_id=drawn) == drawn
    assert [take(cursor) for _ in range(2)] == [[], []]
    one.commit()
    assert take(cursor) == [drawn]


@postgres
def test_a_transaction_that_was_prepared_before_its_transaction_id_was_seen_is_waited_for(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """At first known by its virtual id only, then by the id under which it was prepared."""
    one, two, _ = writers
    one.execute("LOCK TABLE folio_events_outboxmessage IN ROW EXCLUSIVE MODE")
    drawn = one.one("SELECT nextval('folio_events_outboxmessage_id_seq')")
    above = two.append("other")
    two.commit()
    assert take(cursor) == [above]
    one.append("slow", outbox_id=drawn)
    one.execute("PREPARE TRANSACTION 'cursor test'")
    one.commit()
    one.close()
    assert [take(cursor) for _ in range(3)] == [[], [], []]
    two.session.autocommit = True
    two.execute("COMMIT PREPARED 'cursor test'")
    assert take(cursor) == [drawn]


@postgres
def test_a_transaction_that_ends_while_reading_comes_before_what_follows_it(
    cursor: OutboxCursor, writers: list[OutboxWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gap that nobody asked for, since its holder was alive, is asked for after all."""
    one, two, _ = writers
    first, above = one.append("same"), two.append("other")
    two.commit()
    assert take(cursor) == [above]
    assert take(cursor) == []
    assert cursor.gaps.waiting
    original = OutboxCursor._snapshot
    written: list[int] = []

    def then_commit(self: OutboxCursor) -> Snapshot:
        snapshot = original(self)
        if not written:
            one.commit()
            written.append(two.append("same"))
            two.commit()
        return snapshot

    monkeypatch.setattr(OutboxCursor, "_snapshot", then_commit)
    assert take(cursor) == [first, *written]


@postgres
def test_a_new_cursor_asks_for_the_stored_gaps(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """A restart loses no row that commits after it, nor one that committed while it was down."""
    one, two, three = writers
    a, b, c = one.append("a"), two.append("b"), three.append("c")
    three.commit()
    assert take(cursor) == [c]
    one.commit()
    restarted = OutboxCursor("default")
    assert take(restarted) == [a]
    two.commit()
    assert take(restarted) == [b]
    assert take(restarted) == []
    assert stored_gaps() == []


@postgres
def test_cursors_that_take_turns_return_each_row_once(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """Whoever reads next knows what the other has read, gaps included."""
    one, two, _ = writers
    other = OutboxCursor("default")
    a, b = one.append("a"), two.append("b")
    two.commit()
    assert take(cursor) == [b]
    assert take(other) == []
    c = two.append("c")
    two.commit()
    assert take(other) == [c]
    one.commit()
    assert take(cursor) == [a]
    assert take(other) == []
    d = one.append("d")
    one.commit()
    assert take(other) == [d]
    assert take(cursor) == []


@postgres
def test_a_read_that_was_rolled_back_is_read_again(
    cursor: OutboxCursor, writers: list[OutboxWriter]
) -> None:
    """What the cursor remembers never runs ahead of what is stored."""
    one, two, _ = writers
    a, b = one.append("a"), two.append("b")
    two.commit()

    def fail() -> None:
        with transaction.atomic():
            cursor.load()
            assert [row.id for row in cursor.read(100)] == [b]
            cursor.save()
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    assert take(cursor) == [b]
    one.commit()
    assert take(cursor) == [a]


def test_a_new_cursor_begins_behind_purged_rows() -> None:
    """A table whose first rows are gone is read from what is left."""
    cursor = OutboxCursor("default")
    ids = append_committed(5)
    OutboxMessage.objects.filter(id__in=ids[:3]).delete()
    assert take(cursor) == ids[3:]
    assert take(cursor) == []
    assert stored_gaps() == []


def append_committed(count: int) -> list[int]:
    events = [publish("library.note", key=str(n), payload={}) for n in range(count)]
    return list(
        OutboxMessage.objects.filter(event_id__in=[event.id for event in events])
        .order_by("id")
        .values_list("id", flat=True)
    )


def test_rows_are_read_in_portions_of_the_limit(cursor: OutboxCursor) -> None:
    """Nothing is left out at the border of two reads."""
    ids = append_committed(7)
    assert [take(cursor, 3) for _ in range(4)] == [ids[:3], ids[3:6], ids[6:], []]


@postgres
def test_a_limit_may_cut_through_gaps(cursor: OutboxCursor, writers: list[OutboxWriter]) -> None:
    """What did not fit comes with the next read, before rows that are newer."""
    one, two, _ = writers
    late = [one.append("late") for _ in range(5)]
    quick = [two.append("quick") for _ in range(2)]
    late.append(one.append("late"))
    quick.append(two.append("quick"))
    two.commit()
    assert take(cursor) == quick
    one.commit()
    newer = one.append("late")
    one.commit()
    assert [take(cursor, 2) for _ in range(5)] == [
        late[:2],
        late[2:4],
        late[4:],
        [newer],
        [],
    ]
    assert stored_gaps() == []


@postgres
def test_more_gaps_than_one_statement_asks_for_are_read_from_the_lowest(
    cursor: OutboxCursor, writers: list[OutboxWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No newer row is returned before the gaps below it were looked at."""
    monkeypatch.setattr(cursor_module, "MAX_RANGES", 3)
    one, two, _ = writers
    late, quick = [], []
    for _ in range(10):
        late.append(one.append("same"))
        quick.append(two.append("other"))
    two.commit()
    read = take(cursor)
    one.commit()
    newer = one.append("same")
    one.commit()
    for _ in range(10):
        read += take(cursor)
    assert sorted(read) == sorted([*late, *quick, newer])
    assert [i for i in read if i in {*late, newer}] == [*late, newer]
    assert stored_gaps() == []


def test_rows_that_were_held_back_are_returned_again_with_newer_ones(
    cursor: OutboxCursor,
) -> None:
    """They come first, and once; also from another cursor."""
    ids = append_committed(6)
    with transaction.atomic():
        cursor.load()
        assert [row.id for row in cursor.read(5)] == ids[:5]
        cursor.hold_back([ids[0], ids[1], ids[3]])
        cursor.save()
    assert stored_gaps() == [(ids[0], ids[1]), (ids[3], ids[3])]
    assert take(cursor, 1) == [ids[0]]
    other = OutboxCursor("default")
    assert take(other) == [ids[1], ids[3], ids[5]]
    assert take(other) == []
    assert stored_gaps() == []


def test_rows_held_back_twice_are_stored_once(cursor: OutboxCursor) -> None:
    """A broker that stays away does not pile anything up."""
    ids = append_committed(3)
    for _ in range(3):
        with transaction.atomic():
            cursor.load()
            assert [row.id for row in cursor.read(10)] == ids
            cursor.hold_back(ids)
            cursor.save()
        assert stored_gaps() == [(ids[0], ids[-1])]


def test_thousands_of_held_back_rows_between_others_can_be_read(cursor: OutboxCursor) -> None:
    """Every second row of a large batch may have been left by the broker."""
    append_committed(1)
    row = OutboxMessage.objects.latest("id")
    first = row.pk
    OutboxMessage.objects.bulk_create(_copies(row, 2999), batch_size=1000)
    ids = list(
        OutboxMessage.objects.filter(id__gte=first).order_by("id").values_list("id", flat=True)
    )
    with transaction.atomic():
        cursor.load()
        assert [row.id for row in cursor.read(3000)] == ids
        cursor.hold_back(ids[::2])
        cursor.save()
    assert take(cursor, 3000) == ids[::2]


def _copies(row: OutboxMessage, count: int) -> Iterator[OutboxMessage]:
    for _ in range(count):
        copied = copy.copy(row)
        copied.pk = None
        yield copied


def test_an_idle_read_writes_nothing(cursor: OutboxCursor) -> None:
    """The cursor's row keeps its time."""
    append_committed(1)
    take(cursor)
    before = RelayCursor.objects.get().updated_at
    assert take(cursor) == []
    assert RelayCursor.objects.get().updated_at == before


def test_rows_are_as_they_were_written(cursor: OutboxCursor) -> None:
    """Bytes, identity and time survive the raw read, and a missing key stays missing."""
    event = publish("library.note", key=None, payload={"name": "Žižka"})
    with transaction.atomic():
        cursor.load()
        (row,) = cursor.read(1)
    stored = OutboxMessage.objects.get(pk=row.id)
    assert (row.event_id, row.key, row.chain) == (str(event.id), None, None)
    assert bytes(row.payload or b"") == bytes(stored.payload or b"")
    assert json.loads(row.payload or b"")["data"] == {"name": "Žižka"}
    assert row.occurred_at == event.occurred_at


def test_a_wrapped_transaction_id_is_widened_near_its_snapshot() -> None:
    """Locks show 32 bits of an id, snapshots show 64."""
    epoch = 2**32
    snapshot = Snapshot.parse(f"{5 * epoch + 10}:{5 * epoch + 20}:{5 * epoch + 12}")
    assert snapshot.widen(12) == 5 * epoch + 12
    assert snapshot.widen(30) == 5 * epoch + 30
    assert snapshot.widen(2**32 - 1) == 5 * epoch - 1
    assert not snapshot.ended(5 * epoch + 12)
    assert snapshot.ended(5 * epoch + 11)
    assert not snapshot.ended(5 * epoch + 20)


# Stress: many writers of the same rows, rollbacks, long transactions.

SEED = 20240607
BOOKS = 12


class _TwoStatements(OutboxCursor):
    """The planted defect: gaps and tail are read by two statements."""

    def __init__(self, between: Callable[[], None]) -> None:
        super().__init__("default")
        self._between = between

    def _read_once(
        self, asked: Sequence[Range], limit: int, *, tail: bool
    ) -> tuple[Snapshot, list[OutboxRow]]:
        snapshot, late = super()._read_once(asked, limit, tail=False)
        self._between()
        _, newer = super()._read_once([], limit, tail=tail)
        return snapshot, sorted([*late, *newer])[:limit]


class _Stress:
    """Writers in threads; each change adds one to a book's ``copies`` and names that number."""

    def __init__(self, books: list[int], transactions: int) -> None:
        self._books = books
        self._transactions = transactions
        self._committed = 0
        self._changed = threading.Condition()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._write, args=(number,), daemon=True) for number in range(8)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        rng = random.Random(SEED + number)
        pause = threading.Event()
        try:
            with psycopg.connect(**database_address()) as session:
                for _ in range(self._transactions):
                    # In ascending order, or the writers would deadlock.
                    books = sorted(rng.sample(self._books, rng.randint(1, 3)))
                    for book in books:
                        self._change(session, book)
                        if rng.random() < 0.1:
                            pause.wait(rng.random() * 0.02)
                    if number == 0 and rng.random() < 0.1:
                        pause.wait(0.5)  # a long transaction
                    if rng.random() < 0.15:
                        session.rollback()
                        continue
                    session.commit()
                    with self._changed:
                        self._committed += 1
                        self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            self._failures.append(error)

    @staticmethod
    def _change(session: psycopg.Connection, book: int) -> None:
        update = "UPDATE testapp_book SET copies = copies + 1 WHERE id = %s RETURNING copies"
        row = session.execute(update, [book]).fetchone()
        assert row is not None
        session.execute(
            "INSERT INTO folio_events_outboxmessage (event_id, topic, event_type, tenant, key,"
            " payload, repeating_headers, own_headers, occurred_at) VALUES (gen_random_uuid(),"
            " 'library.book', 'UPDATE', '', %s, %s, '[]', '', now())",
            [str(book), b'{"number": %d}' % row[0]],
        )

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def await_commits(self, count: int) -> None:
        """Wait until some more transactions have been committed, or none can come."""
        with self._changed:
            wanted = self._committed + count
            self._changed.wait_for(lambda: self._committed >= wanted or not self.running, timeout=1)

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(30)
        assert self._failures == []


def breaches_under_stress(
    make_cursor: Callable[[_Stress], OutboxCursor], transactions: int
) -> list[Breach]:
    """Drain while the writers write; what the oracle says, and how much there was."""
    books = [Book(title="shared", copies=0) for _ in range(BOOKS)]
    with suppress_events():
        Book.objects.bulk_create(books)
    broker = MemoryBroker({})
    stress = _Stress([book.pk for book in books], transactions)
    cursor = make_cursor(stress)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(relay, "_cursor", lambda _using, _thread: cursor)
        while stress.running:
            relay.drain(broker=broker, limit=200)
        stress.finish()
        for _ in range(3):
            while relay.drain(broker=broker, limit=200).published:
                pass
    committed = {str(pk): copies for pk, copies in Book.objects.values_list("pk", "copies")}
    assert sum(committed.values()) > transactions * 8
    log = [
        Change((record.key or b"").decode(), json.loads(record.value or b"")["number"])
        for record in broker.records("folio.library.book")
    ]
    return breaches_of_effects(committed, log)


@postgres
def test_under_stress_nothing_is_lost_doubled_or_inverted() -> None:
    """Eight writers of twelve rows, rollbacks and long transactions, one relay."""
    assert breaches_under_stress(lambda _stress: OutboxCursor("default"), 150) == []
    assert not RelayGap.objects.exists()


@postgres
def test_the_stress_shows_a_cursor_that_reads_gaps_and_tail_apart() -> None:
    """With the known mistake planted the same run has inversions, so it can fail."""
    found = breaches_under_stress(
        lambda stress: _TwoStatements(lambda: stress.await_commits(8)), 60
    )
    assert "inverted" in {breach.kind for breach in found}


@postgres
def test_a_cursor_that_reads_gaps_and_tail_apart_inverts_a_key(
    writers: list[OutboxWriter],
) -> None:
    """The mistake step by step: what it does between its statements, the true cursor cannot see."""
    one, two, _ = writers
    written: list[int] = []

    def between() -> None:
        if not written:
            one.commit()
            written.append(two.append("same"))
            two.commit()

    cursor = _TwoStatements(lambda: None)
    first = one.append("same")
    above = two.append("other")
    two.commit()
    assert take(cursor) == [above]
    cursor._between = between
    assert take(cursor) == written
    assert take(cursor) == [first]
