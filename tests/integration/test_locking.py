"""Two connections at once: what blocks whom, and in which order events stand."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from folio_events import publish
from folio_events.models import OutboxMessage
from tests.testapp.models import Book, Chapter, Effect

pytest_plugins = ("tests.recording",)
pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

#: Longest wait of a test for another thread, in seconds.
_PATIENCE = 30


@pytest.fixture
def other() -> Iterator[Callable[[Callable[[], Any]], Future[Any]]]:
    """Runs functions one after the other in a second thread, on a connection of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda function: pool.submit(function)
        pool.submit(connections.close_all).result(_PATIENCE)


def impatiently(function: Callable[[], Any]) -> Callable[[], Any]:
    """Have a function give up where it would have to wait for a lock."""

    def run() -> Any:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '300ms'")
            return function()

    return run


def wait_until_somebody_waits_for_a_lock() -> None:
    """Return as soon as some other connection waits for a lock."""
    for _ in range(_PATIENCE * 100):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*), pg_sleep(0.01) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"
            )
            if cursor.fetchone()[0]:
                return
    raise AssertionError


def stored() -> list[dict[str, Any]]:
    return [
        json.loads(bytes(payload or b""))
        for payload in OutboxMessage.objects.order_by("id").values_list("payload", flat=True)
    ]


class TestRowLock:
    @contextmanager
    def saving(self, book: Book) -> Iterator[None]:
        """A transaction that has saved a book and is still open."""
        with transaction.atomic():
            book.copies = 2
            book.save()
            yield

    def test_the_row_is_read_under_the_lock_that_the_write_takes(self):
        """FOR NO KEY UPDATE for an update, FOR UPDATE for a deletion: none is raised later."""
        book = Book.objects.create(title="Emma")
        for write, lock in ((book.save, "FOR NO KEY UPDATE"), (book.delete, "FOR UPDATE")):
            with CaptureQueriesContext(connection) as captured:
                write()
            reads = [q["sql"] for q in captured.captured_queries if "testapp_book" in q["sql"]]
            selects = [sql for sql in reads if sql.startswith("SELECT")]
            assert selects
            assert all(lock in sql for sql in selects)

    def test_a_row_that_refers_to_the_saved_one_can_be_inserted(self, other):
        """While a save is open, another connection adds a row that refers to the saved one."""
        book = Book.objects.create(title="Emma")
        with self.saving(book):
            adding = other(impatiently(lambda: Chapter.objects.create(book_id=book.pk)))
            assert adding.result(_PATIENCE).book_id == book.pk

    def test_another_save_of_the_row_waits_for_the_first(self, other):
        """While a save is open, another save of the row waits before it reads old."""
        book = Book.objects.create(title="Emma")
        stale = Book.objects.get()
        with self.saving(book):
            with pytest.raises(OperationalError, match="lock timeout"):
                other(impatiently(stale.save)).result(_PATIENCE)
            waiting = other(stale.save)
            wait_until_somebody_waits_for_a_lock()
        waiting.result(_PATIENCE)
        assert stored()[-1]["old"]["copies"] == 2

    def test_a_save_that_waited_for_a_rollback_sees_what_stayed(self, other):
        """A save that waited for a transaction that was rolled back does not see its values."""
        book = Book.objects.create(title="Emma")
        stale = Book.objects.get()

        def save_and_give_up() -> Future[Any]:
            with self.saving(book):
                waiting = other(stale.save)
                wait_until_somebody_waits_for_a_lock()
                futures.append(waiting)
                raise InterruptedError

        futures: list[Future[Any]] = []
        with pytest.raises(InterruptedError):
            save_and_give_up()
        futures[0].result(_PATIENCE)
        assert [body["type"] for body in stored()] == ["CREATE", "UPDATE"]
        assert stored()[-1]["old"]["copies"] == 1

    def test_two_deletions_at_once_are_one_event(self, other):
        """A deletion that waited until the row was gone records nothing."""
        book = Book.objects.create(title="Emma")
        again = Book.objects.get()
        with transaction.atomic():
            book.delete()
            waiting = other(again.delete)
            wait_until_somebody_waits_for_a_lock()
        waiting.result(_PATIENCE)
        assert [body["type"] for body in stored()] == ["CREATE", "DELETE"]

    def test_a_deletion_that_waited_for_a_new_row_shows_that_row(self, other):
        """A deletion that waited until its row was replaced records what it really deleted."""
        book = Book.objects.create(title="Emma")
        pk, again = book.pk, Book.objects.get()
        with transaction.atomic():
            book.delete()
            Book.objects.create(pk=pk, title="Persuasion")
            waiting = other(again.delete)
            wait_until_somebody_waits_for_a_lock()
        waiting.result(_PATIENCE)
        assert not Book.objects.exists()
        assert [(body["type"], body.get("old", {}).get("title")) for body in stored()] == [
            ("CREATE", None),
            ("DELETE", "Emma"),
            ("CREATE", None),
            ("DELETE", "Persuasion"),
        ]

    def test_saves_of_different_rows_do_not_wait_for_each_other(self, other):
        """While one row's save is open, another row is saved and deleted."""
        first, second = Book.objects.create(title="Emma"), Book.objects.create(title="Persuasion")
        with self.saving(first):
            other(impatiently(second.save)).result(_PATIENCE)
            other(impatiently(second.delete)).result(_PATIENCE)


