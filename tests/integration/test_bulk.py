"""Bulk writes: they do what Django does, and each row that they change has its event."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import django
import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.db import (
    DatabaseError,
    IntegrityError,
    NotSupportedError,
    connection,
    connections,
    transaction,
)
from django.db.models import (
    Case,
    Count,
    Exists,
    F,
    Max,
    Model,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    TextField,
    Value,
    When,
)
from django.db.models.deletion import Collector
from django.db.models.functions import Cast, Coalesce, Concat, Upper
from django.db.models.sql import DeleteQuery, UpdateQuery
from django.test.utils import CaptureQueriesContext

from folio_events import bulk, hooks, suppress_events
from folio_events.capture import record_changes
from folio_events.encoding import dump
from folio_events.models import OutboxMessage
from tests.conftest import is_postgres
from tests.testapp.models import (
    Book,
    BookProxy,
    Chapter,
    Copy,
    DisplayShelf,
    Label,
    PlainCopy,
    PlainLabel,
    Room,
    Shelf,
    Tag,
)

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db

Rows = dict[str, dict[str, Any]]
Write = Callable[[Any], Any]
FIRST = 1000001


def rows(model: type[Model], using: str = "default") -> Rows:
    """What the database holds of a model, as events show it, by primary key."""
    fields = model._meta.concrete_fields
    found = {}
    for row in model._base_manager.using(using).values(*[field.attname for field in fields]):
        shown = {field.name: row[field.attname] for field in fields}
        found[str(row[model._meta.pk.attname])] = json.loads(dump(shown))
    return found


@pytest.fixture
def changes(recorded: Callable[[], list[Any]]) -> Callable[..., list[tuple[str, str]]]:
    """Run a write; see that its events are the true history; returns type and key of each."""

    def run(write: Callable[[], Any], model: type[Model] = Copy) -> list[tuple[str, str]]:
        before, known = rows(model), len(recorded())
        write()
        held: dict[str, Any] = dict(before)
        found = recorded()[known:]
        for event in found:
            assert event.old == held.get(event.key), f"old of {event}"
            assert (event.new is None) == (event.type == "DELETE")
            held[event.key] = event.new
        assert {key: row for key, row in held.items() if row is not None} == rows(model)
        return [(event.type, event.key) for event in found]

    return run


def fill(model: type[Any]) -> None:
    """Six copies in three rooms, the first three of them with tags."""
    rooms = [Room.objects.get_or_create(pk=pk, name=f"room {pk}")[0] for pk in (901, 902, 903)]
    tags = [Tag.objects.get_or_create(pk=pk, word=word)[0] for pk, word in ((1, "a"), (2, "b"))]
    for number in range(6):
        copy = model(
            pk=FIRST + number,
            barcode=None if number == 5 else f"b{number}",
            shelf_mark="s",
            place=None if number == 4 else number,
            note=f"note {number % 3}",
            loans=number,
            room=rooms[number % 3],
        )
        copy.save()
        if number < 3:
            copy.tags.set(tags if number else tags[:1])


@pytest.fixture
def twins(declare: Callable[..., None]) -> None:
    """A declared model and one that is not, with the same rows."""
    fill(Copy)
    fill(PlainCopy)
    declare(Copy)


def outcome(write: Write, model: type[Model]) -> Any:
    """What a write returns or raises, and whether its transaction can go on."""
    try:
        with transaction.atomic():
            try:
                result = write(model)
            except Exception as error:
                usable = not transaction.get_connection().needs_rollback
                text = str(error).replace("PlainCopy", "Copy").replace("plaincopy", "copy")
                raise _RaisedError(type(error), text, usable) from error
    except _RaisedError as error:
        return error.args
    return result


class _RaisedError(Exception):
    """Carries an error over the end of its transaction."""


def room_of(model: type[Any]) -> Any:
    return getattr(Room.objects.get(pk=901), f"{model._meta.model_name}_in")


def before_it(model: type[Any], name: str) -> Any:
    """Of each row, a value of the row before it."""
    return Subquery(model.objects.filter(pk__lt=OuterRef("pk")).order_by("-pk").values(name)[:1])


async def abulk_update(model: type[Any]) -> int:
    updated: int = await model.objects.abulk_update([model(pk=1000001, note="x")], ["note"])
    return updated


UPDATES: dict[str, Write] = {
    "a constant": lambda m: m.objects.update(note="x"),
    "several fields": lambda m: m.objects.update(note="x", loans=4, room=None),
    "a filter over what is written": lambda m: m.objects.filter(loans__gt=2).update(loans=0),
    "an F()": lambda m: m.objects.update(loans=F("loans") + 1),
    "another column": lambda m: m.objects.filter(pk__gt=1000002).update(note=F("shelf_mark")),
    "a function": lambda m: m.objects.update(note=Upper("note")),
    "Case and When": lambda m: m.objects.update(
        note=Case(When(loans__gt=3, then=Value("many")), default=F("note"))
    ),
    "a condition that looks at the table": lambda m: m.objects.update(
        loans=Case(
            When(
                Q(loans=Subquery(m.objects.order_by("-loans").values("loans")[:1])),
                then=Value(0),
            ),
            default=Value(100),
        )
    ),
    "a subquery of the same table": lambda m: m.objects.update(
        loans=Coalesce(before_it(m, "loans"), Value(50))
    ),
    "a queryset as a value": lambda m: m.objects.filter(pk=1000001).update(
        note=m.objects.filter(pk=1000002).values("note")
    ),
    "an annotation": lambda m: m.objects.annotate(n=F("loans") * 10).update(loans=F("n")),
    "an annotated subquery": lambda m: (
        m.objects.annotate(n=Coalesce(before_it(m, "loans"), Value(9)))
        .filter(pk__gt=1000002)
        .update(loans=F("n"))
    ),
    "a filter by an aggregate": lambda m: (
        m.objects.annotate(n=Count("tags")).filter(n__gt=1).update(note="tagged")
    ),
    "a join": lambda m: m.objects.filter(room__name="room 902").update(note="there"),
    "a join of what is written": lambda m: m.objects.filter(room__name="room 902").update(room=903),
    "a join that repeats rows": lambda m: m.objects.filter(tags__word__in="ab").update(note="t"),
    "an exclusion over a join": lambda m: m.objects.exclude(tags__word="b").update(note="no b"),
    "a subquery in the filter": lambda m: m.objects.filter(
        pk__in=m.objects.filter(loans__lt=3).values("pk")
    ).update(loans=7),
    "Exists in the filter": lambda m: m.objects.filter(
        Exists(m.objects.filter(note=OuterRef("note"), pk__gt=OuterRef("pk")))
    ).update(note="not the last"),
    "DISTINCT": lambda m: m.objects.distinct().update(note="x"),
    "DISTINCT over a join": lambda m: (
        m.objects.filter(tags__isnull=False).distinct().update(note="x")
    ),
    "an order": lambda m: m.objects.order_by("-note").update(note="x"),
    "an order by an annotation": lambda m: (
        m.objects.annotate(n=F("loans") * -1).order_by("n").update(note="x")
    ),
    "reverse()": lambda m: m.objects.order_by("pk").reverse().update(note="x"),
    "select_related() and only()": lambda m: (
        m.objects.select_related("room").only("note").update(note="x")
    ),
    "values()": lambda m: m.objects.values("note").update(note="x"),
    "values() that group": lambda m: (
        m.objects.values("note").annotate(n=Count("pk")).update(note="x")
    ),
    "two querysets in one": lambda m: (
        m.objects.filter(loans=1) | m.objects.filter(note="note 2")
    ).update(loans=9),
    "a foreign key by instance": lambda m: m.objects.update(room=Room.objects.get(pk=903)),
    "a related manager": lambda m: room_of(m).update(note="x"),
    "rows that it does not change": lambda m: m.objects.filter(loans=3).update(loans=3),
    "no rows": lambda m: m.objects.filter(loans=77).update(note="x"),
    "none()": lambda m: m.objects.none().update(note="x"),
    "nothing": lambda m: m.objects.update(),
    "extra()": lambda m: m.objects.extra(where=["loans > 2"]).update(note="x"),
    "aupdate()": lambda m: async_to_sync(m.objects.filter(loans__gt=2).aupdate)(note="x"),
    "bulk_update()": lambda m: m.objects.bulk_update(
        [m(pk=1000001 + n, note=f"n{n}", loans=-n) for n in (3, 1, 2)], ["note", "loans"]
    ),
    "bulk_update() in batches": lambda m: m.objects.bulk_update(
        [m(pk=1000001 + n, note=f"n{n}") for n in range(6)], ["note"], batch_size=4
    ),
    "bulk_update() with expressions": lambda m: m.objects.bulk_update(
        [m(pk=1000001, loans=F("loans") + 5), m(pk=1000002, loans=8)], ["loans"]
    ),
    "bulk_update() of rows that are gone": lambda m: m.objects.bulk_update(
        [m(pk=1000001, note="x"), m(pk=4711, note="x")], ["note"]
    ),
    "abulk_update()": lambda m: async_to_sync(abulk_update)(m),
    "a primary key": lambda m: m.objects.filter(pk=1000006).update(id=2000001, note="moved"),
    "a primary key that stays": lambda m: m.objects.filter(pk=1000006).update(id=1000006, note="x"),
}
REFUSED_UPDATES: dict[str, Write] = {
    "a field that is not there": lambda m: m.objects.update(colour="red"),
    "a field of no row": lambda m: m.objects.filter(pk=0).update(colour="red"),
    "a joined field": lambda m: m.objects.update(note=F("room__name")),
    "an aggregate": lambda m: m.objects.update(loans=Max("loans")),
    "a slice": lambda m: m.objects.all()[:2].update(note="x"),
    "a union": lambda m: m.objects.all().union(m.objects.all()).update(note="x"),
    "a value that is taken": lambda m: m.objects.update(barcode="b1"),
    "a NULL where none may be": lambda m: m.objects.filter(pk=1000001).update(note=None),
    "no fields of bulk_update()": lambda m: m.objects.bulk_update([m(pk=1000001)], []),
    "a batch size of 0": lambda m: m.objects.bulk_update([m(pk=1000001)], ["note"], batch_size=0),
}


@pytest.mark.usefixtures("twins")
class TestUpdate:
    @pytest.mark.parametrize("chunk", [1000, 2])
    @pytest.mark.parametrize("write", UPDATES.values(), ids=UPDATES)
    def test_an_update_is_djangos_and_each_row_has_its_event(
        self, changes, monkeypatch, write, chunk
    ):
        """Whatever updates rows returns and writes what it does on a model without events.

        In one chunk or in several, each row that it updated has one event with the truth.
        """
        monkeypatch.setattr(bulk, "CHUNK", chunk)
        expected = write(PlainCopy)
        found: list[int] = []
        kinds = changes(lambda: found.append(write(Copy)))
        assert found == [expected]
        assert rows(Copy) == rows(PlainCopy)
        assert len(set(kinds)) == len(kinds)
        moved = [key for kind, key in kinds if kind == "CREATE"]
        assert len(kinds) - len(moved) == (0 if write is UPDATES["nothing"] else expected)

    @pytest.mark.parametrize("write", REFUSED_UPDATES.values(), ids=REFUSED_UPDATES)
    def test_a_refused_update_is_refused_as_by_django(self, recorded, write):
        """Errors are Django's, and spoil a transaction only where Django's do."""
        kind, text, is_usable = outcome(write, PlainCopy)
        assert issubclass(kind, Exception)
        if kind is IntegrityError:
            text = ""  # it names the table
        found = outcome(write, Copy)
        assert (found[0], found[1] if text else "", found[2]) == (kind, text, is_usable)
        assert rows(Copy) == rows(PlainCopy)
        assert recorded() == []

    @pytest.mark.postgres
    @pytest.mark.skipif(django.VERSION >= (6, 1), reason="Django refuses it, and so it is refused")
    def test_distinct_fields_are_no_filter(self, changes):
        """An update of one table takes no notice of distinct("note"), as in Django."""
        expected = PlainCopy.objects.distinct("note").update(loans=5)
        assert len(changes(lambda: Copy.objects.distinct("note").update(loans=5))) == expected

    def test_the_queryset_is_read_anew_afterwards(self):
        """A queryset that was read before its update() shows the new rows after it."""
        copies = Copy.objects.order_by("pk")
        assert "x" not in {copy.note for copy in copies}
        copies.update(note="x")
        assert {copy.note for copy in copies} == {"x"}

    def test_a_key_that_moves_is_a_deletion_and_a_creation(self, changes):
        """A row under another primary key is another row."""
        kinds = changes(lambda: Copy.objects.filter(pk=1000006).update(id=2000001))
        assert kinds == [("DELETE", "1000006"), ("CREATE", "2000001")]

    def test_keys_do_not_move_by_an_expression(self):
        """update(id=F("id") + 100) is refused before anything is written."""
        with pytest.raises(NotSupportedError, match=r"testapp\.Copy.* cannot be moved"):
            Copy.objects.update(id=F("id") + 100)
        assert not transaction.get_connection().needs_rollback
        assert rows(Copy) == rows(PlainCopy)

    def test_rows_that_stay_equal_are_events_unless_the_declaration_says_otherwise(
        self, declare, changes
    ):
        """With skip_unchanged an update is an event only of the rows that it changed."""
        update = Copy.objects.filter(pk__lt=1000003).update
        assert len(changes(lambda: update(loans=1))) == 2
        declare(Copy, skip_unchanged=True)
        assert changes(lambda: update(loans=Case(When(pk=1000001, then=5), default=1))) == [
            ("UPDATE", "1000001")
        ]

    def test_an_update_in_a_savepoint_goes_with_it(self, changes):
        """A rollback to a savepoint takes the events of the update in it, and no others."""

        def write() -> None:
            Copy.objects.filter(pk=1000001).update(note="stays")
            with contextlib.suppress(InterruptedError), transaction.atomic():
                Copy.objects.update(note="goes")
                raise InterruptedError
            Copy.objects.filter(pk=1000002).update(note="stays")

        assert changes(write) == [("UPDATE", "1000001"), ("UPDATE", "1000002")]

    @pytest.mark.django_db(transaction=True)
    def test_an_update_whose_events_cannot_be_written_changes_nothing(self, recorded):
        """In autocommit, rows and events of an update are committed together or not at all."""

        def full(execute, sql, params, many, context):
            if sql.startswith("INSERT") and OutboxMessage._meta.db_table in sql:
                raise DatabaseError("no space left on device")
            return execute(sql, params, many, context)

        with connection.execute_wrapper(full), pytest.raises(DatabaseError, match="no space"):
            Copy.objects.update(note="x")
        assert rows(Copy) == rows(PlainCopy)
        assert recorded() == []

    def test_a_write_within_suppress_events_is_none(self, recorded):
        """suppress_events() silences every bulk door."""
        with suppress_events():
            Copy.objects.update(note="x")
            Copy.objects.bulk_update([Copy(pk=1000001, note="y")], ["note"])
            Copy.objects.bulk_create([Copy(note="z")])
            Copy.objects.bulk_create([Copy(barcode="b1")], ignore_conflicts=True)
            Room.objects.all().delete()
            Copy.objects.all().delete()
        assert recorded() == []
        assert not Copy.objects.exists()


Insert = Callable[[Any], tuple[list[Any], dict[str, Any]]]
INSERTS: dict[str, Insert] = {
    "plain": lambda m: ([m(note="x"), m(note="y", loans=3)], {}),
    "with keys": lambda m: ([m(pk=7000001, note="x"), m(pk=7000002, note="y")], {}),
    "with and without keys": lambda m: ([m(note="x"), m(pk=7000002, note="y"), m(note="z")], {}),
    "with keys as text": lambda m: ([m(pk="7000001", note="x", loans="12")], {}),
    "with expressions": lambda m: ([m(loans=Value(2) + Value(3), note=Upper(Value("x")))], {}),
    "with a value for the database's own": lambda m: ([m(state="old"), m()], {}),
    "in batches": lambda m: ([m(note=str(n)) for n in range(7)], {"batch_size": 3}),
    "nothing": lambda m: ([], {}),
    "ignoring what is taken": lambda m: (
        [m(barcode="b1", note="x"), m(barcode="c1"), m(barcode="c1"), m(), m()],
        {"ignore_conflicts": True},
    ),
    "ignoring keys that are taken": lambda m: (
        [m(pk=1000001, note="x"), m(pk=7000001), m(barcode="b2")],
        {"ignore_conflicts": True, "batch_size": 2},
    ),
    "ignoring when all is taken": lambda m: (
        [m(barcode="b1"), m(barcode="b2")],
        {"ignore_conflicts": True},
    ),
    "updating what is there": lambda m: (
        [m(barcode="c1", note="x", loans=1), m(barcode="b1", note="y"), m(barcode="c2")],
        {"update_conflicts": True, "unique_fields": ["barcode"], "update_fields": ["note"]},
    ),
    "updating when all is new": lambda m: (
        [m(barcode="c1", note="x"), m(barcode="c2")],
        {"update_conflicts": True, "unique_fields": ["barcode"], "update_fields": ["note"]},
    ),
    "updating when all is there": lambda m: (
        [m(barcode="b2", note="x"), m(barcode="b1", note="y")],
        {
            "update_conflicts": True,
            "unique_fields": ["barcode"],
            "update_fields": ["note", "loans"],
        },
    ),
    "updating by NULL, which nothing equals": lambda m: (
        [m(note="x"), m(barcode="b1", note="y"), m(note="z")],
        {"update_conflicts": True, "unique_fields": ["barcode"], "update_fields": ["note"]},
    ),
    "updating by NULL alone": lambda m: (
        [m(note="x"), m(note="z")],
        {"update_conflicts": True, "unique_fields": ["barcode"], "update_fields": ["note"]},
    ),
    "updating by two fields": lambda m: (
        [
            m(shelf_mark="s", place=1, note="x"),
            m(shelf_mark="t", place=1, note="y"),
            m(shelf_mark="s", note="z"),
        ],
        {
            "update_conflicts": True,
            "unique_fields": ["shelf_mark", "place"],
            "update_fields": ["note"],
        },
    ),
    "updating by the key": lambda m: (
        [m(pk=1000002, note="x", loans=8), m(pk=7000001, note="y"), m(pk=7000002)],
        {
            "update_conflicts": True,
            "unique_fields": ["pk"],
            "update_fields": ["note", "loans"],
            "batch_size": 2,
        },
    ),
}
REFUSED_INSERTS: dict[str, Insert] = {
    "what is taken": lambda m: ([m(note="x"), m(barcode="b1")], {}),
    "updating while another column is taken": lambda m: (
        [m(barcode="c1", shelf_mark="s", place=1)],
        {"update_conflicts": True, "unique_fields": ["barcode"], "update_fields": ["note"]},
    ),
    "options that exclude each other": lambda m: (
        [m()],
        {"update_conflicts": True, "ignore_conflicts": True},
    ),
}


def state(obj: Model, *, given: bool) -> dict[str, Any]:
    """What an instance knows after its insert; a key that the database chose only as such."""
    held = {
        name: str(value)
        for name, value in vars(obj).items()
        if name != "_state" and not hasattr(value, "resolve_expression")
    }
    chosen = {} if given else {"id": obj.pk is not None}
    return {**held, **chosen, "adding": obj._state.adding, "db": obj._state.db}


def inserted(insert: Insert, model: type[Any]) -> list[dict[str, Any]]:
    """Insert, and tell the state of each instance."""
    objs, options = insert(model)
    given = [obj.pk is not None for obj in objs]
    returned = model.objects.bulk_create(objs, **options)
    assert [id(obj) for obj in returned] == [id(obj) for obj in objs]
    return [state(obj, given=is_given) for obj, is_given in zip(objs, given, strict=True)]


def without_keys(held: Rows) -> Counter[str]:
    """Rows, where the database chose the keys."""
    known = {str(FIRST + number) for number in range(6)} | {"7000001", "7000002", "7000003"}
    return Counter(
        json.dumps({name: row[name] for name in row if name != "id" or key in known})
        for key, row in held.items()
    )


@pytest.mark.usefixtures("twins")
class TestInsert:
    @pytest.mark.parametrize("chunk", [1000, 2])
    @pytest.mark.parametrize("insert", INSERTS.values(), ids=INSERTS)
    def test_an_insert_is_djangos_and_each_row_has_its_event(
        self, changes, monkeypatch, insert, chunk
    ):
        """bulk_create() returns, writes and makes of instances what it does without events.

        In one chunk or in several, each row that it wrote has one event with the truth.
        """
        monkeypatch.setattr(bulk, "CHUNK", chunk)
        expected = inserted(insert, PlainCopy)
        found: list[Any] = []
        kinds = changes(lambda: found.append(inserted(insert, Copy)))
        assert found == [expected]
        assert without_keys(rows(Copy)) == without_keys(rows(PlainCopy))
        assert len({key for _kind, key in kinds}) == len(kinds)

    @pytest.mark.parametrize("insert", REFUSED_INSERTS.values(), ids=REFUSED_INSERTS)
    def test_a_refused_insert_is_refused_as_by_django(self, recorded, insert):
        """Nothing of it stays, neither rows nor events."""
        kind, *_ = outcome(partial(inserted, insert), PlainCopy)
        assert issubclass(kind, Exception)
        assert outcome(partial(inserted, insert), Copy)[0] is kind
        assert rows(Copy) == rows(PlainCopy)
        assert recorded() == []

    def test_what_was_there_is_an_update_and_what_was_not_a_creation(self, changes):
        """bulk_create(update_conflicts=True) gives each row the event of what became of it."""

        def write() -> None:
            Copy.objects.bulk_create(
                [
                    Copy(pk=7000001, barcode="c1"),
                    Copy(pk=7000002, barcode="b1", note="x"),
                    Copy(pk=7000003),
                ],
                update_conflicts=True,
                unique_fields=["barcode"],
                update_fields=["note"],
            )

        assert sorted(changes(write)) == [
            ("CREATE", "7000001"),
            ("CREATE", "7000003"),
            ("UPDATE", "1000002"),
        ]

    def test_the_same_row_twice_in_one_insert_is_as_in_django(self, changes):
        """PostgreSQL refuses to update a row twice in one statement; on SQLite the last one wins."""

        def write(model: type[Any]) -> Any:
            return model.objects.bulk_create(
                [model(barcode="b1", note="x"), model(barcode="b1", note="y")],
                update_conflicts=True,
                unique_fields=["barcode"],
                update_fields=["note"],
            )

        def run(model: type[Any]) -> Any:
            result = outcome(write, model)
            return result[:2] if isinstance(result, tuple) else len(result)

        expected = run(PlainCopy)
        kinds = changes(lambda: run(Copy) == expected or pytest.fail("another outcome"))
        assert kinds == ([] if is_postgres() else [("UPDATE", "1000002")])
        assert rows(Copy) == rows(PlainCopy)

    @pytest.mark.parametrize("options", [{}, {"ignore_conflicts": True}, "update"], ids=str)
    def test_keys_of_the_programs_own_are_captured(self, declare, changes, options):
        """Where keys are UUIDs and a column before them is the database's, all stands in its place."""
        declare(Label)
        if options == "update":
            options = {
                "update_conflicts": True,
                "unique_fields": ["code"],
                "update_fields": ["text"],
            }
        pk = uuid.uuid4()

        def write(model: type[Any]) -> Any:
            model.objects.create(code="1", text="old")
            labels = [model(pk=str(pk), code="2"), model(code="3", state="seen")]
            if options:
                labels.append(model(code="1", text="new"))
            model.objects.bulk_create(labels, **options)
            seen = [(label.code, str(label.state)) for label in labels if label.code == "3"]
            held = model.objects.order_by("code").values_list("code", "text", "state")
            return [type(labels[0].pk), str(labels[0].pk), seen, list(held)]

        expected = write(PlainLabel)
        kinds = changes(lambda: write(Label) == expected or pytest.fail("another outcome"), Label)
        updated = "update_conflicts" in options
        assert Counter(kind for kind, _key in kinds) == {
            "CREATE": 3,
            **({"UPDATE": 1} if updated else {}),
        }

    def test_asynchronous_doors_are_captured(self, changes):
        """abulk_create(), aupdate_or_create() and aget_or_create() give the events of their twins."""

        async def write() -> None:
            await Copy.objects.abulk_create([Copy(pk=7000001), Copy(pk=7000002)])
            await Copy.objects.aupdate_or_create(barcode="b1", defaults={"note": "x"})
            await Copy.objects.aget_or_create(barcode="b2")
            await Copy.objects.filter(pk=7000002).adelete()

        kinds = changes(lambda: async_to_sync(write)())
        assert kinds == [
            ("CREATE", "7000001"),
            ("CREATE", "7000002"),
            ("UPDATE", "1000002"),
            ("DELETE", "7000002"),
        ]

    def test_get_or_create_and_update_or_create_write_through_a_relation(self, changes):
        """What a related manager creates or updates is captured with what it sets by itself."""

        def write() -> None:
            room = Room.objects.get(pk=901)
            room.copy_in.update_or_create(barcode="b0", defaults={"note": "x"})
            room.copy_in.get_or_create(barcode="b0")
            room.copy_in.create(pk=7000001)
            room.copy_in.add(Copy.objects.get(pk=1000002))
            room.copy_in.remove(Copy.objects.get(pk=1000002))

        assert changes(write) == [
            ("UPDATE", "1000001"),
            ("CREATE", "7000001"),
            ("UPDATE", "1000002"),
            ("UPDATE", "1000002"),
        ]


