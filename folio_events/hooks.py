"""The one place that wraps what Django gives no signal for, on registered models only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from django.db import router, transaction
from django.db.models import Model
from django.db.models.signals import post_delete, pre_delete

from folio_events import capture
from folio_events.declarations import ModelEvents, events


@dataclass(slots=True)
class _Save:
    """A ``save_base()`` that is running."""

    instance: Model
    using: str
    declarations: Sequence[ModelEvents]
    #: What the database held before the first table was written, by declaration.
    old: dict[ModelEvents, capture.Row | None] = field(default_factory=dict)
    #: Whether a table had the row already, by the table's model.
    updated: dict[type[Model], bool] = field(default_factory=dict)


_saving: ContextVar[_Save | None] = ContextVar("folio_events_saving", default=None)
_suppressed: ContextVar[bool] = ContextVar("folio_events_suppressed", default=False)
#: Where a deletion that is running keeps, on its instance, what the database held.
_DELETED_ROW = "_folio_events_deleted_row"


@contextmanager
def suppress_events() -> Iterator[None]:
    """Record no event for model writes in this block, as when loading fixtures."""
    token = _suppressed.set(True)
    try:
        yield
    finally:
        _suppressed.reset(token)


@dataclass(slots=True)
class _Installed:
    originals: dict[type[Model], dict[str, Any]] = field(default_factory=dict)
    senders: set[type[Model]] = field(default_factory=set)


_installed = _Installed()


def install() -> None:
    """Capture the writes of all registered models; may be called again after a registration."""
    for declaration in events:
        model = declaration.model
        # A model whose parent is captured inherits the wrapper.
        if not hasattr(model.save_base, "_folio_events"):
            _installed.originals[model] = {
                name: model.__dict__.get(name) for name in ("save_base", "_save_table")
            }
            model.save_base = _wrap_save_base(model.save_base)  # type: ignore[method-assign]
            model._save_table = _wrap_save_table(model._save_table)  # type: ignore[attr-defined]  # noqa: SLF001
        # A deletion through a proxy is announced under the proxy's name.
        for sender in (model, *_proxies(model)):
            if sender not in _installed.senders:
                pre_delete.connect(_before_delete, sender=sender, dispatch_uid="folio_events")
                post_delete.connect(_after_delete, sender=sender, dispatch_uid="folio_events")
                _installed.senders.add(sender)


def uninstall() -> None:
    """Undo ``install()``."""
    for model, originals in _installed.originals.items():
        for name, original in originals.items():
            if original is None:
                delattr(model, name)
            else:
                setattr(model, name, original)
    for sender in _installed.senders:
        pre_delete.disconnect(_before_delete, sender=sender, dispatch_uid="folio_events")
        post_delete.disconnect(_after_delete, sender=sender, dispatch_uid="folio_events")
    _installed.originals.clear()
    _installed.senders.clear()


def _proxies(model: type[Model]) -> Iterator[type[Model]]:
    for subclass in model.__subclasses__():
        if subclass._meta.proxy:
            yield subclass
            yield from _proxies(subclass)


def _wrap_save_base(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def save_base(
        self: Model,
        raw: bool = False,
        force_insert: bool | tuple[type[Model], ...] = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Collection[str] | None = None,
    ) -> None:
        using = using or router.db_for_write(type(self), instance=self)
        declarations = [] if raw or _suppressed.get() else events.find_all(type(self))
        # In autocommit Django would commit the row before anybody could write its event. In a
        # transaction it takes care itself that no row stays whose _save_table() failed.
        alone = bool(declarations) and not transaction.get_connection(using).in_atomic_block
        token = _saving.set(_Save(self, using, declarations) if declarations else None)
        try:
            with transaction.atomic(using=using) if alone else nullcontext():
                original(self, raw, force_insert, force_update, using, update_fields)
        finally:
            _saving.reset(token)

    save_base._folio_events = True  # type: ignore[attr-defined]  # noqa: SLF001 - our own mark
    return save_base


def _wrap_save_table(original: Callable[..., bool]) -> Callable[..., bool]:
    @functools.wraps(original)
    def save_table(
        self: Model,
        raw: bool = False,
        cls: type[Model] | None = None,
        force_insert: bool = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Collection[str] | None = None,
    ) -> bool:
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
        save.old[declaration] = (
            None if new else capture.locked_row(declaration, pk, using=save.using)
        )


def _record(save: _Save, update_fields: Collection[str] | None) -> None:
    using = save.using
    for declaration, old in save.old.items():
        updated = save.updated[declaration.model]
        written = update_fields if updated else None
        new = capture.saved_row(declaration, save.instance, old, written, using=using)
        kind = "UPDATE" if updated else "CREATE"
        capture.record_change(declaration, kind, old, new, using=using)


def _declaration_of(instance: Model) -> ModelEvents | None:
    return None if _suppressed.get() else events.find(type(instance))


def _before_delete(sender: type[Model], instance: Model, using: str, **_kwargs: object) -> None:
    declaration = _declaration_of(instance)
    if declaration is not None:
        # A read that waited for a deletion does not see the row that came in its place: look again.
        instance.__dict__[_DELETED_ROW] = capture.locked_row(
            declaration, instance.pk, using=using
        ) or capture.locked_row(declaration, instance.pk, using=using)


def _after_delete(sender: type[Model], instance: Model, using: str, **_kwargs: object) -> None:
    old = instance.__dict__.pop(_DELETED_ROW, None)
    declaration = _declaration_of(instance)
    if declaration is not None and old is not None:
        capture.record_change(declaration, "DELETE", old, None, using=using)