class TestStaleCopies:
    _WRITERS, _ROUNDS = 2, 150

    def test_each_old_is_the_new_before_it(self, at_once):
        """Connections that save stale copies of one row again and again make one true history."""
        pk = Book.objects.create(title="Emma").pk
        start = threading.Barrier(self._WRITERS)

        def write(name: str) -> None:
            chance = random.Random(name)
            stale = Book.objects.get(pk=pk)  # read once, never again
            start.wait(_PATIENCE)
            for number in range(self._ROUNDS):
                stale.title = f"{name} {number}"
                stale.copies = F("copies") + 1 if chance.random() < 0.3 else number
                with transaction.atomic():
                    if chance.random() < 0.3:
                        stale.save(update_fields=["title"])
                    else:
                        stale.save()
                if chance.random() < 0.1:
                    self._save_and_give_up(stale)

        at_once([lambda name=name: write(name) for name in "ab"])
        bodies = stored()
        assert len(bodies) == 1 + self._WRITERS * self._ROUNDS
        for before, after in itertools.pairwise(bodies):
            assert after["old"] == before["new"]
        writers = [body["new"]["title"][0] for body in bodies[1:]]
        changes = sum(a != b for a, b in itertools.pairwise(writers))
        assert changes > 10, "the writers did not meet"
        last = Book.objects.get()
        assert (bodies[-1]["new"]["title"], bodies[-1]["new"]["copies"]) == (
            last.title,
            last.copies,
        )

    @staticmethod
    def _save_and_give_up(stale: Book) -> None:
        try:
            with transaction.atomic():
                stale.save()
                raise InterruptedError
        except InterruptedError:
            pass


def witness_commit(pk: int) -> int:
    """Draw a number in the order of commits: called last, it holds its row until the commit."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE testapp_book SET copies = copies + 1 WHERE id = %s RETURNING copies", [pk]
        )
        return int(cursor.fetchone()[0])


def inversions(commits: dict[str, list[int]]) -> int:
    """How often, of two events of a key, the one with the lower id committed later."""
    return sum(a > b for order in commits.values() for a, b in itertools.pairwise(order))


class TestKeyLock:
    _THREADS, _ROUNDS, _KEYS = 8, 40, 2

    def test_events_of_a_shared_key_stand_in_the_order_of_their_commits(self, at_once):
        """Eight threads write rows of shared keys and publish() under them: ids follow commits."""
        with transaction.atomic():
            books = [Book.objects.create(title=str(n)) for n in range(self._KEYS)]
            witnesses = {book.pk: Book.objects.create(title="", copies=0).pk for book in books}
        OutboxMessage.objects.all().delete()
        start = threading.Barrier(self._THREADS)

        def write(number: int) -> dict[str, tuple[int, int]]:
            """Title or payload of each event to the key and the place among its commits."""
            chance, seen = random.Random(number), {}
            start.wait(_PATIENCE)
            for turn in range(self._ROUNDS):
                book, name = chance.choice(books), f"{number}-{turn}"
                with transaction.atomic():
                    if chance.random() < 0.5:
                        Chapter.objects.create(book=book, title=name)
                    else:
                        publish("library.chapter", key=book.pk, payload={"title": name})
                    seen[name] = (book.pk, witness_commit(witnesses[book.pk]))
            return seen

        results = at_once([lambda n=n: write(n) for n in range(self._THREADS)])
        placed = {name: place for seen in results for name, place in seen.items()}
        by_key: dict[str, list[int]] = {str(book.pk): [] for book in books}
        for row in OutboxMessage.objects.order_by("id"):
            body = json.loads(bytes(row.payload or b""))
            name = (body.get("data") or body["new"])["title"]
            key, place = placed.pop(name)
            assert row.key == str(key)
            by_key[row.key].append(place)
        assert not placed
        assert inversions(by_key) == 0
        assert sum(map(len, by_key.values())) == self._THREADS * self._ROUNDS

    def test_the_lock_is_held_until_the_commit(self, other):
        """A second event of the key, whatever row or call it comes from, waits for the first."""
        book = Book.objects.create(title="Emma")
        writes = [
            lambda: Chapter.objects.create(book_id=book.pk, title="Two"),
            lambda: publish("library.chapter", key=book.pk, payload={}),
        ]
        for first, second in itertools.product(writes, writes):
            with transaction.atomic():
                first()
                with pytest.raises(OperationalError, match="lock timeout"):
                    other(impatiently(second)).result(_PATIENCE)

    def test_publish_under_the_key_of_a_row_waits_for_its_saves(self, other):
        """publish() to a model's topic waits for an open save of the row with that key, and back."""
        book = Book.objects.create(title="Emma")
        save = Book.objects.get().save

        def tell() -> None:
            publish("library.book", key=book.pk, payload={})

        for first, second in ((save, tell), (tell, save)):
            with transaction.atomic():
                first()
                with pytest.raises(OperationalError, match="lock timeout"):
                    other(impatiently(second)).result(_PATIENCE)

    @pytest.mark.parametrize("key", ["no number", "4711", None])
    def test_publish_to_the_topic_of_a_model_needs_no_row(self, key):
        """publish() to a model's topic takes keys of which there is no row."""
        publish("library.book", key=key, payload={})
        assert OutboxMessage.objects.get().key == key

    def test_other_keys_and_topics_do_not_wait(self, other):
        """While an event of a key is open, events of other keys and topics are written."""
        first, second = Book.objects.create(title="Emma"), Book.objects.create(title="Persuasion")
        with transaction.atomic():
            Chapter.objects.create(book=first, title="One")
            other(impatiently(lambda: Chapter.objects.create(book=second))).result(_PATIENCE)
            other(impatiently(lambda: publish("library.note", key=first.pk, payload={}))).result(
                _PATIENCE
            )

    @pytest.mark.parametrize("kind", ["publish", "model"])
    def test_without_order_nobody_waits_and_ids_may_invert(self, other, declare, kind):
        """With ordered=False a key takes no lock: a later id may commit first."""
        book = Book.objects.create(title="Emma")
        declare(Chapter, key="book", ordered=False)
        OutboxMessage.objects.all().delete()

        def write(name: str) -> None:
            if kind == "publish":
                publish("library.note", key="1", payload={"title": name}, ordered=False)
            else:
                Chapter.objects.create(book_id=book.pk, title=name)

        with transaction.atomic():
            write("first id, last commit")
            other(impatiently(lambda: write("last id, first commit"))).result(_PATIENCE)
            assert "first commit" in str(other(stored).result(_PATIENCE))
            assert "last commit" not in str(other(stored).result(_PATIENCE))
        titles = [(body.get("data") or body["new"])["title"] for body in stored()]
        assert titles == ["first id, last commit", "last id, first commit"]

    def test_models_that_share_a_topic_and_their_keys_are_ordered(self, other, declare):
        """Where two models send to one topic, their primary keys are locked as well."""
        declare(Book, topic="library.thing", fields=["id", "title"])
        declare(Effect, topic="library.thing", fields=["id", "note"])
        with transaction.atomic():
            book = Book.objects.create(title="Emma")

            def add_effect() -> None:
                Effect.objects.create(pk=book.pk, receiver="tests", event_id=f"{0:032}")

            with pytest.raises(OperationalError, match="lock timeout"):
                other(impatiently(add_effect)).result(_PATIENCE)


