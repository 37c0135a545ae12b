"""The dialect of circulation: metadata around ``data``.

Source: mod-circulation-storage, DomainEvent; mod-circulation, DomainEventMapper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from folio_events.conf import get_settings
from folio_events.dialects.contents import (
    PAST_WORDS,
    Contents,
    Head,
    json_object,
    moment_of,
    require,
    text_of,
)
from folio_events.encoding import json_text
from folio_events.exceptions import DecodingError

_REQUIRED = frozenset(("type", "tenant", "timestamp", "data"))
_MEMBERS = _REQUIRED | {"id"}
_CORE = _REQUIRED - {"tenant"}


def write(head: Head, members: Mapping[str, str]) -> str:
    return (
        f'{{"id":"{head.event_id}","type":{json_text(PAST_WORDS.get(head.kind, head.kind))}'
        f'{head.tenant_member},"timestamp":{head.milliseconds},"data":{json_object(members)}}}'
    )


def speaks(body: Mapping[str, Any]) -> bool:
    # What lacks one of the required members and has none but theirs was meant to be one.
    return body.keys() >= _CORE or (
        len(_REQUIRED & body.keys()) == len(_REQUIRED) - 1 and body.keys() <= _MEMBERS
    )


def read(body: Mapping[str, Any], *, is_settled: bool) -> Contents:
    require(body, "type", "timestamp", "data")
    if get_settings().TENANCY is not None and not is_settled:
        require(body, "tenant")
    text_of(body, "tenant")
    if not isinstance(body["data"], dict):
        raise DecodingError(f"'data' is a {type(body['data']).__name__}, not an object")
    return Contents(
        payload=body["data"],
        event_id=body.get("id"),
        word=text_of(body, "type"),
        occurred_at=moment_of(body, "timestamp"),
    )
