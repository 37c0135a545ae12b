"""What payloads should be, as JSON Schemas: who says it, and where one differs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from folio_events.declarations import events
from folio_events.event import Event
from folio_events.exceptions import ConfigurationError
from folio_events.receivers import Receiver
from folio_events.schemas.derived import derive
from folio_events.schemas.differences import MAX_DIFFERENCES, Difference, differences, faults

__all__ = [
    "MAX_DIFFERENCES",
    "Comparison",
    "Difference",
    "Schema",
    "compare",
    "derive",
    "differences",
    "expected",
    "faults",
    "schema_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What the payload of an event should be."""

    document: Mapping[str, Any]
    #: Who says it.
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A payload held against a schema.

    Attributes:
        origin: Who says what it should be; "" where nobody does.
        differences: At most ``MAX_DIFFERENCES``.
        is_partial: Whether there are more.
        obstacle: Why it was not compared; "" where it was.
    """

    origin: str = ""
    differences: tuple[Difference, ...] = ()
    is_partial: bool = False
    obstacle: str = ""

    @property
    def fits(self) -> bool:
        return not self.obstacle and not self.differences


def compare(event: Event, receiver: Receiver | None, *, hidden: Collection[str] = ()) -> Comparison:
    """Hold an event's payload against what its receiver expects.

    Where several models send to the topic, the one is meant that differs least.

    Args:
        event: As the receiver gets it.
        receiver: None: it is not registered any more.
        hidden: Names of members of which nothing is told but that they are there, or do not fit.
    """
    if event.is_tombstone:
        return Comparison(obstacle="A tombstone has no payload.")
    try:
        candidates = expected(event, receiver)
    except ConfigurationError as error:
        return Comparison(obstacle=str(error))
    if not candidates:
        return Comparison(obstacle=_nobody(event, receiver))
    found: list[Comparison] = []
    for schema in candidates:
        try:
            told = differences(
                event.payload, schema.document, hidden=hidden, limit=MAX_DIFFERENCES + 1
            )
        except ConfigurationError as error:
            return Comparison(origin=schema.origin, obstacle=str(error))
        except ValueError as error:
            return Comparison(origin=schema.origin, obstacle=f"It was not compared: {error}.")
        found.append(
            Comparison(
                origin=schema.origin,
                differences=tuple(told[:MAX_DIFFERENCES]),
                is_partial=len(told) > MAX_DIFFERENCES,
            )
        )
    return min(found, key=lambda one: (len(one.differences), one.is_partial))


def expected(event: Event, receiver: Receiver | None) -> list[Schema]:
    """What an event's payload may be: as its receiver says, else as this project declares it.

    Raises:
        ConfigurationError: The receiver's schema cannot be read.
    """
    own = None if receiver is None else schema_of(receiver)
    return list(_declared(event)) if own is None else [own]


def _declared(event: Event) -> Iterator[Schema]:
    for declaration in events:
        if declaration.topic == event.topic:
            document = derive(declaration, event.type)
            if document is not None:
                yield Schema(document=document, origin=str(declaration))


def schema_of(receiver: Receiver) -> Schema | None:
    """The schema that a receiver was given; None where it has none.

    Raises:
        ConfigurationError: Its file cannot be read, or holds no schema; names both. Or the extra
            ``schemas`` is not installed.
    """
    if receiver.schema is None:
        return None
    origin, said, document = f"receiver {receiver.name}", f"{receiver.name!r}", receiver.schema
    if (path := receiver.schema_file) is not None:
        origin, said = f"{origin}, {path.name}", f"{said}, {path},"
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no JSON"
            raise ConfigurationError(
                f"The schema of receiver {said} cannot be read: {why}."
            ) from error
    if found := faults(document):
        raise ConfigurationError(f"The schema of receiver {said} cannot be used: {found[0]}.")
    return Schema(document=cast("Mapping[str, Any]", document), origin=origin)


def _nobody(event: Event, receiver: Receiver | None) -> str:
    declared = [one for one in events if one.topic == event.topic]
    if not declared:
        why = f"This project declares no events of topic {event.topic!r}"
    elif derive(declared[0], "CREATE") is None:
        why = f"Python makes the rows of {declared[0]}, so that nothing says what they should be"
    else:
        why = f"Type {event.type!r} is no change that {declared[0]} declares"
    name = "its receiver" if receiver is None else f"receiver {receiver.name!r}"
    return f"{why}, and {name} names no schema. Give one by @receiver(..., schema=...)."