def test_a_row_that_appears_meanwhile_is_not_overwritten_unseen(at_once):
    """A save that found no row does not overwrite one that came since: its old would be false."""

    def add_meanwhile(execute, sql, params, many, context):
        result = execute(sql, params, many, context)
        if "FOR NO KEY UPDATE" in sql:
            at_once([lambda: Book.objects.create(pk=4711, title="Emma")])
        return result

    with connection.execute_wrapper(add_meanwhile), pytest.raises(IntegrityError):
        Book(pk=4711, title="Persuasion").save()
    assert [(body["type"], body["new"]["title"]) for body in stored()] == [("CREATE", "Emma")]


def test_the_history_of_a_row_stands_in_the_order_of_commits(at_once):
    """Threads that create, save and delete rows under the same keys leave histories in order.

    The deletions lock first: one that does not may take along, without an event, a row that
    a third connection creates anew in the very moment.
    """
    keys, threads, rounds = [1001, 1002, 1003], 4, 40
    start = threading.Barrier(threads)

    def write(number: int) -> None:
        chance = random.Random(number)
        start.wait(_PATIENCE)
        for turn in range(rounds):
            pk, deed = chance.choice(keys), chance.random()
            # Two that insert one key at once: the second is refused, as without events.
            with contextlib.suppress(IntegrityError), transaction.atomic():
                if deed < 0.3:
                    book = Book.objects.select_for_update().filter(pk=pk).first()
                    if book is not None:
                        book.delete()
                elif deed < 0.6:
                    Book.objects.update_or_create(pk=pk, defaults={"title": f"{number}-{turn}"})
                else:
                    Book(pk=pk, title=f"{number}-{turn}").save()

    at_once([lambda n=n: write(n) for n in range(threads)])
    held: dict[str, Any] = {}
    for row in OutboxMessage.objects.order_by("id"):
        body = json.loads(bytes(row.payload or b""))
        assert body.get("old") == held.get(str(row.key))
        held[str(row.key)] = body.get("new")
    titles = {str(book.pk): book.title for book in Book.objects.all()}
    assert {key: new["title"] for key, new in held.items() if new} == titles
