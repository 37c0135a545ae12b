"""Bulk writes of registered models: an event for each row, in a bounded number of statements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from django.db import NotSupportedError, OperationalError, connections, transaction
from django.db.models import Field, Model, Q, QuerySet
from django.db.models.constants import OnConflict
from django.db.models.expressions import RawSQL
from django.db.models.sql import InsertQuery, Query

from folio_events.capture import Change, record_changes
from folio_events.declarations import ModelEvents
from folio_events.rows import Row, known_row, locked_rows, pk_position, written_rows

#: Most rows that are read, written and recorded at a time: what memory holds of a bulk write.
CHUNK = 1000


class Conflict(NamedTuple):
    """What ``bulk_create()`` is to do with instances that exist."""

    action: OnConflict
    update_fields: Sequence[Field[Any, Any]] = ()
    #: By which rows that exist are known.
    unique_fields: Sequence[Field[Any, Any]] = ()


def update(
    queryset: QuerySet[Any],
    values: Mapping[str, Any],
    declarations: Sequence[ModelEvents],
    write: Callable[[QuerySet[Any]], int],
) -> int:
    """Update the rows of a queryset and record what became of each.

    Args:
        queryset: Neither sliced nor combined.
        values: What its fields are set to, expressions included.
        declarations: Of the tables in which the rows stand.
        write: Updates the rows of a queryset; returns how many.

    Returns:
        How many rows were updated.

    Raises:
        NotSupportedError: An expression moves primary keys, or those of inherited tables move.
    """
    using = queryset.db
    # What Django refuses it refuses here, before anything is locked; this asks no database.
    write(queryset.none())
    if not values:
        return 0
    moved_to = _new_pk(queryset.model, values)
    queryset = _without_distinct(queryset)
    plain = _is_plain(queryset.query)
    updated = 0
    with transaction.atomic(using=using, savepoint=False):
        pks = _lock(queryset, plain=plain)
        # What looks at other rows must see them all as they were before.
        whole = not plain or any(_looks_elsewhere(value) for value in values.values())
        for part in _parts(pks, len(pks) if whole else _chunk_size(using)):
            # Others may have changed rows for which this waited, so that they are meant no more.
            held = part if plain else _still_meant(queryset, part)
            old = _read(declarations, held, using)
            updated += write(_only(queryset, held))
            new = _read(declarations, held if moved_to is None else [moved_to], using, written_rows)
            record_changes(_updates(declarations, old, new, moved_to), using=using)
    return updated


def update_batch(
    pks: Sequence[Any],
    declarations: Sequence[ModelEvents],
    write: Callable[[Sequence[Any]], None],
    *,
    using: str,
) -> None:
    """Update rows by primary key, as Django does for ``SET_NULL``, and record what became of each."""
    with transaction.atomic(using=using, savepoint=False):
        for part in _parts(sorted(pks), _chunk_size(using)):
            old = _read(declarations, part, using)
            write(part)
            new = _read(declarations, part, using, written_rows)
            record_changes(_updates(declarations, old, new, None), using=using)


def delete_batch(
    pks: Sequence[Any],
    declaration: ModelEvents,
    write: Callable[[Sequence[Any]], int],
    *,
    using: str,
) -> int:
    """Delete rows of one table by primary key and record each.

    Raises:
        OperationalError: Rows were deleted that nobody has read: they came meanwhile.
    """
    deleted = 0
    with transaction.atomic(using=using, savepoint=False):
        for part in _parts(pks, _chunk_size(using)):
            old = locked_rows(declaration, part, using=using, doomed=True)
            if len(old) < len(part):
                # A read that waited for a deletion does not see the row that came in its place.
                old = locked_rows(declaration, part, using=using, doomed=True)
            count = write(part)
            if count != len(old):
                raise _came_between(declaration.model)
            # Instances may hold a key in another form than the database: "5" for a number.
            keys = map(declaration.model._meta.pk.to_python, part)
            record_changes(
                [Change(declaration, "DELETE", old[pk], None) for pk in keys if pk in old],
                using=using,
            )
            deleted += count
    return deleted


def insert(
    queryset: QuerySet[Any],
    objs: Sequence[Model],
    fields: Sequence[Field[Any, Any]],
    conflict: Conflict | None,
    declarations: Sequence[ModelEvents],
    write: Callable[[Sequence[Model]], list[Any]],
    *,
    batch_size: int | None,
) -> list[Any]:
    """Insert instances as ``bulk_create()`` does, and record what became of each.

    Args:
        queryset: Of their model.
        objs: To be inserted.
        fields: What is written of them.
        conflict: What becomes of those that exist; None lets the database refuse them.
        declarations: Of the model's table.
        write: Inserts instances that do not exist; returns the columns that the database made
            up, by instance.
        batch_size: Most instances of one statement.

    Returns:
        The columns, as ``write`` returns them; none where conflicts are ignored.
    """
    using = queryset.db
    size = _chunk_size(using)
    returned: list[Any] = []
    # Since 6.1 Django opens a transaction for several statements only.
    with transaction.atomic(using=using, savepoint=False):
        for part in _parts(objs, min(size, batch_size or size)):
            if conflict is None:
                columns = write(part)
                _take_over(part, columns)
                record_changes(_creations(declarations, part, using), using=using)
                returned += columns
            elif conflict.action == OnConflict.IGNORE:
                inserted = _insert(queryset, part, fields, conflict)
                _record_new(declarations, [pk for pk, *_ in inserted], using)
            else:
                returned += _upsert(queryset, part, fields, conflict, declarations)
    return returned


def _upsert(
    queryset: QuerySet[Any],
    objs: Sequence[Model],
    fields: Sequence[Field[Any, Any]],
    conflict: Conflict,
    declarations: Sequence[ModelEvents],
) -> list[Any]:
    """Insert what is new first, so that it is known which rows were there and what they held.

    Raises:
        OperationalError: A row came between the two: nobody has seen what it held.
    """
    using, model = queryset.db, queryset.model
    names = [field.attname for field in conflict.unique_fields]
    # Nothing equals NULL: what has one is new each time that it is inserted.
    distinct = not _nulls_conflict(model)
    free = [distinct and any(getattr(obj, name) is None for name in names) for obj in objs]
    others = [obj for obj, is_free in zip(objs, free, strict=True) if not is_free]
    rows = _insert(queryset, others, fields, Conflict(OnConflict.IGNORE))
    new = [pk for pk, *_ in rows]
    if len(new) < len(objs):
        found: QuerySet[Any] = QuerySet(model, using=using).filter(_same(others, names))
        old = _lock(found.exclude(pk__in=new), plain=True)
        before = _read(declarations, old, using)
        rows = _insert(queryset, objs, fields, conflict)
        written = [pk for pk, *_ in rows]
        known = {*new, *old}
        for pk, is_free in zip(written, free, strict=True):
            if pk not in known:
                if not is_free:
                    raise _came_between(model)
                new.append(pk)
        after = _read(declarations, known.intersection(old, written), using, written_rows)
        record_changes(_updates(declarations, before, after, None), using=using)
    _record_new(declarations, new, using)
    return [columns for _, *columns in rows]


def _nulls_conflict(model: type[Model]) -> bool:
    return any(
        getattr(constraint, "nulls_distinct", None) is False
        for constraint in model._meta.constraints
    )


def _same(objs: Sequence[Model], attnames: Sequence[str]) -> Q:
    """The rows that have the values of some instances in unique columns."""
    values = [[getattr(obj, name) for name in attnames] for obj in objs]
    if len(attnames) == 1 and [None] not in values:
        return Q(**{f"{attnames[0]}__in": [value for (value,) in values]})
    each = [Q(**dict(zip(attnames, wanted, strict=True))) for wanted in values]
    return Q(*each, _connector=Q.OR) if each else Q(pk__in=[])


def _insert(
    queryset: QuerySet[Any],
    objs: Sequence[Model],
    fields: Sequence[Field[Any, Any]],
    conflict: Conflict,
) -> list[Any]:
    """Insert instances, some of which may exist.

    Returns:
        Of each row that was written, in the order of the instances, its primary key and then
        the columns that Django asks back after an insert.
    """
    connection = connections[queryset.db]
    if not connection.features.can_return_rows_from_bulk_insert:
        raise NotSupportedError("bulk_create() of registered models needs SQLite 3.35 or newer.")
    meta = queryset.model._meta
    columns = [meta.pk, *meta.db_returning_fields]
    query = InsertQuery(
        queryset.model,
        on_conflict=conflict.action,
        update_fields=conflict.update_fields,
        unique_fields=conflict.unique_fields,
    )
    found: list[Any] = []
    for part in _parts(objs, connection.ops.bulk_batch_size(fields, objs)):
        query.insert_values(fields, part)
        # The compiler's own execute_sql() takes it for certain that each row comes back.
        compiler = query.get_compiler(using=queryset.db)
        compiler.returning_fields = columns
        converters = compiler.get_converters([field.get_col(meta.db_table) for field in columns])
        with connection.cursor() as cursor:
            for statement, parameters in compiler.as_sql():
                cursor.execute(statement, parameters)
                found += compiler.apply_converters(cursor.fetchall(), converters)
    return found


def _take_over(objs: Sequence[Model], returned: Sequence[Any]) -> None:
    """Set what the database made up, which Django does only when all are inserted."""
    for obj, columns in zip(objs, returned, strict=False):
        for field, value in zip(obj._meta.db_returning_fields, columns, strict=True):
            # A key that was given stays in the form in which it was.
            if not field.primary_key or obj.pk is None or hasattr(obj.pk, "resolve_expression"):
                setattr(obj, field.attname, value)


def _creations(
    declarations: Sequence[ModelEvents], objs: Sequence[Model], using: str
) -> list[Change]:
    found: list[Change] = []
    for declaration in declarations:
        known = [known_row(declaration, obj, {}, using=using) for obj in objs]
        rows = [row for row in known if row is not None]
        if len(rows) < len(objs):
            keys = [declaration.model._meta.pk.to_python(obj.pk) for obj in objs]
            held = written_rows(declaration, keys, using=using)
            rows = [held[pk] for pk in keys]
        found += [Change(declaration, "CREATE", None, row) for row in rows]
    return found


def _record_new(declarations: Sequence[ModelEvents], pks: Sequence[Any], using: str) -> None:
    held = _read(declarations, pks, using, written_rows)
    changes = [
        Change(declaration, "CREATE", None, held[declaration][pk])
        for declaration in declarations
        for pk in pks
    ]
    record_changes(changes, using=using)


_Held = dict[ModelEvents, dict[Any, Row]]


def _read(
    declarations: Sequence[ModelEvents],
    pks: Collection[Any],
    using: str,
    rows_of: Callable[..., dict[Any, Row]] = locked_rows,
) -> _Held:
    held: _Held = {declaration: {} for declaration in declarations}
    for part in _parts(list(pks), _chunk_size(using)):
        for declaration, rows in held.items():
            rows.update(rows_of(declaration, part, using=using))
    return held


def _updates(
    declarations: Sequence[ModelEvents], old: _Held, new: _Held, moved_to: Any | None
) -> list[Change]:
    found: list[Change] = []
    for declaration in declarations:
        for pk, before in old[declaration].items():
            after = new[declaration].get(pk if moved_to is None else moved_to)
            at = pk_position(declaration)
            if after is not None and after[at] != before[at]:
                # Under another key it is another row.
                found.append(Change(declaration, "DELETE", before, None))
                found.append(Change(declaration, "CREATE", None, after))
            elif after is not None:
                found.append(Change(declaration, "UPDATE", before, after))
    return found


def _lock(queryset: QuerySet[Any], *, plain: bool) -> list[Any]:
    """Lock the rows of a queryset, in one order everywhere; returns their primary keys."""
    if not plain:
        # Rows of other tables stay free, and FOR UPDATE goes with neither DISTINCT nor GROUP BY.
        rows: QuerySet[Any] = QuerySet(queryset.model, using=queryset.db)
        queryset = rows.filter(pk__in=queryset.order_by().values("pk"))
    locked = queryset.order_by("pk").select_for_update(no_key=True)
    locked.query.standard_ordering = True  # whatever reverse() said
    return list(locked.values_list("pk", flat=True))


def _still_meant(queryset: QuerySet[Any], pks: Sequence[Any]) -> list[Any]:
    found = queryset.filter(pk__in=pks).order_by().values_list("pk", flat=True)
    return list(dict.fromkeys(found))  # a join repeats them


def _only(queryset: QuerySet[Any], pks: Sequence[Any]) -> QuerySet[Any]:
    """A queryset's annotations for rows that are locked: they were meant, and are not asked again."""
    rows = queryset.order_by()
    rows.query.clear_where()
    rows.query.reset_refcounts({rows.query.get_initial_alias(): 1})
    return rows.filter(pk__in=pks)