DELETIONS: dict[str, Write] = {
    "all": lambda m: m.objects.all().delete(),
    "a filter": lambda m: m.objects.filter(loans__gt=2).delete(),
    "a join that repeats rows": lambda m: m.objects.filter(tags__word__in="ab").delete(),
    "a subquery": lambda m: m.objects.filter(
        pk__in=m.objects.filter(loans=2).values("pk")
    ).delete(),
    "an annotation": lambda m: m.objects.annotate(n=Count("tags")).filter(n=2).delete(),
    "none": lambda m: m.objects.none().delete(),
    "a related manager": lambda m: room_of(m).all().delete(),
    "an instance": lambda m: m.objects.get(pk=1000001).delete(),
    "an instance by a key as text": lambda m: m(pk="1000001").delete(),
    "an instance that is gone": lambda m: m(pk=4711).delete(),
    "distinct fields": lambda m: m.objects.distinct("note").delete(),
    "a slice": lambda m: m.objects.all()[:2].delete(),
    "adelete()": lambda m: async_to_sync(m.objects.filter(pk=1000001).adelete)(),
}


REFUSED_DELETIONS = [DELETIONS["distinct fields"], DELETIONS["a slice"]]


@pytest.mark.usefixtures("twins")
class TestDelete:
    @pytest.mark.parametrize("chunk", [1000, 2])
    @pytest.mark.parametrize("write", DELETIONS.values(), ids=DELETIONS)
    def test_a_deletion_is_djangos_and_each_row_has_its_event(
        self, changes, monkeypatch, write, chunk
    ):
        """Whatever deletes rows returns, raises and deletes what it does on a model without events."""
        monkeypatch.setattr(bulk, "CHUNK", chunk)

        def shown(model: type[Model]) -> Any:
            result = outcome(write, model)
            if isinstance(result, tuple) and isinstance(result[1], dict):
                counts = {name.replace("PlainCopy", "Copy"): n for name, n in result[1].items()}
                # Django names even models of which it deleted nothing, or not, by its way there.
                result = (result[0], {name: n for name, n in counts.items() if n})
            return result

        expected = shown(PlainCopy)
        assert len(expected) == (3 if write in REFUSED_DELETIONS else 2)
        kinds = changes(lambda: shown(Copy) == expected or pytest.fail("another outcome"))
        assert {kind for kind, _key in kinds} <= {"DELETE"}
        assert rows(Copy) == rows(PlainCopy)

    @pytest.mark.parametrize("chunk", [1000, 1])
    @pytest.mark.parametrize(
        ("field", "expected"),
        [("room", None), ("home", None), ("origin", "lost and found"), ("guest_of", None)],
        ids=["SET_NULL", "SET_DEFAULT", "SET()", "of one's own"],
    )
    def test_what_django_does_to_rows_that_refer_to_a_deleted_one_is_captured(
        self, changes, monkeypatch, field, expected, chunk
    ):
        """on_delete=SET_NULL, SET_DEFAULT, SET() and functions of one's own are updates of the rows."""
        monkeypatch.setattr(bulk, "CHUNK", chunk)
        for model in (Copy, PlainCopy):
            with suppress_events():
                model.objects.update(room=None)
                model.objects.filter(pk__lt=1000004).update(**{field: 902})
        kinds = changes(lambda: Room.objects.get(pk=902).delete())
        assert kinds == [("UPDATE", str(pk)) for pk in (1000001, 1000002, 1000003)]
        assert rows(Copy) == rows(PlainCopy)
        room = getattr(Copy.objects.get(pk=1000001), field)
        assert (room and room.name) == expected

    def test_rows_of_a_cascade_are_captured_before_what_they_belong_to(self, recorded):
        """A cascade over many rows records each, and then the row that they belonged to."""
        book = Book.objects.create(title="Emma")
        Chapter.objects.bulk_create([Chapter(book=book, title=str(n)) for n in range(5)])
        Book.objects.all().delete()
        key = str(book.pk)
        assert [(e.topic, e.key) for e in recorded() if e.type == "DELETE"] == [
            *[("library.chapter", key)] * 5,
            ("library.book", key),
        ]


