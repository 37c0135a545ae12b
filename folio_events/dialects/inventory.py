"""The dialect of inventory: metadata beside ``old`` and ``new``.

Source: mod-inventory-storage, DomainEvent; mod-entities-links, DomainEvent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from folio_events.dialects.contents import Contents, Head, moment_of, text_of
from folio_events.encoding import json_text
from folio_events.exceptions import DecodingError, EncodingError

_METADATA = frozenset(("eventId", "eventTs", "type", "tenant"))
_MEMBERS = _METADATA | {"old", "new"}


def write(head: Head, members: Mapping[str, str]) -> str:
    if not _METADATA.isdisjoint(members):
        taken = sorted(_METADATA & members.keys())
        raise EncodingError(f"the members {taken} of a payload are metadata in this dialect")
    shown = [f",{json_text(name)}:{text}" for name, text in members.items() if text != "null"]
    return (
        f'{{"eventId":"{head.event_id}","eventTs":{head.milliseconds},'
        f'"type":{json_text(head.kind)}{head.tenant_member}{"".join(shown)}}}'
    )


def speaks(body: Mapping[str, Any]) -> bool:
    if "eventId" in body:
        return True
    # Events of bulk deletes have no id; those of whole collections neither old nor new.
    return "type" in body and (
        "old" in body or "new" in body or ("tenant" in body and body.keys() <= _MEMBERS)
    )


def read(body: Mapping[str, Any]) -> Contents:
    text_of(body, "tenant")
    for name in ("old", "new"):
        if not isinstance(body.get(name), (dict, type(None))):
            raise DecodingError(f"{name!r} is a {type(body[name]).__name__}, not an object")
    return Contents(
        payload={name: value for name, value in body.items() if name not in _METADATA},
        # Not 'id': mod-entities-links has the record's own there, the same in each of its events.
        event_id=body.get("eventId"),
        word=text_of(body, "type"),
        occurred_at=moment_of(body, "eventTs" if "eventTs" in body else "ts"),
    )