def _without_distinct(queryset: QuerySet[Any]) -> QuerySet[Any]:
    # Django's update of one table takes no notice of it, not even of distinct("title").
    if queryset.query.distinct and len(_tables(queryset.query)) <= 1:
        queryset = queryset.all()
        queryset.query.distinct, queryset.query.distinct_fields = False, ()
    return queryset


def _tables(query: Query) -> list[str]:
    return [alias for alias, count in query.alias_refcount.items() if count]


def _is_plain(query: Query) -> bool:
    return (
        len(_tables(query)) <= 1
        and not query.annotations
        and not query.distinct
        and not query.extra_tables
        and not any(isinstance(part, Query) for part in _parts_of(query.where))
    )


def _looks_elsewhere(value: Any) -> bool:
    return any(isinstance(part, (Query, QuerySet, RawSQL)) for part in _parts_of(value))


def _parts_of(expression: Any) -> Iterator[Any]:
    yield expression
    if isinstance(expression, Q):
        for child in expression.children:
            yield from _parts_of(child[1] if isinstance(child, tuple) else child)
    elif hasattr(expression, "get_source_expressions"):
        for part in (*expression.get_source_expressions(), getattr(expression, "rhs", None)):
            yield from _parts_of(part)


def _new_pk(model: type[Model], values: Mapping[str, Any]) -> Any | None:
    meta = model._meta
    for name, value in values.items():
        field = meta.get_field(name)
        if not getattr(field, "primary_key", False):
            continue
        if hasattr(value, "resolve_expression") or meta.parents:
            raise NotSupportedError(
                f"The primary keys of {meta.label}, whose changes are recorded, cannot be moved by "
                "an expression, nor in inherited tables: nobody could tell which row became "
                "which. Set a value, row by row, or insert the rows anew."
            )
        return meta.pk.to_python(getattr(value, "pk", value))
    return None


def _came_between(model: type[Model]) -> OperationalError:
    return OperationalError(
        f"Rows of {model._meta.label} came while they were being written, and nobody has seen what "
        "they held. Nothing was written; try again."
    )


def _chunk_size(using: str) -> int:
    # Half: a statement has other parameters beside the keys.
    most = connections[using].features.max_query_params or 2 * CHUNK
    return min(CHUNK, most // 2)


def _parts(items: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(items), max(size, 1)):
        yield items[start : start + size]