class TestManyToMany:
    @pytest.fixture
    def through(self, declare: Callable[..., None]) -> type[Model]:
        """A table of its own that Django made, declared."""
        found = Copy.tags.through
        declare(found, topic="library.copy-tag")
        return found

    def test_each_link_that_comes_or_goes_is_an_event(self, through, changes):
        """add(), set(), remove() and clear() give events of a through model that is declared."""
        copy = Copy.objects.create()
        tags = [Tag.objects.create(word=word) for word in "abc"]
        steps: list[tuple[Callable[[], None], list[str]]] = [
            (lambda: copy.tags.add(tags[0], tags[1]), ["CREATE", "CREATE"]),
            (lambda: copy.tags.add(tags[0]), []),
            (lambda: copy.tags.set([tags[1], tags[2]]), ["DELETE", "CREATE"]),
            (lambda: copy.tags.remove(tags[1]), ["DELETE"]),
            (lambda: tags[0].copy_set.add(copy), ["CREATE"]),
            (lambda: copy.tags.clear(), ["DELETE", "DELETE"]),
        ]
        for step, expected in steps:
            assert [kind for kind, _key in changes(step, through)] == expected

    def test_links_that_go_with_their_row_are_events(self, through, changes):
        """Deleting one side deletes its links with an event of each."""
        copy = Copy.objects.create()
        copy.tags.add(*[Tag.objects.create(word=word) for word in "abc"])
        assert [kind for kind, _key in changes(copy.delete, through)] == ["DELETE"] * 3


