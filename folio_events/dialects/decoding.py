"""Records as events, whichever dialect they speak."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from folio_events import topics
from folio_events.conf import get_settings
from folio_events.dialects import circulation, inventory, pubsub
from folio_events.dialects.contents import Contents, event_type, from_iso
from folio_events.dialects.headers import read_headers
from folio_events.event import Event
from folio_events.exceptions import DecodingError, OrphanError
from folio_events.message import Record, key_text, storable
from folio_events.ownership import owner

#: Type of the event that a message without body is.
TOMBSTONE = "DELETE"
_NAMESPACE = uuid.UUID("9b0f6f3e-2f0d-4c8f-9d5e-0c9a3f5f7c11")


def decode(record: Record, *, tenant: str | None = None) -> Event:
    """Read a record, whichever dialect it speaks.

    Args:
        record: As it was read from the broker.
        tenant: Its owner where that is settled already; None: as the message says.

    Raises:
        OrphanError: It has no owner, or several.
        DecodingError: It has a body that is no JSON object in UTF-8 or breaks the rules of its
            dialect, or neither body nor key: without a body alone it is a tombstone. Whose it
            is, it says.
    """
    headers = read_headers(record.headers)
    parts = topics.parse_wire_topic(record.topic)
    is_tombstone = record.value is None and record.key is not None
    is_settled = tenant is not None
    try:
        body = {} if is_tombstone else _body(record)
    except DecodingError as error:
        error.tenant = tenant or _owner_beside_body(headers, parts.tenant)
        raise
    # Before anything else of the body is looked at: an orphan is nobody's dead letter.
    if tenant is None and get_settings().TENANCY is not None:
        tenant = owner(headers=headers, body=body, segment=parts.tenant)
    try:
        contents = (
            Contents({}, word=TOMBSTONE) if is_tombstone else _contents(body, is_settled=is_settled)
        )
    except DecodingError as error:
        error.tenant = tenant
        raise
    return Event(
        id=_event_id(contents.event_id, parts.topic, tenant, headers) or derived_id(record),
        topic=parts.topic,
        type=event_type(contents.word or _word_in_headers(headers, parts.topic)),
        key=key_text(record.key),
        tenant=tenant,
        # ce_time is exact to the microsecond, the bodies' own stamps to the millisecond.
        occurred_at=from_iso(headers.get("ce_time", ""))
        or contents.occurred_at
        or record.published_at,
        payload=contents.payload,
        is_tombstone=is_tombstone,
        metadata=contents.metadata or {},
        headers=headers,
        wire_topic=record.topic,
        partition=record.partition,
        offset=record.offset,
    )


def _owner_beside_body(headers: Mapping[str, str], segment: str | None) -> str | None:
    if get_settings().TENANCY is None:
        return None
    try:
        return owner(headers=headers, body={}, segment=segment)
    except OrphanError:
        return None


def derived_id(record: Record) -> uuid.UUID:
    """A stable id for a record that brings none, from where it stands."""
    return uuid.uuid5(_NAMESPACE, f"{record.topic}/{record.partition}/{record.offset}")


def _event_id(
    own: object, topic: str, tenant: str | None, headers: Mapping[str, str]
) -> uuid.UUID | None:
    """The id in the body, else ``ce_id``; what is no UUID gives the same one each time."""
    for candidate in (own, headers.get("ce_id")):
        if not isinstance(candidate, (str, int)) or isinstance(candidate, bool):
            continue
        try:
            return uuid.UUID(str(candidate))
        except ValueError:
            text = storable(str(candidate)).strip()
            if text:
                # It is one among those of its source only.
                source = headers.get("ce_source", "")
                return uuid.uuid5(_NAMESPACE, "\n".join((topic, tenant or "", source, text)))
    return None


def _body(record: Record) -> dict[str, Any]:
    if record.value is None:
        raise DecodingError("the record has no body")
    try:
        body = json.loads(record.value.decode())
    except UnicodeDecodeError as error:
        raise DecodingError("the body is no UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DecodingError("the body is no JSON") from error
    if not isinstance(body, dict):
        raise DecodingError(f"the body is a JSON {type(body).__name__}, not an object")
    return body


def _contents(body: dict[str, Any], *, is_settled: bool) -> Contents:
    if inventory.speaks(body):
        return inventory.read(body)
    if pubsub.speaks(body):
        return pubsub.read(body, is_settled=is_settled)
    if circulation.speaks(body):
        return circulation.read(body, is_settled=is_settled)
    # It is the payload whole; an 'id' in it is that of a record.
    return Contents(body)


def _word_in_headers(headers: Mapping[str, str], topic: str) -> str:
    kind = headers.get("ce_type", "")
    return kind.removeprefix(f"{topic}.") or topic.rpartition(".")[2]
