"""What model writes mean: outbox rows, one for each changed row, in the transaction of the write."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.db.models import Model, QuerySet
from django.utils import timezone

from folio_events import outbox
from folio_events.declarations import MASK, ModelEvents, events
from folio_events.dialects import Head
from folio_events.encoding import first_unencodable, json_text
from folio_events.exceptions import EncodingError
from folio_events.rows import Row
from folio_events.tenants import resolve_tenant
from folio_events.topics.declared import is_compacted


class Change(NamedTuple):
    """A row before and after a write; None where there was none."""

    declaration: ModelEvents
    #: Event type.
    kind: str
    old: Row | None
    new: Row | None


def record_changes(changes: Sequence[Change], *, using: str) -> None:
    """Append the outbox rows of changes, in the transaction that made them.

    Args:
        changes: In the order in which their events are to come.
        using: Database alias of the changes.

    Raises:
        EncodingError: A value has no JSON form; names model and field. Or the topic is
            compacted and an event has no key.
        MissingTenantError: Tenancy is on and nobody names a tenant.
    """
    found: list[outbox.OutboxRow] = []
    shared: list[tuple[str, str | None, str]] = []
    left: dict[ModelEvents, set[Any]] = {}
    for change in changes:
        declaration, kind, old, new = change
        if declaration.skip_unchanged and old == new:
            continue
        if not found:
            tenant, now = resolve_tenant(), timezone.now()
        value = (old if new is None else new)[declaration.key_position]  # type: ignore[index]  # one is there
        key = None if value is None else str(value)
        event_id = uuid.uuid4()
        head = Head(str(event_id), kind, tenant, now)
        try:
            members = {
                "old": _render(declaration, old, using),
                "new": _render(declaration, new, using),
            }
            row = outbox.encode_row(
                event_id, declaration.topic, key, head, members, declaration.dialect
            )
        except EncodingError as error:
            raise EncodingError(_refusal(change, using, error)) from error
        found.append(row)
        keys = [] if key is None else [key]
        if is_compacted(declaration.topic) and (before := _left_key(change)) is not None:
            left.setdefault(declaration, set()).add(before)
            keys.append(str(before))
        if declaration.ordered and events.shares_keys(declaration):
            shared += [(declaration.topic, tenant, key) for key in keys]
    if not found:
        return
    if shared:
        outbox.lock_keys(shared, using=using)
    found += [
        outbox.make_tombstone(declaration.topic, str(key), tenant, now)
        for declaration, keys in left.items()
        for key in sorted(_without_row(declaration, keys, using), key=str)
    ]
    outbox.append(found, using=using)


def _left_key(change: Change) -> Any:
    """The value of the key that a row had and has no more, or None."""
    declaration, _kind, old, new = change
    before = None if old is None else old[declaration.key_position]
    return None if new is not None and new[declaration.key_position] == before else before


def _without_row(declaration: ModelEvents, keys: set[Any], using: str) -> set[Any]:
    """Those of some keys that no row has any more."""
    if declaration.key_is_primary_key:
        return keys
    name = declaration.key_field.attname
    rows: QuerySet[Model] = QuerySet(declaration.model, using=using)
    return keys - set(rows.filter(**{f"{name}__in": keys}).values_list(name, flat=True))


def _render(declaration: ModelEvents, row: Row | None, using: str) -> str:
    """A row as JSON text, as its declaration shows it."""
    if row is None:
        return "null"
    if declaration.serialize is not None:
        return json_text(_serialized(declaration, row, using))
    if declaration.private_positions:
        row = _masked(declaration, row)
    shown = [f'"{name}":{json_text(row[at])}' for name, at in declaration.shown_positions]
    return f"{{{','.join(shown)}}}"


def _serialized(declaration: ModelEvents, row: Row, using: str) -> dict[str, Any]:
    attnames = [field.attname for field in declaration.captured_fields]
    instance = declaration.model.from_db(using, attnames, row)
    assert declaration.serialize is not None  # noqa: S101 - for the type checker
    shown = declaration.serialize(instance)
    if not isinstance(shown, Mapping):
        raise EncodingError(
            f"The write of {declaration.model._meta.label} is refused: the serializer of "
            f"{declaration} must return a dict, not {type(shown).__name__}."
        )
    return dict(shown)


def _masked(declaration: ModelEvents, row: Row) -> Row:
    hidden = declaration.private_positions
    return tuple(MASK if at in hidden else value for at, value in enumerate(row))


def _refusal(change: Change, using: str, error: EncodingError) -> str:
    declaration = change.declaration
    label = declaration.model._meta.label
    for row in (change.new, change.old):
        found = first_unencodable(_shown(declaration, row, using))
        if found is not None:
            name, reason = found
            return (
                f"The write of {label} is refused: field {name!r} has no JSON form: {reason}. "
                f"Leave the field out of {declaration}, or give it a serializer."
            )
    return f"The write of {label} is refused: {error}."


def _shown(declaration: ModelEvents, row: Row | None, using: str) -> dict[str, Any]:
    if row is None:
        return {}
    if declaration.serialize is not None:
        return _serialized(declaration, row, using)
    row = _masked(declaration, row)
    return {name: row[at] for name, at in declaration.shown_positions}
