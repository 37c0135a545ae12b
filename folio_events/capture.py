"""What model writes mean: outbox rows, one for each changed row, in the transaction of the write."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.utils import timezone

from folio_events import outbox
from folio_events.declarations import MASK, ModelEvents, events
from folio_events.dialects import Head
from folio_events.encoding import first_unencodable, json_text
from folio_events.exceptions import EncodingError
from folio_events.rows import Row
from folio_events.tenants import resolve_tenant


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
        EncodingError: A value has no JSON form; names model and field.
        MissingTenantError: Tenancy is on and nobody names a tenant.
    """
    found: list[outbox.OutboxRow] = []
    shared: list[tuple[str, str | None, str]] = []
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
        if key is not None and declaration.ordered and events.shares_keys(declaration):
            shared.append((declaration.topic, tenant, key))
    if not found:
        return
    if shared:
        outbox.lock_keys(shared, using=using)
    outbox.append(found, using=using)


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
