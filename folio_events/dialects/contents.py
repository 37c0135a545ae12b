"""What a body says, whichever dialect it speaks, and the one word of each type."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.utils.dateparse import parse_datetime

from folio_events.encoding import json_text
from folio_events.exceptions import DecodingError

#: The types that have another word in some dialects, with it. Source: mod-circulation-storage,
#: DomainEventType. Any other type is the same word everywhere.
PAST_WORDS = {
    "CREATE": "CREATED",
    "UPDATE": "UPDATED",
    "MOVE": "MOVED",
    "DELETE": "DELETED",
    "DELETE_ALL": "ALL_DELETED",
}
_TYPES = {word: kind for kind, past in PAST_WORDS.items() for word in (kind, past)}


def event_type(word: str) -> str:
    """The type that a word names in any dialect and letter case: ``CREATE`` for "CREATED".

    A word that no dialect has for a change is a type of its own.
    """
    return word if word in PAST_WORDS else _TYPES.get(word.upper(), word)


class Head(NamedTuple):
    """What a body to be written says beside its payload."""

    event_id: str
    #: Event type, as code sees it.
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


def json_object(members: Mapping[str, str]) -> str:
    """JSON text of an object whose members are JSON text."""
    return f"{{{','.join([f'{json_text(name)}:{text}' for name, text in members.items()])}}}"


class Contents(NamedTuple):
    """What a body that was read says; None where it does not say."""

    payload: Mapping[str, Any]
    #: As it stands in the body; it may be no UUID.
    event_id: object = None
    #: The dialect's own word for the type.
    word: str | None = None
    occurred_at: datetime | None = None
    metadata: Mapping[str, Any] | None = None


def text_of(body: Mapping[str, Any], name: str) -> str | None:
    """A member that has to be text; None where it is missing, null or blank.

    Raises:
        DecodingError: It is something else.
    """
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DecodingError(f"{name!r} is a {type(value).__name__}, not text")
    return value if value.strip() else None


def moment_of(body: Mapping[str, Any], name: str) -> datetime | None:
    """A member that has to be a time; None where it is missing, null or out of range.

    Raises:
        DecodingError: It is neither milliseconds since 1970 nor ISO 8601 with a zone.
    """
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise DecodingError(f"{name!r} is a {type(value).__name__}, not a time")
    if not isinstance(value, str):
        return from_milliseconds(value)
    if value.isdecimal():
        return from_milliseconds(int(value[:20]))
    moment = from_iso(value)
    if moment is None:
        raise DecodingError(f"{name!r} is text, but no time with a zone")
    return moment


def from_milliseconds(milliseconds: float) -> datetime | None:
    """A time from milliseconds since 1970; None where it is out of range."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def from_iso(text: str) -> datetime | None:
    """A time from ISO 8601 text; None where that is no time, or has no zone."""
    try:
        moment = parse_datetime(text)
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None


def require(body: Mapping[str, Any], *names: str, of: str = "") -> None:
    """Refuse a body in which a member is missing or null.

    Args:
        body: Members by name.
        names: Which have to be there.
        of: Path of the object they stand in, with a dot.

    Raises:
        DecodingError: Names the first that is missing.
    """
    for name in names:
        if body.get(name) is None:
            raise DecodingError(f"'{of}{name}' is missing")
