"""The one place that wraps what Django gives no signal for, on registered models only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.db import router, transaction
from django.db.models import Model, QuerySet
from django.db.models.deletion import Collector
from django.db.models.sql import DeleteQuery, UpdateQuery

from folio_events import bulk
from folio_events.capture import Change, record_changes
from folio_events.declarations import ModelEvents, events
from folio_events.rows import Row, locked_row, saved_row
from folio_events.trigger_context import suppressed as _suppressed


@dataclass(slots=True)
class _Save:
    """A ``save_base()`` that is running."""

    instance: Model
    using: str
    declarations: Sequence[ModelEvents]
    #: What the database held before the first table was written, by declaration.
    old: dict[ModelEvents, Row | None] = field(default_factory=dict)
    #: Whether a table had the row already, by the table's model.
    updated: dict[type[Model], bool] = field(default_factory=dict)


_saving: ContextVar[_Save | None] = ContextVar("folio_events_saving", default=None)


class _Suppression:
    def __enter__(self) -> None:
        self._token = _suppressed.set(True)

    def __exit__(self, *_error: object) -> None:
        _suppressed.reset(self._token)

    def __call__(self, function: Any) -> Any:
        # A block of its own for each call: calls may overlap.
        if iscoroutinefunction(function):

            @functools.wraps(function)
            async def suppressing(*args: Any, **kwargs: Any) -> Any:
                with _Suppression():
                    return await function(*args, **kwargs)
        else:

            @functools.wraps(function)
            def suppressing(*args: Any, **kwargs: Any) -> Any:
                with _Suppression():
                    return function(*args, **kwargs)

        return suppressing


def suppress_events() -> _Suppression:
    """Record no event for model writes in a block or a function, as when loading fixtures."""
    return _Suppression()


def _recorded(model: type[Model]) -> Sequence[ModelEvents]:
    """The declarations whose events a write of a model's rows leaves here and now."""
    return () if _suppressed.get() else events.find_all(model)


#: What was there before ``install()``, by class and name; None where it was inherited.
_originals: dict[tuple[type[Any], str], Any] = {}


def install() -> None:
    """Capture the writes of all registered models; may be called again after a registration."""
    for declaration in events:
        model = declaration.model
        # A model whose parent is captured inherits the wrapper.
        if not hasattr(model.save_base, "_folio_events"):
            _wrap(model, "save_base", _wrap_save_base)
            _wrap(model, "_save_table", _wrap_save_table)
    if (QuerySet, "update") not in _originals:
        # All models have these in common; those that are not registered pass straight through.
        _wrap(QuerySet, "update", _wrap_update)
        _wrap(QuerySet, "bulk_update", _wrap_bulk_update)
        _wrap(QuerySet, "_batched_insert", _wrap_batched_insert)
        _wrap(UpdateQuery, "update_batch", _wrap_update_batch)
        _wrap(DeleteQuery, "delete_batch", _wrap_delete_batch)
        _wrap(Collector, "can_fast_delete", _wrap_can_fast_delete)


def uninstall() -> None:
    """Undo ``install()``."""
    for (owner, name), original in _originals.items():
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)
    _originals.clear()


def _wrap(owner: type[Any], name: str, wrapper: Callable[[Callable[..., Any]], Any]) -> None:
    _originals[owner, name] = owner.__dict__.get(name)
    original = getattr(owner, name)
    wrapped = functools.wraps(original)(wrapper(original))
    wrapped._folio_events = True  # type: ignore[attr-defined]  # noqa: SLF001 - our own mark
    setattr(owner, name, wrapped)


def _wrap_update(original: Callable[..., int]) -> Callable[..., int]:
    def update(self: QuerySet[Any], **kwargs: Any) -> int:
        declarations = _recorded(self.model)
        if not declarations or self.query.is_sliced or self.query.combinator:
            return original(self, **kwargs)
        self._for_write = True  # type: ignore[attr-defined]  # as Django's own
        updated = bulk.update(self, kwargs, declarations, lambda rows: original(rows, **kwargs))
        self._result_cache = None
        return updated

    return update


def _wrap_bulk_update(original: Callable[..., int]) -> Callable[..., int]:
    def bulk_update(
        self: QuerySet[Any], objs: Any, fields: Any, batch_size: int | None = None
    ) -> int:
        # Each batch is one update(), which would repeat all its values for each of its chunks.
        if _recorded(self.model):
            batch_size = bulk.CHUNK if batch_size is None else min(batch_size, bulk.CHUNK)
        return original(self, objs, fields, batch_size)

    return bulk_update


