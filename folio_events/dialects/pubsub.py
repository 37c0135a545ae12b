"""The dialect of mod-pubsub and data import: an Event whose payload is JSON text inside JSON.

Source: mod-pubsub, ramls/event.json and eventMetadata.json, which take no other members.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC
from typing import Any

from folio_events.conf import get_settings
from folio_events.dialects.contents import (
    PAST_WORDS,
    Contents,
    Head,
    from_iso,
    json_object,
    require,
    text_of,
)
from folio_events.encoding import json_text
from folio_events.exceptions import DecodingError, EncodingError

_MEMBERS = frozenset(("id", "eventType", "eventMetadata", "eventPayload"))
_METADATA = frozenset(
    (
        *("tenantId", "eventTTL", "publishedBy", "correlationId", "originalEventId"),
        *("publisherCallback", "createdDate", "publishedDate", "createdBy"),
    )
)
#: Minutes, which have to be given. Every module of FOLIO says 1, and nothing heeds it.
_TTL = 1


def write(head: Head, members: Mapping[str, str]) -> str:
    if head.tenant is None:
        raise EncodingError("the pubsub dialect needs a tenant, and TENANCY is off")
    settings = get_settings()
    publisher = settings.SOURCE.strip("/") or settings.GROUP
    return (
        f'{{"id":"{head.event_id}","eventType":{json_text(PAST_WORDS.get(head.kind, head.kind))},'
        f'"eventMetadata":{{"tenantId":{json_text(head.tenant)},"eventTTL":{_TTL},'
        f'"publishedBy":{json_text(publisher)},"createdDate":{json_text(head.occurred_at.astimezone(UTC))}}},'
        f'"eventPayload":{json_text(json_object(members))}}}'
    )


def speaks(body: Mapping[str, Any]) -> bool:
    return (
        "eventMetadata" in body
        or "eventPayload" in body
        or ("eventType" in body and body.keys() <= _MEMBERS)
    )


def read(body: Mapping[str, Any], *, is_settled: bool) -> Contents:
    _refuse_others(body, _MEMBERS, "an Event")
    require(body, "id", "eventType", "eventMetadata")
    metadata = body["eventMetadata"]
    if not isinstance(metadata, dict):
        raise DecodingError(f"'eventMetadata' is a {type(metadata).__name__}, not an object")
    _refuse_others(metadata, _METADATA, "eventMetadata")
    if not is_settled:
        require(metadata, "tenantId", of="eventMetadata.")
    require(metadata, "eventTTL", "publishedBy", of="eventMetadata.")
    ttl = metadata["eventTTL"]
    if not isinstance(ttl, int) or isinstance(ttl, bool):
        raise DecodingError(f"'eventTTL' is a {type(ttl).__name__}, not a whole number")
    for name in ("tenantId", "publishedBy"):
        text_of(metadata, name)
    created = metadata.get("createdDate")
    return Contents(
        payload=_payload(body),
        event_id=body["id"],
        word=text_of(body, "eventType"),
        occurred_at=from_iso(created) if isinstance(created, str) else None,
        metadata=metadata,
    )


def _refuse_others(found: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    if others := sorted(found.keys() - known):
        raise DecodingError(f"{what} of mod-pubsub takes no members {others[:5]}")


def _payload(body: Mapping[str, Any]) -> Mapping[str, Any]:
    text = text_of(body, "eventPayload")
    if text is None:
        return {}
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        payload = None
    # The payload of DI_JOB_CANCELLED is the bare id of a job.
    return payload if isinstance(payload, dict) else {"eventPayload": text}