class TestModels:
    def test_a_bulk_write_through_a_proxy_is_of_its_model(self, changes):
        """A proxy's bulk writes are events of the model itself, once."""

        def write() -> None:
            BookProxy.objects.bulk_create([BookProxy(pk=1, title="Emma"), BookProxy(pk=2)])
            BookProxy.objects.update(copies=2)
            BookProxy.objects.filter(pk=1).delete()

        assert changes(write, Book) == [
            ("CREATE", "1"),
            ("CREATE", "2"),
            ("UPDATE", "1"),
            ("UPDATE", "2"),
            ("DELETE", "1"),
        ]

    @pytest.mark.parametrize("chunk", [1000, 1])
    def test_an_update_of_a_child_is_an_event_of_each_declared_table(
        self, declare, recorded, monkeypatch, chunk
    ):
        """With parent and child declared, a child's update of either table's fields is two events."""
        declare(Shelf)
        declare(DisplayShelf)
        for number in range(3):
            DisplayShelf.objects.create(label=f"{number}", theme="novels")
        OutboxMessage.objects.all().delete()
        monkeypatch.setattr(bulk, "CHUNK", chunk)
        assert DisplayShelf.objects.exclude(label="1").update(label="B", theme="poems") == 2
        of_child = [e for e in recorded() if e.topic == "library.displayshelf"]
        of_parent = [e for e in recorded() if e.topic == "library.shelf"]
        assert [(e.old["label"], e.old["theme"]) for e in of_child] == [
            ("0", "novels"),
            ("2", "novels"),
        ]
        assert [(e.new["label"], e.new["theme"]) for e in of_child] == [("B", "poems")] * 2
        assert [(e.old["label"], e.new["label"]) for e in of_parent] == [("0", "B"), ("2", "B")]

    def test_a_child_of_a_declared_parent_gives_the_parents_events(self, declare, changes):
        """An update and a deletion through a child that is not declared are its parent's events."""
        declare(Shelf)
        pk = DisplayShelf.objects.create(label="A", theme="novels").pk

        def write() -> None:
            assert DisplayShelf.objects.filter(theme="novels").update(places=3) == 1
            DisplayShelf.objects.all().delete()

        assert changes(write, Shelf) == [("UPDATE", str(pk)), ("DELETE", str(pk))]

    def test_keys_of_inherited_tables_do_not_move(self, declare):
        """An update that would give a child's row another parent is refused."""
        declare(DisplayShelf)
        DisplayShelf.objects.create(label="A", theme="novels")
        other = Shelf.objects.create(label="B")
        for values in ({"shelf_ptr": other}, {"id": 7}):
            with pytest.raises(NotSupportedError, match=r"testapp\.DisplayShelf"):
                DisplayShelf.objects.update(**values)


