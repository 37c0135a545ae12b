"""Which past events are meant: by time, topic, offsets, ids, tenant and types."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from django.utils.dateparse import parse_datetime

from folio_events import topics
from folio_events.dialects import event_type
from folio_events.event import Event
from folio_events.message import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """Which events are to run again; what is None does not matter.

    Raises:
        ValueError: Nothing is chosen, or the choice contradicts itself.
    """

    #: By the time of publishing: from then on, and before then. With a zone.
    since: datetime | None = None
    until: datetime | None = None
    #: Logical topic, ``*`` for any characters of a segment; or a topic's name on the broker.
    topic: str | None = None
    partition: int | None = None
    #: From this offset on, and before that one.
    from_offset: int | None = None
    to_offset: int | None = None
    event_ids: frozenset[uuid.UUID] | None = None
    tenant: str | None = None
    #: In the words of any dialect, as a receiver names them.
    types: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, one.name) is None for one in fields(self)):
            raise ValueError(
                "Say which events: a time, a topic, offsets, ids, a tenant or types. For all that "
                "is kept: since the year 2000."
            )
        for moment in (self.since, self.until):
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{moment} has no time zone: add one, such as +00:00.")
        if self.since and self.until and self.since >= self.until:
            raise ValueError(f"Nothing is since {self.since} and before {self.until}.")
        offsets = (self.from_offset, self.to_offset)
        if offsets != (None, None) and (self.partition is None or self.topic is None):
            raise ValueError("Offsets count within one partition: name topic and partition too.")
        if None not in offsets and offsets[0] >= offsets[1]:  # type: ignore[operator]  # no None
            raise ValueError(f"No offset is from {offsets[0]} on and before {offsets[1]}.")

    def takes_topic(self, name: str) -> bool:
        """Whether a topic of the broker is among those that are looked at."""
        return names_topic(self.topic, name)

    def takes(self, event: Event, record: Record) -> bool:
        """Whether an event of such a topic is to run again."""
        return (
            (self.event_ids is None or event.id in self.event_ids)
            and (self.tenant is None or event.tenant == self.tenant)
            and (self.types is None or event.type in {event_type(word) for word in self.types})
            and (self.partition is None or record.partition == self.partition)
            and (self.from_offset is None or record.offset >= self.from_offset)
            and (self.to_offset is None or record.offset < self.to_offset)
            and (self.since is None or record.timestamp >= milliseconds(self.since))
            and (self.until is None or record.timestamp < milliseconds(self.until))
        )

    def as_json(self) -> dict[str, Any]:
        """What is chosen, in values that JSON has."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        plain: dict[type, Callable[[Any], Any]] = {
            datetime: datetime.isoformat,
            frozenset: lambda found: sorted(map(str, found)),
        }
        return {
            name: plain.get(type(value), lambda same: same)(value)
            for name, value in given.items()
            if value is not None
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Criteria:
        """The inverse of ``as_json``."""
        read: dict[str, Callable[[Any], Any]] = {
            "since": parse_datetime,
            "until": parse_datetime,
            "event_ids": lambda ids: frozenset(map(uuid.UUID, ids)),
            "types": frozenset,
        }
        return cls(**{n: read.get(n, lambda same: same)(value) for n, value in stored.items()})


def names_topic(topic: str | None, name: str) -> bool:
    """Whether a topic of the broker is meant by a logical topic, a pattern or its own name."""
    return topic in (None, name) or topics.matches(str(topic), topics.parse_wire_topic(name).topic)


def milliseconds(moment: datetime) -> int:
    """A moment as the brokers count: since 1970."""
    return int(moment.timestamp() * 1000)
