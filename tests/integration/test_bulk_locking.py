"""Bulk writes on two connections at once: who waits for whom, and what each then records."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models import F, QuerySet

from folio_events import suppress_events
from folio_events.models import OutboxMessage
from tests.testapp.models import Copy, Room

pytest_plugins = ("tests.recording", "tests.second_connection")
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True, reset_sequences=True),
]

#: Longest wait of a test for another thread, in seconds.
_PATIENCE = 30
Run = Callable[[Callable[[], Any]], Future[Any]]


@pytest.fixture
def copies(declare: Callable[..., None]) -> QuerySet[Copy]:
    """Four copies in a room."""
    declare(Copy)
    with suppress_events():
        room = Room.objects.create(pk=901, name="old")
        Room.objects.create(pk=902, name="new")
        for pk in (1, 2, 3, 4):
            assert Copy.objects.create(barcode=f"b{pk}", note="old", room=room).pk == pk
    return Copy.objects.order_by("pk")


def told(recorded: Callable[[], list[Any]], name: str = "loans") -> list[tuple[Any, ...]]:
    """Type and key of each event, and a field before and after."""
    return [(e.type, e.key, e.old and e.old[name], e.new and e.new[name]) for e in recorded()]


def upsert(*barcodes: str) -> list[Copy]:
    return Copy.objects.bulk_create(
        [Copy(barcode=barcode, note="upserted") for barcode in barcodes],
        update_conflicts=True,
        unique_fields=["barcode"],
        update_fields=["note"],
    )


class TestUpdate:
    @pytest.mark.parametrize(
        "backwards",
        [
            lambda rows: rows.order_by("-pk"),
            lambda rows: rows.reverse(),
            lambda rows: rows.filter(room__name="old").order_by("-pk"),
        ],
        ids=["-pk", "reverse()", "join"],
    )
    def test_rows_are_locked_in_one_order_whatever_the_querysets(
        self, copies, recorded, other: Run, until_somebody_waits, backwards
    ):
        """An update that waits for the first row holds no later one, so nobody waits in a circle."""
        add = backwards(copies).update
        with transaction.atomic():
            copies.filter(pk=1).update(loans=5)
            waiting = other(lambda: add(loans=F("loans") + 1))
            until_somebody_waits()
            copies.filter(pk=4).update(loans=7)
        assert waiting.result(_PATIENCE) == 4
        assert told(recorded) == [
            ("UPDATE", "1", 0, 5),
            ("UPDATE", "4", 0, 7),
            ("UPDATE", "1", 5, 6),
            ("UPDATE", "2", 0, 1),
            ("UPDATE", "3", 0, 1),
            ("UPDATE", "4", 7, 8),
        ]

    @pytest.mark.parametrize(
        ("meant", "change"),
        [
            (lambda rows: rows.filter(note="old"), {"note": "new"}),
            (lambda rows: rows.filter(room__name="old"), {"room": 902}),
            (lambda rows: rows.filter(pk__in=Copy.objects.filter(note="old")), {"note": "new"}),
            (lambda rows: rows.exclude(room__name="new"), {"room": 902}),
            (lambda rows: rows.annotate(n=F("loans") * 2).filter(n=0), {"loans": 3}),
        ],
        ids=["column", "join", "subquery", "exclusion", "annotation"],
    )
    def test_a_row_that_is_meant_no_more_is_left_alone(
        self, copies, recorded, other: Run, until_somebody_waits, meant, change
    ):
        """An update that waited for a row which then no longer matches neither writes nor records it."""
        with transaction.atomic():
            copies.filter(pk=2).update(**change)
            waiting = other(lambda: meant(copies).update(shelf_mark="x", place=F("pk")))
            until_somebody_waits()
        assert waiting.result(_PATIENCE) == 3
        assert [key for _kind, key, *_ in told(recorded)] == ["2", "1", "3", "4"]
        assert Copy.objects.get(pk=2).shelf_mark == ""

    def test_a_row_that_was_deleted_meanwhile_is_no_event(
        self, copies, recorded, other: Run, until_somebody_waits
    ):
        """An update that waited for a deletion updates and records the others."""
        with transaction.atomic():
            copies.filter(pk=2).delete()
            waiting = other(lambda: copies.update(loans=1))
            until_somebody_waits()
        assert waiting.result(_PATIENCE) == 3
        assert [row[:2] for row in told(recorded)] == [
            ("DELETE", "2"),
            ("UPDATE", "1"),
            ("UPDATE", "3"),
            ("UPDATE", "4"),
        ]

    def test_a_row_is_recorded_though_its_condition_ends_while_it_is_written(
        self, copies, recorded, other: Run
    ):
        """What was locked is written: another table that changes meanwhile parts no row from its event."""

        def rename(execute, sql, params, many, context):
            if sql.startswith("UPDATE"):
                other(lambda: Room.objects.update(name="renamed")).result(_PATIENCE)
            return execute(sql, params, many, context)

        with connection.execute_wrapper(rename):
            assert copies.filter(room__name="old").update(loans=1) == 4
        assert told(recorded) == [("UPDATE", str(pk), 0, 1) for pk in (1, 2, 3, 4)]
        assert set(copies.values_list("loans", flat=True)) == {1}


class TestDelete:
    def test_a_row_that_was_replaced_meanwhile_is_recorded_as_it_was(
        self, copies, recorded, other: Run, until_somebody_waits
    ):
        """A deletion that waited until a row was made anew records the row that it deleted."""
        with transaction.atomic():
            copies.filter(pk=2).delete()
            Copy.objects.create(pk=2, note="anew")
            waiting = other(copies.delete)
            until_somebody_waits()
        waiting.result(_PATIENCE)
        assert told(recorded, "note")[2:] == [
            ("DELETE", "4", "old", None),
            ("DELETE", "3", "old", None),
            ("DELETE", "2", "anew", None),
            ("DELETE", "1", "old", None),
        ]

    def test_a_row_that_nobody_has_seen_is_not_deleted(self, copies, recorded, other: Run):
        """A row that comes between the look and the DELETE ends the deletion; nothing is lost."""
        with suppress_events():
            doomed = list(copies)
            Copy.objects.filter(pk=3).delete()

        def make_anew(execute, sql, params, many, context):
            if sql.startswith('DELETE FROM "testapp_copy" '):
                other(lambda: Copy.objects.create(pk=3, note="unseen")).result(_PATIENCE)
            return execute(sql, params, many, context)

        gone = doomed[2]
        with (
            connection.execute_wrapper(make_anew),
            pytest.raises(OperationalError, match="nobody has seen what they held"),
        ):
            gone.delete()
        assert Copy.objects.get(pk=3).note == "unseen"
        assert told(recorded, "note") == [("CREATE", "3", None, "unseen")]

    def test_two_deletions_of_the_same_rows_are_one_event_each(
        self, copies, recorded, other: Run, until_somebody_waits
    ):
        """A deletion that waited for another of the same rows records nothing of them."""
        with transaction.atomic():
            copies.filter(pk__gt=2).delete()
            waiting = other(copies.all().delete)
            until_somebody_waits()
        assert waiting.result(_PATIENCE)[1]["testapp.Copy"] == 2
        assert sorted(row[:2] for row in told(recorded)) == [
            ("DELETE", str(pk)) for pk in (1, 2, 3, 4)
        ]


class TestInsert:
    def test_an_upsert_beside_an_insert_is_an_update_with_its_old(
        self, copies, recorded, other: Run, until_somebody_waits
    ):
        """An upsert that waited for an insert of the same value updates that row, and old shows it."""
        with transaction.atomic():
            Copy.objects.create(pk=9, barcode="b9", note="first")
            waiting = other(lambda: upsert("b9", "b1"))
            until_somebody_waits()
        assert [copy.pk for copy in waiting.result(_PATIENCE)] == [9, 1]
        assert told(recorded, "note") == [
            ("CREATE", "9", None, "first"),
            ("UPDATE", "1", "old", "upserted"),
            ("UPDATE", "9", "first", "upserted"),
        ]

    def test_an_upsert_beside_an_insert_that_is_rolled_back_is_a_creation(
        self, copies, recorded, other: Run, until_somebody_waits
    ):
        """An upsert that waited for an insert which never came creates the row."""

        def give_up() -> Any:
            with transaction.atomic():
                Copy.objects.create(pk=9, barcode="b9", note="first")
                futures.append(other(lambda: upsert("b9")))
                until_somebody_waits()
                raise InterruptedError

        futures: list[Any] = []
        with pytest.raises(InterruptedError):
            give_up()
        (copy,) = futures[0].result(_PATIENCE)
        assert told(recorded, "note") == [("CREATE", str(copy.pk), None, "upserted")]

    def test_an_upsert_whose_row_is_deleted_meanwhile_says_try_again(
        self, copies, recorded, other: Run
    ):
        """Where a row goes while an upsert looks for it, the upsert writes nothing; again, it creates."""

        def delete(execute, sql, params, many, context):
            if "FOR NO KEY UPDATE" in sql and not deleted:
                deleted.append(other(Copy.objects.filter(pk=1).delete).result(_PATIENCE))
            return execute(sql, params, many, context)

        deleted: list[Any] = []
        with (
            connection.execute_wrapper(delete),
            pytest.raises(OperationalError, match="try again"),
        ):
            upsert("b1", "b2")
        upsert("b1", "b2")
        assert sorted(row[:1] + row[2:] for row in told(recorded, "note")) == [
            ("CREATE", None, "upserted"),
            ("DELETE", "old", None),
            ("UPDATE", "old", "upserted"),
        ]

    def test_ignoring_a_concurrent_insert_records_nothing(
        self, copies, recorded, other: Run, until_somebody_waits
    ):
        """bulk_create(ignore_conflicts=True) that lost against another insert is no event."""
        with transaction.atomic():
            Copy.objects.create(pk=9, barcode="b9", note="first")
            waiting = other(
                lambda: Copy.objects.bulk_create(
                    [Copy(pk=8), Copy(barcode="b9")], ignore_conflicts=True
                )
            )
            until_somebody_waits()
        waiting.result(_PATIENCE)
        assert [row[:2] for row in told(recorded)] == [("CREATE", "9"), ("CREATE", "8")]


def test_bulk_writes_at_once_leave_one_true_history(copies, recorded, at_once):
    """Threads that update, upsert, delete and insert the same rows leave each its true history."""
    threads, rounds = 3, 40
    start = threading.Barrier(threads)
    came_between: list[str] = []

    def write(number: int) -> None:
        chance = random.Random(number)
        start.wait(_PATIENCE)
        for turn in range(rounds):
            keys = sorted(chance.sample(range(1, 7), 3))
            rows = Copy.objects.filter(pk__in=keys).order_by(chance.choice(["pk", "-pk"]))
            new = [Copy(pk=pk, barcode=f"b{pk}", note=f"{number}-{turn}") for pk in keys]
            deeds: list[Callable[[], Any]] = [
                partial(rows.update, loans=F("loans") + 1),
                partial(rows.filter(room__name="old").update, note="there"),
                rows.delete,
                partial(Copy.objects.bulk_create, new, ignore_conflicts=True),
                partial(Copy.objects.bulk_update, new, ["note"]),
                partial(
                    Copy.objects.bulk_create,
                    new,
                    update_conflicts=True,
                    unique_fields=["pk"],
                    update_fields=["note"],
                ),
            ]
            try:
                chance.choice(deeds)()
            except OperationalError as error:
                # A write that locks what is there and then inserts what is not may also meet
                # one that inserted that first: PostgreSQL refuses one of them.
                expected = ("came while they were being written", "deadlock detected")
                if not any(text in str(error) for text in expected):
                    raise
                came_between.append(str(error))

    at_once([lambda n=n: write(n) for n in range(threads)])
    held: dict[str, Any] = {}
    for event in recorded():
        # The first four were there before anybody looked.
        before = held.get(event.key, event.old if int(event.key) < 5 else None)
        assert event.old == before, event
        held[event.key] = event.new
    assert OutboxMessage.objects.count() > rounds
    assert len(came_between) < rounds
    notes = {str(copy.pk): (copy.note, copy.loans) for copy in Copy.objects.all()}
    for key, new in held.items():
        assert (new and (new["note"], new["loans"])) == notes.get(key)
