"""Everything that is known of one event."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS

from folio_events import deliveries, topics
from folio_events.dialects import decode, read_headers
from folio_events.event import Event
from folio_events.exceptions import DecodingError
from folio_events.message import Headers, Record
from folio_events.models import (
    Attempt,
    ConsumerOffset,
    Delivery,
    InboxEntry,
    OutboxMessage,
    Publication,
    WithheldMessage,
)
from folio_events.receivers import Receiver, registry
from folio_events.sending import headers_of

CAUSE_HEADER = "ce_causationid"
#: How far what waits behind a delivery is counted.
MOST_COUNTED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an event stands on the broker."""

    topic: str
    partition: int
    offset: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """That the broker refused an event, or one before it."""

    state: str
    error: str
    withheld_at: datetime
    resolved_at: datetime | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An event's row in the outbox."""

    id: int
    occurred_at: datetime
    #: None: not published yet, or the row of it is gone.
    published: Place | None
    withheld: Withheld | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a delivery."""

    number: int
    receiver: str
    started_at: datetime
    #: Seconds; None: nobody heard of its end.
    duration: float | None
    #: "succeeded", "failed" or "lost".
    outcome: str
    error_class: str
    error: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A delivery of an event, with its runs as far as they are kept."""

    id: int
    state: str
    attempts: int
    is_running: bool
    created_at: datetime
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None
    resolved_at: datetime | None
    reason: str
    error_class: str
    error: str
    traceback: str
    #: Id of the delivery it waits for.
    held_behind: int | None
    #: Id of the delivery that it waited for when it was recorded.
    waited_for: int | None
    #: How many wait for it, counted up to MOST_COUNTED.
    holds: int
    runs: tuple[Run, ...]


class Result(StrEnum):
    """How an event stands with a receiver."""

    HANDLED = "handled"
    RETRYING = "retrying"
    HELD = "held"
    DEAD = "dead"
    DISCARDED = "discarded"
    #: The group has not come to it.
    AHEAD = "ahead"
    #: The group is past it and no effect is kept: purged, not entitled, or without inbox.
    PASSED = "passed"
    #: Nobody knows where it stands on the broker, or how far the group is.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handling:
    """What one receiver made of an event, once or in a replay."""

    receiver: str
    group: str
    is_registered: bool
    #: Number of the replay, or 0.
    replay: int
    result: Result
    handled_at: datetime | None
    delivery: Kept | None


