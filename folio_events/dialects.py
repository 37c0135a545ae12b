"""Events as bytes and headers: FOLIO inventory, FOLIO circulation, CloudEvents headers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.utils.dateparse import parse_datetime

from folio_events import topics
from folio_events.conf import get_settings
from folio_events.encoding import json_bytes, json_text
from folio_events.event import Event
from folio_events.exceptions import ConfigurationError, DecodingError, EncodingError
from folio_events.message import Headers, Record, key_text

#: The header that names an event's owner. Source: folio-kafka-wrapper, KafkaProducerRecordBuilder.
TENANT_HEADER = "folio.tenantId"
_NAMESPACE = uuid.UUID("9b0f6f3e-2f0d-4c8f-9d5e-0c9a3f5f7c11")
_INVENTORY = frozenset(("eventId", "eventTs", "type", "tenant"))


class Head(NamedTuple):
    """What a body says beside its payload."""

    event_id: str
    kind: str
    #: None where tenancy is off.
    tenant: str | None
    occurred_at: datetime

    @property
    def milliseconds(self) -> int:
        return int(self.occurred_at.timestamp() * 1000)

    @property
    def tenant_member(self) -> str:
        return "" if self.tenant is None else f',"tenant":{json_text(self.tenant)}'


def _inventory(head: Head, members: Mapping[str, str]) -> str:
    if not _INVENTORY.isdisjoint(members):
        taken = sorted(_INVENTORY & members.keys())
        raise EncodingError(f"the members {taken} of a payload are metadata in this dialect")
    shown = [f",{json_text(name)}:{text}" for name, text in members.items() if text != "null"]
    return (
        f'{{"eventId":"{head.event_id}","eventTs":{head.milliseconds},'
        f'"type":{json_text(head.kind)}{head.tenant_member}{"".join(shown)}}}'
    )


def _circulation(head: Head, members: Mapping[str, str]) -> str:
    shown = ",".join([f"{json_text(name)}:{text}" for name, text in members.items()])
    return (
        f'{{"id":"{head.event_id}","type":{json_text(head.kind)}{head.tenant_member},'
        f'"timestamp":{head.milliseconds},"data":{{{shown}}}}}'
    )


#: Wire forms by name. Source: mod-inventory-storage DomainEvent; mod-circulation-storage DomainEvent.
DIALECTS = {"inventory": _inventory, "circulation": _circulation}


def validate_dialect(name: str) -> str:
    """Return the name of a dialect, or refuse it.

    Raises:
        ConfigurationError: There is no such dialect.
    """
    if name not in DIALECTS:
        raise ConfigurationError(f"{name!r} is no dialect; use one of {', '.join(DIALECTS)}.")
    return name


def encode(head: Head, members: Mapping[str, str], dialect: str) -> bytes:
    """Write an event's body.

    Args:
        head: What it says of the event itself.
        members: The payload: name to JSON text.
        dialect: One of ``DIALECTS``.

    Raises:
        EncodingError: A member has the name of metadata, or text in it is no Unicode.
    """
    return json_bytes(DIALECTS[dialect](head, members))


def repeating_headers(topic: str, kind: str, tenant: str | None) -> list[tuple[str, str]]:
    """The headers that many messages have in common; the relay parses them once."""
    settings = get_settings()
    headers = [
        ("ce_specversion", "1.0"),
        ("ce_type", f"{topic}.{kind}"),
        ("ce_source", settings.SOURCE or f"/{settings.GROUP}"),
        ("content-type", "application/json"),
    ]
    if tenant is not None:
        headers.append((TENANT_HEADER, tenant))
    return headers


def wire_headers(
    repeating: Headers,
    own: Iterable[tuple[str, bytes | None]],
    event_id: str,
    occurred_at: datetime,
    sequence: int,
) -> Headers:
    """Put a message's headers together when it is published.

    Args:
        repeating: As ``repeating_headers`` made them, encoded.
        own: Those that belong to this message alone.
        event_id: For ``ce_id``.
        occurred_at: For ``ce_time``.
        sequence: The outbox id, for ``ce_sequence``: grows with every message of one outbox.
    """
    return [
        *repeating,
        ("ce_id", event_id.encode()),
        ("ce_time", occurred_at.astimezone(UTC).isoformat().encode()),
        ("ce_sequence", b"%d" % sequence),
        *own,
    ]


def read_headers(headers: Headers) -> dict[str, str]:
    """Headers as text, names in lower case.

    Of a repeated name the first value that is not blank counts, as FOLIO's reader does;
    a missing value reads as empty.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        text = (value or b"").decode("utf-8", "replace")
        if not found.get(name.lower(), "").strip():
            found[name.lower()] = text
    return found