class TestFixtures:
    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """A fixture with a book, and a shelf in two tables."""
        shelf = {"label": "A", "places": 7}
        loaded: list[dict[str, Any]] = [
            {"model": "testapp.book", "pk": 1, "fields": {"title": "Emma", "extra": {}}},
            {"model": "testapp.shelf", "pk": 5, "fields": shelf},
            {"model": "testapp.displayshelf", "pk": 5, "fields": {"theme": "novels"}},
        ]
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(loaded))
        return str(path)

    def load(self, path: str) -> None:
        call_command("loaddata", path, verbosity=0)

    def test_fixtures_give_no_events_unless_a_declaration_wants_them(
        self, path, declare, recorded, changes
    ):
        """loaddata is silent; with fixtures = True the rows of that model are events."""
        self.load(path)
        assert recorded() == []
        declare(Book, fixtures=True)
        assert changes(lambda: self.load(path), Book) == [("UPDATE", "1")]

    @pytest.mark.parametrize("load_twice", [False, True])
    def test_a_fixture_of_inherited_tables_is_an_event_of_each(
        self, path, declare, recorded, load_twice
    ):
        """A fixture writes table by table: a child's event shows its parent as the database has it."""
        for model in (Shelf, DisplayShelf):
            declare(model, fixtures=True)
        for _ in range(1 + load_twice):
            self.load(path)
        kind = "UPDATE" if load_twice else "CREATE"
        found = [(e.topic, e.type, e.new["label"], e.new["places"]) for e in recorded()[-2:]]
        assert found == [
            ("library.shelf", kind, "A", 7),
            ("library.displayshelf", kind, "A", 7),
        ]
        assert recorded()[-1].new["theme"] == "novels"
        assert len(recorded()) == 2 * (1 + load_twice)


