"""What the database holds of a row, before and after a write."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import format_number
from django.db.models import Field, Model, QuerySet
from django.utils import timezone

from folio_events.declarations import ModelEvents

#: Python values, in the order of the declaration's ``captured_fields``.
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _LockedRead:
    """The statement that reads one row by primary key under lock, with its converters."""

    sql: str
    prepare: Callable[[Any, BaseDatabaseWrapper], Any]
    converters: tuple[tuple[int, tuple[Callable[..., Any], ...], Any], ...]

    @classmethod
    def compile(
        cls, declaration: ModelEvents, pk: object, connection: BaseDatabaseWrapper, doomed: bool
    ) -> _LockedRead:
        query = _locked(declaration, connection.alias, doomed=doomed).filter(pk=pk).query
        compiler = query.get_compiler(connection.alias)
        sql, _parameters = compiler.as_sql()
        found = compiler.get_converters([column[0] for column in compiler.select])
        converters = tuple((at, tuple(convert), column) for at, (convert, column) in found.items())
        return cls(sql, declaration.model._meta.pk.get_db_prep_value, converters)

    def row(self, pk: object, connection: BaseDatabaseWrapper) -> Row | None:
        with connection.cursor() as cursor:
            cursor.execute(self.sql, (self.prepare(pk, connection),))
            found = cursor.fetchone()
        if found is None or not self.converters:
            return found  # type: ignore[no-any-return]  # Django's cursors are untyped
        values = list(found)
        for at, converters, column in self.converters:
            for convert in converters:
                values[at] = convert(values[at], column, connection)
        return tuple(values)


_reads: dict[tuple[ModelEvents, str, str, bool], _LockedRead] = {}


def _all(declaration: ModelEvents, using: str) -> QuerySet[Model, Row]:
    # No manager: it may filter.
    rows: QuerySet[Model] = QuerySet(declaration.model, using=using)
    attnames = [field.attname for field in declaration.captured_fields]
    return rows.order_by().values_list(*attnames)


def _locked(declaration: ModelEvents, using: str, *, doomed: bool = False) -> QuerySet[Model, Row]:
    # FOR UPDATE blocks inserts of rows that refer to these, as a deletion does: to take that lock
    # only then would be a circle with who refers to a row and then writes it.
    return _all(declaration, using).select_for_update(no_key=not doomed)


def locked_row(
    declaration: ModelEvents, pk: object, *, using: str, doomed: bool = False
) -> Row | None:
    """Read what the database holds of a row and keep others from changing it.

    Raw, since the same through a queryset costs three times as much.

    Returns:
        The captured fields, or None when there is no such row.
    """
    connection = connections[using]
    place = (declaration, using, connection.vendor, doomed)
    read = _reads.get(place)
    if read is None:
        read = _reads[place] = _LockedRead.compile(declaration, pk, connection, doomed)
    return read.row(pk, connection)


def locked_rows(
    declaration: ModelEvents, pks: Collection[Any], *, using: str, doomed: bool = False
) -> dict[Any, Row]:
    """Read several rows as ``locked_row`` does, in one statement.

    Args:
        declaration: Of their model.
        pks: Not more than the database takes parameters.
        using: Database alias.
        doomed: Whether they are about to be deleted.

    Returns:
        The rows that exist, by primary key, which is the first captured field.
    """
    at = pk_position(declaration)
    if len(pks) == 1:
        (pk,) = pks
        found = locked_row(declaration, pk, using=using, doomed=doomed)
        return {} if found is None else {found[at]: found}
    # In one order everywhere, so that two bulk writes do not wait for each other.
    rows = _locked(declaration, using, doomed=doomed).filter(pk__in=pks).order_by("pk")
    return {row[at]: row for row in rows}


def written_rows(declaration: ModelEvents, pks: Collection[Any], *, using: str) -> dict[Any, Row]:
    """Read several rows that this transaction has written: nobody else can change them.

    To lock them once more would write each of them once more; of one row that is cheaper than a
    queryset.
    """
    if len(pks) == 1:
        return locked_rows(declaration, pks, using=using)
    at = pk_position(declaration)
    return {row[at]: row for row in _all(declaration, using).filter(pk__in=pks)}


def pk_position(declaration: ModelEvents) -> int:
    """Where in a row the primary key stands."""
    return declaration.captured_fields.index(declaration.model._meta.pk)


def saved_row(
    declaration: ModelEvents,
    instance: Model,
    old: Row | None,
    update_fields: Collection[str] | None,
    *,
    using: str,
) -> Row:
    """Say what the database holds of a row that was just saved.

    What the save did not write comes from ``old``; what only the database knows, such as
    the value of an ``F()`` expression or a generated field, is read again.
    """
    kept: dict[str, Any] = {}
    if update_fields is not None and old is not None:
        kept = {
            field.attname: old[at]
            for at, field in enumerate(declaration.captured_fields)
            if field.name not in update_fields and field.attname not in update_fields
        }
    row = known_row(declaration, instance, kept, using=using)
    return _read_again(declaration, instance, using) if row is None else row


def known_row(
    declaration: ModelEvents, instance: Model, kept: Mapping[str, Any], *, using: str
) -> Row | None:
    """What the database holds of a row that was just written, as far as its instance knows.

    Args:
        declaration: Of the model.
        instance: What was written.
        kept: What was not written, by attname: of that the instance may hold anything.
        using: Database alias.

    Returns:
        None where only the database knows.
    """
    plan = _plans.get(declaration) or _make_plan(declaration)
    if plan.has_generated:
        return None
    state = instance.__dict__
    row: list[Any] = []
    for attname, exact, stored_as in plan.columns:
        if kept and attname in kept:
            row.append(kept[attname])
            continue
        # A deferred field is not in the state of the instance.
        value = state[attname] if attname in state else getattr(instance, attname)
        if type(value) is not exact and value is not None:
            if hasattr(value, "resolve_expression"):
                return None
            value = stored_as(value, using)
        row.append(value)
    return tuple(row)


def _read_again(declaration: ModelEvents, instance: Model, using: str) -> Row:
    row = locked_row(declaration, instance.pk, using=using)
    if row is None:
        raise ObjectDoesNotExist(f"{declaration.model._meta.label}: what was just saved is gone.")
    return row


_Stored = Callable[[Any, str], Any]
#: Of fields of exactly these classes, a value of this type is stored as it is.
_EXACT: dict[type[Field[Any, Any]], type] = {
    models.CharField: str,
    models.TextField: str,
    models.SlugField: str,
    models.EmailField: str,
    models.URLField: str,
    models.IntegerField: int,
    models.BigIntegerField: int,
    models.SmallIntegerField: int,
    models.PositiveIntegerField: int,
    models.PositiveBigIntegerField: int,
    models.PositiveSmallIntegerField: int,
    models.AutoField: int,
    models.BigAutoField: int,
    models.SmallAutoField: int,
    models.BooleanField: bool,
    models.UUIDField: uuid.UUID,
    models.DateField: datetime.date,
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the rows of a declaration are read off instances."""

    #: Of each captured field: the name, the type whose values are stored as they are, and how
    #: others are stored.
    columns: list[tuple[str, type | None, _Stored]]
    has_generated: bool