def derived_id(record: Record) -> uuid.UUID:
    """A stable id for a record that brings none, from where it stands."""
    return uuid.uuid5(_NAMESPACE, f"{record.topic}/{record.partition}/{record.offset}")


def event_id(
    record: Record, headers: Mapping[str, str], body: Mapping[str, Any] | None
) -> uuid.UUID:
    """The id of a record's event: from the body, else ``ce_id``, else from where it stands."""
    body = body or {}
    for candidate in (body.get("eventId"), body.get("id"), headers.get("ce_id")):
        try:
            return uuid.UUID(candidate)
        except (TypeError, ValueError, AttributeError):
            continue
    return derived_id(record)


def decode(record: Record) -> Event:
    """Read a record, whichever dialect it speaks.

    Raises:
        DecodingError: It has no body, or one that is no JSON object in UTF-8.
    """
    headers = read_headers(record.headers)
    parts = topics.parse_wire_topic(record.topic)
    body = _body(record)
    is_inventory = "eventId" in body or ("type" in body and ("old" in body or "new" in body))
    is_circulation = not is_inventory and {"type", "data", "timestamp"} <= body.keys()
    if is_inventory:
        kind, moment = body.get("type"), body.get("eventTs")
        payload = {name: value for name, value in body.items() if name not in _INVENTORY}
    elif is_circulation:
        kind, moment = body["type"], body["timestamp"]
        payload = body["data"] if isinstance(body["data"], dict) else {"data": body["data"]}
    else:
        kind, moment, payload = None, None, body
    for name in ("old", "new"):
        if not isinstance(payload.get(name), (dict, type(None))) and is_inventory:
            raise DecodingError(f"'{name}' is a {type(payload[name]).__name__}, not an object")
    return Event(
        id=event_id(record, headers, body if is_inventory or is_circulation else None),
        topic=parts.topic,
        type=kind if isinstance(kind, str) else _type_from_headers(headers, parts.topic),
        key=key_text(record.key),
        tenant=_tenant(headers, body, parts.tenant),
        occurred_at=_moment(moment, headers, record),
        payload=payload,
        headers=headers,
        wire_topic=record.topic,
        partition=record.partition,
        offset=record.offset,
    )


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


def _type_from_headers(headers: Mapping[str, str], topic: str) -> str:
    kind = headers.get("ce_type", "")
    return kind.removeprefix(f"{topic}.") or topic.rpartition(".")[2]


def _tenant(headers: Mapping[str, str], body: Mapping[str, Any], segment: str | None) -> str | None:
    settings = get_settings()
    if settings.TENANCY is None:
        return None
    named = headers.get(TENANT_HEADER.lower()) or headers.get("x-okapi-tenant")
    if named:
        return named
    if isinstance(body.get("tenant"), str):
        return str(body["tenant"])
    return None if segment == settings.TENANT_COLLECTION else segment


def _moment(stamp: object, headers: Mapping[str, str], record: Record) -> datetime:
    # ce_time is exact to the microsecond, the bodies' own stamps to the millisecond.
    try:
        exact = parse_datetime(headers.get("ce_time", ""))
    except ValueError:
        exact = None
    if exact is not None and exact.tzinfo is not None:
        return exact
    milliseconds = (
        stamp if isinstance(stamp, int) and not isinstance(stamp, bool) else record.timestamp
    )
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(max(record.timestamp, 0) / 1000, UTC)