def statements(write: Callable[[], object]) -> Counter[str]:
    """How many statements of each kind a write sends."""
    with transaction.atomic(), CaptureQueriesContext(connection) as captured:
        write()
    words = [query["sql"].split()[0] for query in captured.captured_queries]
    # The outbox takes many rows by COPY.
    words = ["INSERT" if word == "COPY" else word for word in words]
    return Counter(word for word in words if word not in ("BEGIN", "SAVEPOINT", "RELEASE"))


def upsert(copies: Sequence[Copy]) -> None:
    Copy.objects.bulk_create(
        copies, update_conflicts=True, unique_fields=["barcode"], update_fields=["note"]
    )


BULK_WRITES: dict[str, Callable[[list[Copy]], object]] = {
    "update": lambda _copies: Copy.objects.update(note="x"),
    "update with a join": lambda _copies: Copy.objects.filter(room__name="r").update(note="x"),
    "bulk_update": lambda copies: Copy.objects.bulk_update(copies, ["note"]),
    "bulk_create": lambda copies: Copy.objects.bulk_create(
        [Copy(note=copy.note) for copy in copies]
    ),
    "ignoring conflicts": lambda copies: Copy.objects.bulk_create(
        [Copy(barcode=copy.barcode) for copy in copies] + [Copy(note="new") for _ in copies],
        ignore_conflicts=True,
    ),
    "updating conflicts": lambda copies: upsert([Copy(barcode=copy.barcode) for copy in copies]),
    "SET_NULL": lambda _copies: Room.objects.all().delete(),
}