class Step(NamedTuple):
    """Something that happened to an event."""

    at: datetime
    #: "written", "withheld", "released", "published", "failed", "succeeded", "lost", "handled",
    #: "held", "dead", "discarded" or "begun".
    what: str
    receiver: str = ""
    handling: Handling | None = None
    run: Run | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything that is known of one event."""

    event_id: uuid.UUID
    #: Logical topic.
    topic: str
    event_type: str
    tenant: str
    key: str | None
    headers: Headers
    #: The bytes of its body; None: it has none.
    payload: bytes | None
    #: The event as receivers see it; None: the bytes are none, for the reason beside it.
    event: Event | None
    undecodable: str
    written: Written | None
    #: Where a receiver read it, which may be more than one place.
    places: tuple[Place, ...]
    handlings: tuple[Handling, ...]

    @property
    def source(self) -> str:
        """Who recorded it, by header ``ce_source``; empty where it does not say."""
        return read_headers(self.headers).get("ce_source", "")

    @property
    def cause_id(self) -> str:
        """Id of the event whose receiver caused it; empty where it does not say."""
        return read_headers(self.headers).get(CAUSE_HEADER, "")

    @property
    def request_id(self) -> str:
        return read_headers(self.headers).get("x-okapi-request-id", "")

    @property
    def trace_id(self) -> str:
        """The trace of header ``traceparent``. Source: W3C Trace Context, 3.2.2."""
        parts = read_headers(self.headers).get("traceparent", "").split("-")
        return parts[1] if len(parts) >= 4 else ""

    def timeline(self) -> list[Step]:
        """What happened to it, the earliest first."""
        return sorted(self._steps(), key=lambda step: step.at)

    def _steps(self) -> Iterator[Step]:
        if self.written is not None:
            yield Step(self.written.occurred_at, "written")
            if (withheld := self.written.withheld) is not None:
                yield Step(withheld.withheld_at, "withheld")
                if withheld.resolved_at is not None and withheld.state == "discarded":
                    yield Step(withheld.resolved_at, "discarded")
        for place in self.places:
            yield Step(place.at, "published")
        for handling in self.handlings:
            yield from _steps_of(handling)


def _steps_of(handling: Handling) -> Iterator[Step]:
    def step(at: datetime, what: str, run: Run | None = None) -> Step:
        return Step(at, what, handling.receiver, handling, run)

    kept = handling.delivery
    is_told = kept is not None and any(run.outcome == "succeeded" for run in kept.runs)
    if handling.handled_at is not None and not is_told:
        yield step(handling.handled_at, "handled")
    if kept is None:
        return
    first = kept.runs[0] if kept.runs else None
    # Of many runs only the last are kept.
    if first is None or (first.number == 1 and first.started_at > kept.created_at):
        yield step(kept.created_at, "held")
    for run in kept.runs:
        yield step(run.started_at, run.outcome, run)
    if kept.is_running and kept.last_attempt_at is not None:
        yield step(kept.last_attempt_at, "begun")
    if kept.state == "dead" and kept.last_attempt_at is not None:
        yield step(kept.last_attempt_at, "dead")
    if kept.state == "discarded" and kept.resolved_at is not None:
        yield step(kept.resolved_at, "discarded")


def history(event_id: uuid.UUID, *, using: str = DEFAULT_DB_ALIAS) -> History | None:
    """Gather everything that is known of an event.

    Reads by indexes only. Receivers on other databases are asked there.

    Args:
        event_id: Of the event.
        using: Database alias of the outbox.

    Returns:
        None if neither outbox, deliveries nor the inbox know it.
    """
    row = (
        OutboxMessage.objects.using(using)
        .select_related("publication", "withheldmessage")
        .filter(event_id=event_id)
        .order_by("id")
        .first()
    )
    found = _deliveries(event_id, using)
    record = _record_of_row(row) if row else None
    newest = max((one for one, _ in found), key=lambda one: one.pk, default=None)
    if record is None and newest is not None:
        record = deliveries.record_of(newest)
    effects = _effects(event_id, using)
    if record is None and not effects:
        return None
    known: OutboxMessage | Delivery | None = row or newest
    tenant = known.tenant if known else ""
    event, why = _read(record, tenant or None)
    written = _written(row) if row else None
    places = _places(written, [one for one, _ in found])
    return History(
        event_id=event_id,
        topic=_topic(row, newest),
        event_type=known.event_type if known else "",
        tenant=tenant,
        key=known.key if known else None,
        headers=record.headers if record else [],
        payload=record.value if record else None,
        event=event,
        undecodable=why,
        written=written,
        places=places,
        handlings=tuple(_handlings(event, found, effects, places, using)),
    )


def _topic(row: OutboxMessage | None, newest: Delivery | None) -> str:
    if row is not None:
        return row.topic
    return topics.parse_wire_topic(newest.topic).topic if newest is not None else ""


def _databases(using: str) -> dict[str, list[Receiver]]:
    """Receivers with an inbox, by the database that keeps it."""
    found: dict[str, list[Receiver]] = {using: []}
    for receiver in registry:
        found.setdefault(receiver.using, []).append(receiver)
    return found


def _deliveries(event_id: uuid.UUID, using: str) -> list[tuple[Delivery, str]]:
    return [
        (delivery, alias)
        for alias in _databases(using)
        for delivery in deliveries.with_held_behind(
            Delivery.objects.using(alias)
            .filter(event_id=event_id)
            .defer("payload", "original_payload", "headers", "raw_key")  # of one at most
            .order_by("id")
        )
    ]


def _effects(event_id: uuid.UUID, using: str) -> dict[tuple[str, int], datetime]:
    """When receivers handled it, by name and number of the replay."""
    found: dict[tuple[str, int], datetime] = {}
    for alias, receivers in _databases(using).items():
        names = [receiver.name for receiver in receivers]
        rows = InboxEntry.objects.using(alias).filter(receiver__in=names, event_id=event_id)
        for name, replay, handled_at in rows.values_list("receiver", "replay", "handled_at"):
            found[name, replay] = handled_at
    return found


def _record_of_row(row: OutboxMessage) -> Record:
    publication: Publication | None = getattr(row, "publication", None)
    return Record(
        topic=publication.topic
        if publication
        else topics.wire_topic(row.topic, row.tenant or None),
        partition=publication.partition if publication else 0,
        offset=publication.offset if publication else 0,
        key=None if row.key is None else row.key.encode(),
        value=None if row.payload is None else bytes(row.payload),
        headers=headers_of(row),
        timestamp=int(row.occurred_at.timestamp() * 1000),
    )


def _read(record: Record | None, tenant: str | None) -> tuple[Event | None, str]:
    if record is None:
        return None, ""
    try:
        return decode(record, tenant=tenant), ""
    except DecodingError as error:
        return None, str(error)


def _written(row: OutboxMessage) -> Written:
    publication: Publication | None = getattr(row, "publication", None)
    aside: WithheldMessage | None = getattr(row, "withheldmessage", None)
    return Written(
        id=row.pk,
        occurred_at=row.occurred_at,
        published=None
        if publication is None
        else Place(
            topic=publication.topic,
            partition=publication.partition,
            offset=publication.offset,
            at=publication.published_at,
        ),
        withheld=None
        if aside is None
        else Withheld(
            state=aside.state,
            error=aside.error,
            withheld_at=aside.withheld_at,
            resolved_at=aside.resolved_at,
            reason=aside.reason,
        ),
    )


def _places(written: Written | None, found: Collection[Delivery]) -> tuple[Place, ...]:
    seen = {}
    if written is not None and (place := written.published) is not None:
        seen[place.topic, place.partition, place.offset] = place
    for delivery in found:
        at = (delivery.topic, delivery.partition, delivery.offset)
        seen.setdefault(
            at, Place(topic=at[0], partition=at[1], offset=at[2], at=delivery.published_at)
        )
    return tuple(seen.values())


def _handlings(
    event: Event | None,
    found: Collection[tuple[Delivery, str]],
    effects: Mapping[tuple[str, int], datetime],
    places: Collection[Place],
    using: str,
) -> Iterator[Handling]:
    kept = {(one.receiver, one.replay): (one, alias) for one, alias in found}
    runs = _runs(found)
    wanting = {
        (receiver.name, 0) for receiver in registry if event is not None and receiver.wants(event)
    }
    for name, replay in sorted({*wanting, *kept, *effects}):
        receiver = registry.get(name)
        delivery, alias = kept.get((name, replay), (None, using))
        handled_at = effects.get((name, replay))
        yield Handling(
            receiver=name,
            group=delivery.group if delivery else (receiver.group if receiver else ""),
            is_registered=receiver is not None,
            replay=replay,
            result=_result(delivery, handled_at, receiver, places),
            handled_at=handled_at,
            delivery=None
            if delivery is None
            else _kept(delivery, runs.get((alias, delivery.pk), ()), alias),
        )


def _result(
    delivery: Any,
    handled_at: datetime | None,
    receiver: Receiver | None,
    places: Collection[Place],
) -> Result:
    if handled_at is not None:
        return Result.HANDLED
    if delivery is not None:
        if delivery.state == Delivery.State.RESOLVED:
            return Result.HANDLED
        return Result.HELD if delivery.held_behind is not None else Result(delivery.state)
    if receiver is None or not places:
        return Result.UNKNOWN
    database = receiver.using if receiver.mode == "transaction" else ""
    for place in places:
        next_offset = (
            ConsumerOffset.objects.using(receiver.using)
            .filter(
                group=receiver.group,
                database=database,
                topic=place.topic,
                partition=place.partition,
            )
            .values_list("offset", flat=True)
            .first()
        )
        if next_offset is not None:
            return Result.AHEAD if next_offset <= place.offset else Result.PASSED
    return Result.UNKNOWN


def _runs(found: Collection[tuple[Delivery, str]]) -> dict[tuple[str, int], tuple[Run, ...]]:
    """The runs of deliveries, by database and delivery."""
    by_alias: defaultdict[str, list[int]] = defaultdict(list)
    for delivery, alias in found:
        by_alias[alias].append(delivery.pk)
    runs: defaultdict[tuple[str, int], list[Run]] = defaultdict(list)
    for alias, ids in by_alias.items():
        for attempt in Attempt.objects.using(alias).filter(delivery__in=ids).order_by("id"):
            runs[alias, attempt.delivery_id].append(
                Run(
                    number=attempt.number,
                    receiver=attempt.receiver,
                    started_at=attempt.started_at,
                    duration=attempt.duration,
                    outcome=attempt.outcome,
                    error_class=attempt.error_class,
                    error=attempt.error,
                    traceback=attempt.traceback,
                )
            )
    return {key: tuple(value) for key, value in runs.items()}


def _kept(delivery: Any, runs: tuple[Run, ...], alias: str) -> Kept:
    return Kept(
        id=delivery.pk,
        state=delivery.state,
        attempts=delivery.attempts,
        is_running=delivery.unfinished,
        created_at=delivery.created_at,
        last_attempt_at=delivery.last_attempt_at,
        next_attempt_at=delivery.next_attempt_at,
        resolved_at=delivery.resolved_at,
        reason=delivery.reason,
        error_class=delivery.error_class,
        error=delivery.error,
        traceback=delivery.traceback,
        held_behind=delivery.held_behind,
        waited_for=deliveries.waited_for(delivery),
        holds=_holds(delivery, alias),
        runs=runs,
    )


def _holds(delivery: Delivery, alias: str) -> int:
    if delivery.state not in Delivery.OPEN or delivery.order == "none":
        return 0
    behind = Delivery.objects.using(alias).filter(
        state__in=Delivery.OPEN,
        order=delivery.order,
        receiver=delivery.receiver,
        topic=delivery.topic,
        id__gt=delivery.pk,
        **{delivery.order: getattr(delivery, delivery.order)},  # "key" and "partition" are columns
    )
    return len(behind.values_list("id")[:MOST_COUNTED])


class Change(NamedTuple):
    """A member of ``old`` and ``new`` that differs, or stands in one of them only."""

    name: str
    #: Values as JSON has them; ``MISSING`` where the member is not there.
    old: Any
    new: Any


MISSING = object()


def changes(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[Change]:
    """Compare what was with what is, member by member, in the order of ``new``."""
    old, new = old or {}, new or {}
    names = [*new, *(name for name in old if name not in new)]
    pairs = [Change(name, old.get(name, MISSING), new.get(name, MISSING)) for name in names]
    # True equals 1.
    return [c for c in pairs if c.old != c.new or type(c.old) is not type(c.new)]