def _wrap_batched_insert(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    def batched_insert(
        self: QuerySet[Any],
        objs: Sequence[Model],
        fields: Sequence[Any],
        batch_size: int | None,
        on_conflict: Any = None,
        update_fields: Sequence[Any] | None = None,
        unique_fields: Sequence[Any] | None = None,
    ) -> list[Any]:
        def write(part: Sequence[Model]) -> list[Any]:
            return original(
                self, part, fields, batch_size, on_conflict, update_fields, unique_fields
            )

        declarations = _recorded(self.model)
        if not declarations:
            return write(objs)
        conflict = on_conflict and bulk.Conflict(
            on_conflict, update_fields or (), unique_fields or ()
        )
        return bulk.insert(self, objs, fields, conflict, declarations, write, batch_size=batch_size)

    return batched_insert


def _wrap_update_batch(original: Callable[..., None]) -> Callable[..., None]:
    def update_batch(
        self: UpdateQuery, pk_list: Sequence[Any], values: dict[str, Any], using: str
    ) -> None:
        declarations = _recorded(_model_of(self))
        if declarations:
            bulk.update_batch(
                pk_list,
                declarations,
                lambda part: original(self.chain(), part, values, using),
                using=using,
            )
        else:
            original(self, pk_list, values, using)

    return update_batch


def _wrap_delete_batch(original: Callable[..., int]) -> Callable[..., int]:
    def delete_batch(self: DeleteQuery, pk_list: Sequence[Any], using: str) -> int:
        # Django deletes inherited tables one by one: each has its own event.
        model = _model_of(self)
        for declaration in _recorded(model):
            if declaration.model is model:
                return bulk.delete_batch(
                    pk_list, declaration, lambda part: original(self, part, using), using=using
                )
        return original(self, pk_list, using)

    return delete_batch


def _wrap_can_fast_delete(original: Callable[..., bool]) -> Callable[..., bool]:
    def can_fast_delete(self: Collector, objs: Any, from_field: Any = None) -> bool:
        # Such a deletion is one statement that says nothing of the rows it meets.
        model = objs._meta.model if hasattr(objs, "_meta") else getattr(objs, "model", None)
        if model is not None and _recorded(model):
            return False
        return original(self, objs, from_field)

    return can_fast_delete


def _model_of(query: UpdateQuery | DeleteQuery) -> type[Model]:
    return query.get_meta().concrete_model  # type: ignore[return-value]  # None for abstract ones


def _wrap_save_base(original: Callable[..., None]) -> Callable[..., None]:
    def save_base(
        self: Model,
        raw: bool = False,
        force_insert: bool | tuple[type[Model], ...] = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Collection[str] | None = None,
    ) -> None:
        using = using or router.db_for_write(type(self), instance=self)
        declarations = () if raw else _recorded(type(self))
        # In autocommit Django would commit the row before anybody could write its event. In a
        # transaction it takes care itself that no row stays whose _save_table() failed.
        alone = bool(declarations) and not transaction.get_connection(using).in_atomic_block
        token = _saving.set(_Save(self, using, declarations) if declarations else None)
        try:
            if alone:
                with transaction.atomic(using=using):
                    original(self, raw, force_insert, force_update, using, update_fields)
            else:
                original(self, raw, force_insert, force_update, using, update_fields)
        finally:
            _saving.reset(token)

    return save_base


def _wrap_save_table(original: Callable[..., bool]) -> Callable[..., bool]:
    def save_table(
        self: Model,
        raw: bool = False,
        cls: type[Model] | None = None,
        force_insert: bool = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Collection[str] | None = None,
    ) -> bool:
        if raw:
            declared = events.find(cls or type(self))
            unseen = declared and declared.capture == "trigger" and not declared.fixtures
            # loaddata calls Model.save_base() past the model's own.
            with suppress_events() if unseen else nullcontext():
                return _save_fixture(
                    self,
                    lambda insert: original(
                        self, raw, cls, insert, force_update, using, update_fields
                    ),
                    force_insert=force_insert,
                    force_update=force_update,
                    using=using or router.db_for_write(type(self), instance=self),
                )
        save = _saving.get()
        if save is None or save.instance is not self:
            return original(self, raw, cls, force_insert, force_update, using, update_fields)
        table = cls or type(self)
        if not save.updated:
            # Here and not before save_base(): a pre_save handler may write the row.
            _read_old(save, table, force_insert=force_insert, force_update=force_update)
            # A row that came since must not be overwritten: nobody has read its old.
            if table is self._meta.concrete_model and not (force_update or update_fields):
                force_insert = force_insert or not any(save.old.values())
        updated = original(self, raw, cls, force_insert, force_update, using, update_fields)
        save.updated[table] = updated
        # With inherited tables this runs once a table; the events belong to the last. Not
        # after save_base(): a post_save handler may save again, and that event is second.
        if table is self._meta.concrete_model:
            _record(save, update_fields)
        return updated

    return save_table


def _save_fixture(
    instance: Model,
    save_table: Callable[[bool], bool],
    *,
    force_insert: bool,
    force_update: bool,
    using: str,
) -> bool:
    for declaration in _recorded(type(instance)):
        # Of inherited tables a fixture writes one at a time.
        if declaration.fixtures and declaration.model is instance._meta.concrete_model:
            break
    else:
        return save_table(force_insert)
    with transaction.atomic(using=using, savepoint=False):
        old = None if instance.pk is None else locked_row(declaration, instance.pk, using=using)
        updated = save_table(force_insert or (old is None and not force_update))
        # The instance knows nothing of its parents' tables.
        new = locked_row(declaration, instance.pk, using=using)
        kind = "UPDATE" if updated else "CREATE"
        record_changes([Change(declaration, kind, old, new)], using=using)
    return updated


def _read_old(save: _Save, table: type[Model], *, force_insert: bool, force_update: bool) -> None:
    instance = save.instance
    # Django's own rule: a new instance whose key has a default is not tried as an update.
    inserts = force_insert or (
        not force_update
        and instance._state.adding
        and all(f.has_default() or f.has_db_default() for f in table._meta.pk_fields)
    )
    alone = table is instance._meta.concrete_model
    for declaration in save.declarations:
        pk = getattr(instance, declaration.model._meta.pk.attname)
        new = pk is None or (inserts and alone)
        save.old[declaration] = None if new else locked_row(declaration, pk, using=save.using)


def _record(save: _Save, update_fields: Collection[str] | None) -> None:
    using = save.using
    changes: list[Change] = []
    for declaration, old in save.old.items():
        updated = save.updated[declaration.model]
        written = update_fields if updated else None
        new = saved_row(declaration, save.instance, old, written, using=using)
        changes.append(Change(declaration, "UPDATE" if updated else "CREATE", old, new))
    record_changes(changes, using=using)