class TestStatements:
    @pytest.mark.parametrize("write", BULK_WRITES.values(), ids=BULK_WRITES)
    def test_many_rows_take_the_statements_of_one(self, declare, recorded, monkeypatch, write):
        """The number of statements does not grow with the rows, until they fill a chunk."""
        declare(Copy)
        found = []
        for count in (1, 30):
            with suppress_events():
                Copy.objects.all().delete()
                room = Room.objects.create(name="r")
                copies = Copy.objects.bulk_create(
                    [Copy(barcode=str(n), room=room, note="y") for n in range(count)]
                )
            known = len(recorded())
            found.append(statements(partial(write, copies)))
            assert len(recorded()) - known >= count
        assert found[0] == found[1]

    def test_a_chunk_is_read_written_and_recorded_before_the_next(self, declare, monkeypatch):
        """Of 300 rows in chunks of 100, no more than one chunk is in hand."""
        declare(Copy)
        with suppress_events():
            Copy.objects.bulk_create([Copy(note="y") for _ in range(300)])
        monkeypatch.setattr(bulk, "CHUNK", 100)
        sizes: list[int] = []

        def measured(changes: Sequence[Any], *, using: str) -> None:
            sizes.append(len(changes))
            record_changes(changes, using=using)

        monkeypatch.setattr(bulk, "record_changes", measured)
        Copy.objects.update(note="x")
        Copy.objects.bulk_create([Copy(note="z") for _ in range(250)])
        Copy.objects.all().delete()
        assert sizes == [100] * 3 + [100, 100, 50] + [100] * 5 + [50]

    def test_a_value_from_other_rows_is_worked_out_for_all_at_once(
        self, declare, changes, monkeypatch
    ):
        """Chunks do not see what the chunk before them wrote."""
        declare(Copy)
        with suppress_events():
            Copy.objects.bulk_create([Copy(loans=n) for n in range(20)])
        monkeypatch.setattr(bulk, "CHUNK", 3)
        highest = Subquery(Copy.objects.order_by("-loans").values("loans")[:1])
        changes(lambda: Copy.objects.update(loans=highest + 1))
        assert set(Copy.objects.values_list("loans", flat=True)) == {20}


