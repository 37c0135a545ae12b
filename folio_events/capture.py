"""What a model write means: the row before, the row after, and the outbox row of the change."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import format_number
from django.db.models import Field, Model, QuerySet
from django.utils import timezone

from folio_events import outbox
from folio_events.declarations import ModelEvents, events
from folio_events.encoding import first_unencodable
from folio_events.exceptions import EncodingError

#: Field attname to Python value, as the database holds it.
Row = dict[str, Any]


def captured_fields(declaration: ModelEvents) -> list[Field[Any, Any]]:
    """The fields that are read before and after a change, without repeats."""
    meta = declaration.model._meta
    if declaration.serializer_class is not None:
        return list(meta.concrete_fields)
    wanted = [meta.pk, declaration.key_field, *declaration.shown_fields.values()]
    return list({field.attname: field for field in wanted}.values())


@dataclass(frozen=True, slots=True)
class _LockedRead:
    """The statement that reads one row by primary key under lock, with its converters."""

    sql: str
    attnames: tuple[str, ...]
    converters: dict[int, Any]

    @classmethod
    def compile(
        cls, declaration: ModelEvents, pk: object, connection: BaseDatabaseWrapper
    ) -> _LockedRead:
        fields = captured_fields(declaration)
        attnames = tuple(field.attname for field in fields)
        # FOR UPDATE would block inserts of rows that refer to this one. No manager: it may filter.
        rows: QuerySet[Model] = QuerySet(declaration.model, using=connection.alias)
        queryset = (
            rows.select_for_update(no_key=True).filter(pk=pk).order_by().values_list(*attnames)
        )
        compiler = queryset.query.get_compiler(connection.alias)
        sql, _parameters = compiler.as_sql()
        converters = compiler.get_converters([column[0] for column in compiler.select])
        return cls(sql, attnames, converters)

    def row(
        self, pk: object, pk_field: Field[Any, Any], connection: BaseDatabaseWrapper
    ) -> Row | None:
        with connection.cursor() as cursor:
            cursor.execute(self.sql, [pk_field.get_db_prep_value(pk, connection)])
            found = cursor.fetchone()
        if found is None:
            return None
        values = list(found)
        for position, (converters, expression) in self.converters.items():
            for convert in converters:
                values[position] = convert(values[position], expression, connection)
        return dict(zip(self.attnames, values, strict=True))


_reads: dict[tuple[ModelEvents, str, str], _LockedRead] = {}


def locked_row(declaration: ModelEvents, pk: object, *, using: str) -> Row | None:
    """Read what the database holds of a row and keep others from changing it.

    Raw, since the same through a queryset costs three times as much.

    Returns:
        The captured fields, or None when there is no such row.
    """
    connection = connections[using]
    place = (declaration, using, connection.vendor)
    read = _reads.get(place)
    if read is None:
        read = _reads[place] = _LockedRead.compile(declaration, pk, connection)
    return read.row(pk, declaration.model._meta.pk, connection)


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
    row: Row = {}
    for field in captured_fields(declaration):
        written = (
            update_fields is None or field.name in update_fields or field.attname in update_fields
        )
        if not written and old is not None:
            row[field.attname] = old[field.attname]
            if not field.generated:
                continue
        value = getattr(instance, field.attname)
        if field.generated or hasattr(value, "resolve_expression"):
            again = locked_row(declaration, instance.pk, using=using)
            if again is not None:
                return again
        row[field.attname] = _as_stored(field, value, connections[using])
    return row


def _as_stored(field: Field[Any, Any], value: Any, connection: BaseDatabaseWrapper) -> Any:
    # Instances hold whatever was assigned: "5" for a number, 1.239 for two decimal places.
    if value is None or isinstance(field, models.FileField):
        return value
    if isinstance(field, models.JSONField):
        return json.loads(json.dumps(value, cls=field.encoder), cls=field.decoder)
    value = field.to_python(value)
    if isinstance(field, models.DecimalField):
        with localcontext() as context:
            # For SQLite Django rounds, half to even; PostgreSQL itself rounds half up.
            if connection.vendor == "postgresql":
                context.rounding = ROUND_HALF_UP
            return Decimal(format_number(value, field.max_digits, field.decimal_places) or 0)
    if isinstance(field, models.DateTimeField) and connection.timezone is not None:
        if timezone.is_naive(value):
            value = timezone.make_aware(value, timezone.get_default_timezone())
        return value.astimezone(connection.timezone)
    return value


def record_change(
    declaration: ModelEvents, kind: str, old: Row | None, new: Row | None, *, using: str
) -> None:
    """Append the outbox row of one change, in the transaction of the change.

    Args:
        declaration: Of the model.
        kind: Event type.
        old: The row before, or None.
        new: The row after, or None.
        using: Database alias of the change.

    Raises:
        EncodingError: A value has no JSON form; names model and field.
        MissingTenantError: Tenancy is on and nobody names a tenant.
    """
    current = new if new is not None else old
    if current is None or (declaration.skip_unchanged and old == new):
        return
    key = current[declaration.key_field.attname]
    payload = {
        "old": render(declaration, old, using=using),
        "new": render(declaration, new, using=using),
    }
    event = outbox.new_event(declaration.topic, kind, None if key is None else str(key), payload)
    try:
        row = outbox.make_row(event, declaration.dialect)
    except EncodingError as error:
        raise EncodingError(_refusal(declaration, payload, error)) from error
    shared = not declaration.key_is_primary_key or events.shares_topic(declaration)
    if declaration.ordered and shared and event.key is not None:
        outbox.lock_key(f"{event.topic}\0{event.tenant}", event.key, using=using)
    outbox.append([row], using=using)


def render(declaration: ModelEvents, row: Row | None, *, using: str) -> dict[str, Any] | None:
    """Show a row as its declaration says: a dict of field name to value."""
    if row is None:
        return None
    if declaration.serializer_class is None:
        return {name: row[field.attname] for name, field in declaration.shown_fields.items()}
    instance = declaration.model.from_db(using, list(row), list(row.values()))
    return dict(declaration.serializer_class(instance).data)


def _refusal(declaration: ModelEvents, payload: dict[str, Any], error: EncodingError) -> str:
    for state in (payload["new"], payload["old"]):
        found = first_unencodable(state) if state is not None else None
        if found is not None:
            name, reason = found
            return (
                f"The write of {declaration.model._meta.label} is refused: field {name!r} has no "
                f"JSON form: {reason}. Leave the field out of {declaration}, or give it a serializer_class."
            )
    return f"The write of {declaration.model._meta.label} is refused: {error}."