_plans: dict[ModelEvents, _Plan] = {}


def _make_plan(declaration: ModelEvents) -> _Plan:
    fields = declaration.captured_fields
    plan = _Plan(
        [(f.attname, _EXACT.get(_target(f).__class__), _stored_as(f)) for f in fields],
        any(field.generated for field in fields),
    )
    _plans[declaration] = plan
    return plan


def _target(field: Field[Any, Any]) -> Field[Any, Any]:
    while isinstance(field, models.ForeignKey):
        field = field.target_field
    return field


def _stored_as(field: Field[Any, Any]) -> _Stored:
    """How a value that was assigned to a field reads when it comes back from the database."""
    # Instances hold whatever was assigned: "5" for a number, 1.239 for two decimal places.
    if isinstance(field, models.FileField):
        return lambda value, _using: str(value)
    if isinstance(field, models.JSONField):
        return lambda value, _using: json.loads(
            json.dumps(value, cls=field.encoder), cls=field.decoder
        )
    if isinstance(field, models.DecimalField):
        return lambda value, using: _decimal(field, value, using)
    if isinstance(field, models.DateTimeField):
        return lambda value, using: _moment(field, value, using)
    if field.get_internal_type() == "ArrayField":
        element = _stored_as(field.base_field)  # type: ignore[attr-defined]  # of arrays
        return lambda value, using: [
            None if item is None else element(item, using) for item in field.to_python(value)
        ]
    return lambda value, _using: field.to_python(value)


def _decimal(field: models.DecimalField[Any, Any], value: Any, using: str) -> Decimal | None:
    places, digits = field.decimal_places, field.max_digits
    if (
        type(value) is Decimal
        and value.as_tuple().exponent == -places
        and value.adjusted() < digits - places
    ):
        return value
    value = field.to_python(value)
    with localcontext() as context:
        # For SQLite Django rounds, half to even; PostgreSQL itself rounds half up.
        if connections[using].vendor == "postgresql":
            context.rounding = ROUND_HALF_UP
        return Decimal(format_number(value, digits, places) or 0)


def _moment(field: models.DateTimeField[Any, Any], value: Any, using: str) -> datetime.datetime:
    zone = connections[using].timezone
    if type(value) is datetime.datetime and value.tzinfo is zone is not None:
        return value
    moment: datetime.datetime = field.to_python(value)
    if zone is None:
        return moment
    if timezone.is_naive(moment):
        moment = timezone.make_aware(moment, timezone.get_default_timezone())
    return moment.astimezone(zone)
