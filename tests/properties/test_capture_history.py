"""Capture against an observer: any order of writes by any door, savepoints and rollbacks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import pytest
from django.core.management.color import no_style
from django.db import IntegrityError, connection, transaction
from django.db.models import Case, F, Q, QuerySet, Subquery, Value, When
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from folio_events import bulk, hooks
from folio_events.capture import Change, record_changes
from folio_events.models import OutboxMessage
from folio_events.rows import saved_row
from tests.properties.worker import UndoError
from tests.testapp.models import Copy, Room

pytest_plugins = ("tests.recording",)
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(1800)]

Row = dict[str, Any] | None
_CHUNK = bulk.CHUNK
TABLE = Copy._meta.db_table
COLUMNS = {str(field.column): field.name for field in Copy._meta.concrete_fields}


class Seen(NamedTuple):
    """What became of a row, by an event or by the observer."""

    kind: str
    key: str
    old: Row
    new: Row


class Observer:
    """The database's own triggers: they log each row before and after, whoever writes it."""

    def __init__(self, hidden: Sequence[str]) -> None:
        self.columns = {column: name for column, name in COLUMNS.items() if name not in hidden}

    def __enter__(self) -> Observer:
        serial = "bigserial" if connection.vendor == "postgresql" else "integer"
        self._run(f"CREATE TABLE seen (n {serial} PRIMARY KEY, old text, new text)")
        self._run(*(self._postgres() if connection.vendor == "postgresql" else self._sqlite()))
        return self

    def __exit__(self, *_error: object) -> None:
        if connection.vendor == "postgresql":
            self._run(f"DROP TRIGGER seen ON {TABLE}", "DROP FUNCTION see()")
        else:
            self._run(*(f"DROP TRIGGER see_{kind}" for kind in ("insert", "update", "delete")))
        self._run("DROP TABLE seen")

    @staticmethod
    def _run(*statements: str) -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    @staticmethod
    def _postgres() -> Iterator[str]:
        yield (
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "INSERT INTO seen (old, new) VALUES (to_jsonb(OLD), to_jsonb(NEW)); RETURN NULL; "
            "END $$"
        )
        yield (
            f"CREATE TRIGGER seen AFTER INSERT OR UPDATE OR DELETE ON {TABLE} "
            "FOR EACH ROW EXECUTE FUNCTION see()"
        )

    @staticmethod
    def _sqlite() -> Iterator[str]:
        def row(name: str) -> str:
            pairs = ", ".join(f"'{column}', {name}.{column}" for column in COLUMNS)
            return f"json_object({pairs})"

        for kind, old, new in (
            ("insert", "NULL", row("NEW")),
            ("update", row("OLD"), row("NEW")),
            ("delete", row("OLD"), "NULL"),
        ):
            yield (
                f"CREATE TRIGGER see_{kind} AFTER {kind} ON {TABLE} BEGIN "
                f"INSERT INTO seen (old, new) VALUES ({old}, {new}); END"
            )

    def forget(self) -> None:
        sequences = [{"table": TABLE, "column": "id"}]
        self._run(
            "DELETE FROM seen", *connection.ops.sequence_reset_by_name_sql(no_style(), sequences)
        )

    def last(self) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT coalesce(max(n), 0) FROM seen")
            return int(cursor.fetchone()[0])

    def since(self, number: int) -> Iterator[Seen]:
        """What happened to rows; under another key a row is another row."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT old, new FROM seen WHERE n > %s ORDER BY n", [number])
            found = cursor.fetchall()
        for before, after in found:
            old, new = self._row(before), self._row(after)
            if old and new and old["id"] == new["id"]:
                yield Seen("UPDATE", str(old["id"]), old, new)
                continue
            if old:
                yield Seen("DELETE", str(old["id"]), old, None)
            if new:
                yield Seen("CREATE", str(new["id"]), None, new)

    def _row(self, text: str | None) -> Row:
        row = None if text is None else json.loads(text)
        return row and {name: row[column] for column, name in self.columns.items()}

    def rows(self) -> dict[str, Row]:
        """What the table holds now, by primary key."""
        columns = self.columns
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(columns)} FROM {TABLE}")
            found = [dict(zip(columns.values(), row, strict=True)) for row in cursor.fetchall()]
        return {str(row["id"]): row for row in found}


def events_since(number: int) -> list[Seen]:
    found = []
    for row in OutboxMessage.objects.filter(id__gt=number).order_by("id"):
        body = json.loads(bytes(row.payload or b""))
        found.append(Seen(row.event_type, str(row.key), body.get("old"), body.get("new")))
    return found


def by_key(history: list[Seen]) -> dict[str, list[Seen]]:
    found: dict[str, list[Seen]] = defaultdict(list)
    for seen in history:
        found[seen.key].append(seen)
    return dict(found)


def in_one(history: list[Seen]) -> list[Seen]:
    """An upsert may write what it inserted once more: that is the creation of the last."""
    created: dict[str, int] = {}
    found: list[Seen] = []
    for seen in history:
        at = created.get(seen.key)
        if seen.kind == "UPDATE" and at is not None:
            found[at] = found[at]._replace(new=seen.new)
            continue
        if seen.kind == "CREATE":
            created[seen.key] = len(found)
        found.append(seen)
    return found


KEYS = st.integers(1001, 1004)
SOME_KEYS = st.lists(KEYS, max_size=4, unique=True)
BARCODES = st.sampled_from(("a", "b", "c", None))
ROOMS = st.sampled_from((901, 902, None))
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "barcode": BARCODES,
        "note": st.sampled_from(("", "x", "y")),
        "loans": st.integers(0, 3),
        "room_id": ROOMS,
        "home_id": ROOMS,
        "place": st.sampled_from((None, 1, 2)),
    },
)
FILTERS: dict[str, Callable[[list[int]], QuerySet[Copy]]] = {
    "all": lambda _keys: Copy.objects.all(),
    "keys": lambda keys: Copy.objects.filter(pk__in=keys),
    "column": lambda _keys: Copy.objects.filter(loans__gt=0),
    "join": lambda _keys: Copy.objects.filter(room__name="901"),
    "exclusion": lambda _keys: Copy.objects.exclude(home__name="902").distinct(),
    "subquery": lambda keys: Copy.objects.filter(
        loans__in=Copy.objects.filter(pk__in=keys).values("loans")
    ),
    "annotation": lambda keys: Copy.objects.annotate(n=F("loans") + 1).filter(
        Q(n=1) | Q(pk__in=keys)
    ),
}
EXPRESSIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "F()": lambda: {"loans": F("loans") + 1},
    "Case": lambda: {"note": Case(When(loans__gt=1, then=Value("many")), default=F("note"))},
    "Subquery": lambda: {
        "loans": Subquery(Copy.objects.order_by("-loans", "pk").values("loans")[:1]) + 1
    },
    "key": lambda: {"id": 1004},
}


class CaptureMachine(RuleBasedStateMachine):
    """What the outbox holds, against what the observer saw."""

    observer: ClassVar[Observer]

    def __init__(self) -> None:
        super().__init__()
        with transaction.atomic():
            Copy.objects.all().delete()
            Room.objects.all().delete()
            for pk in (901, 902):
                Room.objects.create(pk=pk, name=str(pk))
            self.observer.forget()
            OutboxMessage.objects.all().delete()
        self.blocks: list[transaction.Atomic] = []

    @initialize(chunk=st.sampled_from((1000, 2)))
    def begin(self, chunk: int) -> None:
        """Bulk writes go in one chunk, or in several."""
        bulk.CHUNK = chunk

    def teardown(self) -> None:
        bulk.CHUNK = _CHUNK
        while self.blocks:
            self.leave(undo=True)

    def write(self, door: Callable[[], object], *, upserts: bool = False) -> None:
        """Go through a door, and compare what it left with what the observer saw."""
        seen_before = self.observer.last()
        last = OutboxMessage.objects.order_by("-id").values_list("id", flat=True).first() or 0
        # Alone it is in autocommit: no door needs a transaction of the caller's.
        block: AbstractContextManager[Any] = transaction.atomic() if self.blocks else nullcontext()
        try:
            with block:
                door()
        except IntegrityError:
            assert not list(self.observer.since(seen_before))
        seen = list(self.observer.since(seen_before))
        expected = by_key(in_one(seen) if upserts else seen)
        found = by_key(events_since(last))
        assert found == expected

    @invariant()
    def the_last_event_of_each_key_is_its_row(self) -> None:
        held = {seen.key: seen.new for seen in events_since(0)}
        assert {key: row for key, row in held.items() if row} == self.observer.rows()

    # Transactions.

    @rule()
    def enter(self) -> None:
        """Begin a transaction, or set a savepoint in it."""
        block = transaction.atomic()
        block.__enter__()
        self.blocks.append(block)

    @precondition(lambda self: self.blocks)
    @rule(undo=st.booleans())
    def leave(self, undo: bool) -> None:
        """Commit or roll back the innermost block."""
        error = UndoError() if undo else None
        self.blocks.pop().__exit__(type(error) if error else None, error, None)

    # One row.

    @rule(pk=KEYS, values=VALUES)
    def save(self, pk: int, values: dict[str, Any]) -> None:
        self.write(Copy(pk=pk, **values).save)

    @rule(pk=KEYS, values=VALUES, counts=st.booleans())
    def save_some_fields(self, pk: int, values: dict[str, Any], counts: bool) -> None:
        copy = Copy.objects.filter(pk=pk).first()
        if copy is not None and values:
            copy.note = "not written"
            for name, value in values.items():
                setattr(copy, name, value)
            if counts:
                copy.loans = F("loans") + 1
            self.write(lambda: copy.save(update_fields=[*values, "loans"]))

    @rule(barcode=BARCODES, values=VALUES)
    def update_or_create(self, barcode: str | None, values: dict[str, Any]) -> None:
        if Copy.objects.filter(barcode=barcode).count() < 2:
            self.write(lambda: Copy.objects.update_or_create(values, barcode=barcode))

    @rule(pk=KEYS)
    def delete(self, pk: int) -> None:
        self.write(Copy(pk=pk).delete)

    # Many rows.

    @rule(
        which=st.sampled_from(sorted(FILTERS)),
        keys=SOME_KEYS,
        values=VALUES,
        expression=st.sampled_from((None, *sorted(EXPRESSIONS))),
    )
    def update(
        self, which: str, keys: list[int], values: dict[str, Any], expression: str | None
    ) -> None:
        computed = EXPRESSIONS[expression]() if expression else {}
        self.write(lambda: FILTERS[which](keys).update(**{**values, **computed}))

    @rule(keys=SOME_KEYS, values=VALUES)
    def bulk_update(self, keys: list[int], values: dict[str, Any]) -> None:
        copies = [Copy(pk=pk, **{**values, "loans": F("loans") + pk - 1000}) for pk in keys]
        fields = [name.removesuffix("_id") for name in {**values, "loans": None}]
        self.write(lambda: Copy.objects.bulk_update(copies, fields))

    @rule(
        rows=st.lists(st.tuples(st.one_of(KEYS, st.none()), VALUES), max_size=5),
        conflicts=st.sampled_from(("refuse", "ignore", "id", "barcode")),
    )
    def bulk_create(self, rows: list[tuple[int | None, dict[str, Any]]], conflicts: str) -> None:
        if conflicts in ("id", "barcode"):
            # PostgreSQL refuses to write a row twice in one statement.
            keys = [pk if conflicts == "id" else values.get("barcode") for pk, values in rows]
            rows = [
                row for at, row in enumerate(rows) if keys[at] is None or keys[at] not in keys[:at]
            ]
        options: dict[str, Any] = {
            "refuse": {},
            "ignore": {"ignore_conflicts": True},
        }.get(
            conflicts,
            {
                "update_conflicts": True,
                "unique_fields": [conflicts],
                "update_fields": ["note", "loans"],
            },
        )
        copies = [Copy(pk=pk, **values) for pk, values in rows]
        self.write(
            lambda: Copy.objects.bulk_create(copies, **options),
            upserts="update_conflicts" in options,
        )

    @rule(which=st.sampled_from(sorted(FILTERS)), keys=SOME_KEYS)
    def delete_many(self, which: str, keys: list[int]) -> None:
        self.write(lambda: FILTERS[which](keys).delete())

    @rule(pk=st.sampled_from((901, 902)))
    def replace_room(self, pk: int) -> None:
        """Delete what rows refer to, which Django then clears, and build it anew."""

        def replace() -> None:
            Room.objects.filter(pk=pk).delete()
            Room.objects.create(pk=pk, name=str(pk))

        self.write(replace)


class Form(NamedTuple):
    """A way in which changes are captured."""

    #: What the declaration says; of what is not shown it says so by ``exclude``.
    attributes: dict[str, Any]
    #: Around all examples, once the model is declared.
    installed: Callable[[], AbstractContextManager[Any]] = nullcontext


#: What only the database knows is read again after a save; the rest is believed to be what it stored.
KNOWN = {"exclude": ["twice", "state"]}
FORMS = [pytest.param(Form({}), id="signals"), pytest.param(Form(KNOWN), id="signals, known")]


@contextmanager
def _machine(form: Form, declare: Callable[..., None]) -> Iterator[type[CaptureMachine]]:
    declare(Copy, **form.attributes)
    with form.installed(), Observer(form.attributes.get("exclude", ())) as observer:
        yield type("ObservedMachine", (CaptureMachine,), {"observer": observer})


@pytest.mark.parametrize("form", FORMS)
def test_events_are_the_true_history_of_each_row(
    form: Form, declare: Callable[..., None], holds: Callable[..., None]
) -> None:
    """Each change of a row, by any door, is one event with what the database itself saw."""
    with _machine(form, declare) as machine:
        holds(machine)


def _forget_the_last(patch: pytest.MonkeyPatch) -> None:
    """Of several rows the last has no event."""

    def all_but_one(changes: Sequence[Change], *, using: str) -> None:
        record_changes(changes if len(changes) < 2 else changes[:-1], using=using)

    patch.setattr(bulk, "record_changes", all_but_one)


def _show_the_present_as_old(patch: pytest.MonkeyPatch) -> None:
    """Bulk updates read the rows once, after they have written them."""
    updates = bulk._updates

    def from_new(declarations: Any, _old: Any, new: Any, moved_to: Any) -> list[Change]:
        return updates(declarations, new, new, moved_to)

    patch.setattr(bulk, "_updates", from_new)


def _believe_the_instance(patch: pytest.MonkeyPatch) -> None:
    """What an instance says is shown, whether it was written or not."""

    def as_assigned(declaration: Any, instance: Any, old: Any, _written: Any, **using: Any) -> Any:
        return saved_row(declaration, instance, old, None, **using)

    patch.setattr(hooks, "saved_row", as_assigned)


@pytest.mark.parametrize(
    "defect", [_forget_the_last, _show_the_present_as_old, _believe_the_instance]
)
@pytest.mark.once
def test_the_observer_sees_a_planted_defect(
    defect: Callable[[pytest.MonkeyPatch], None],
    declare: Callable[..., None],
    is_broken: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lost event, a false old and a false new are each noticed."""
    defect(monkeypatch)
    with _machine(Form(KNOWN), declare) as machine:
        is_broken(machine)