def test_uninstalling_gives_django_its_bulk_doors_back(declare, recorded):
    """uninstall() leaves QuerySet, its queries and the Collector as they were."""
    doors = [
        (QuerySet, "update"),
        (QuerySet, "bulk_update"),
        (QuerySet, "_batched_insert"),
        (UpdateQuery, "update_batch"),
        (DeleteQuery, "delete_batch"),
        (Collector, "can_fast_delete"),
    ]
    declare(Copy)
    hooks.uninstall()
    try:
        assert not [name for owner, name in doors if hasattr(getattr(owner, name), "_folio_events")]
        Copy.objects.bulk_create([Copy(), Copy()])
        Copy.objects.update(note="x")
        Copy.objects.all().delete()
        assert recorded() == []
    finally:
        hooks.install()
    Copy.objects.bulk_create([Copy()])
    assert [event.type for event in recorded()] == ["CREATE"]


def test_models_without_a_declaration_take_djangos_own_way():
    """Bulk writes of a model that is not registered send the statements that Django sends."""
    rows = [PlainCopy(note=str(n), barcode=str(n)) for n in range(3)]
    plain = statements(lambda: PlainCopy.objects.bulk_create(rows))
    assert plain == {"INSERT": 1}
    assert statements(lambda: PlainCopy.objects.update(note="x")) == {"UPDATE": 1}
    room = Room.objects.create(name="r")
    PlainCopy.objects.update(guest_of=room)
    room.delete()
    assert not PlainCopy.objects.exclude(guest_of=None).exists()


def test_an_expression_of_several_columns_is_shown_as_the_database_has_it(declare, changes):
    """What the database makes of several columns is in new."""
    declare(Copy)
    Copy.objects.bulk_create([Copy(loans=n, note="n") for n in range(3)])
    numbered = Concat(F("note"), Value(" "), Cast("loans", TextField()), output_field=TextField())
    assert len(changes(lambda: Copy.objects.update(note=numbered))) == 3
    assert sorted(Copy.objects.values_list("note", flat=True)) == ["n 0", "n 1", "n 2"]


@pytest.fixture(scope="module")
def _elsewhere(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A second database, always on SQLite, with an outbox and the tables of copies."""
    alias = "elsewhere"
    connections.settings[alias] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path_factory.mktemp(alias) / "db.sqlite3"),
        "OPTIONS": {},
    }
    with django_db_blocker.unblock():
        for app in ("auth", "folio_events"):
            call_command("migrate", app, database=alias, verbosity=0)
        with connections[alias].schema_editor() as editor:
            for model in (Room, Tag, Copy):
                editor.create_model(model)
        yield
        connections[alias].close()
    del connections[alias]
    del connections.settings[alias]


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.django_db(transaction=True, databases=["default", "elsewhere"])
class TestDatabases:
    def test_events_stand_in_the_database_of_the_write(self, declare, recorded):
        """Bulk writes with using() leave their events beside the rows, and none anywhere else."""
        declare(Copy)
        copies = Copy.objects.using("elsewhere")
        copies.bulk_create([Copy(pk=1, barcode="1"), Copy(pk=2, barcode="2")])
        copies.bulk_create([Copy(pk=1), Copy(pk=3)], ignore_conflicts=True)
        copies.bulk_create(
            [Copy(barcode="1", note="x")],
            update_conflicts=True,
            unique_fields=["barcode"],
            update_fields=["note"],
        )
        copies.filter(pk=2).update(note="y")
        copies.bulk_update([Copy(pk=3, note="z")], ["note"])
        copies.all().delete()
        assert recorded() == []
        found = OutboxMessage.objects.using("elsewhere").order_by("id")
        assert [(row.event_type, row.key) for row in found] == [
            ("CREATE", "1"),
            ("CREATE", "2"),
            ("CREATE", "3"),
            ("UPDATE", "1"),
            ("UPDATE", "2"),
            ("UPDATE", "3"),
            ("DELETE", "3"),
            ("DELETE", "2"),
            ("DELETE", "1"),
        ]
