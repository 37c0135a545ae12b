"""One batch of records to the receivers of a group, in transactions."""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from django.db import Error as DatabaseError
from django.db import transaction

from folio_events import breakers, counts, deliveries, entitlement, inbox, orphans, signals
from folio_events.conf import get_settings
from folio_events.connection import refresh_connection
from folio_events.deliveries import Failure, Standing
from folio_events.dialects import decode
from folio_events.event import Event
from folio_events.exceptions import (
    DecodingError,
    FencedError,
    FolioEventsError,
    OrphanError,
    TenantDisabledError,
)
from folio_events.inbox import Effect, Lane
from folio_events.message import Record, TopicPartition
from folio_events.receivers import Receiver
from folio_events.retry import is_transient
from folio_events.running import run
from folio_events.signals import HandledEvent
from folio_events.topics import parse_wire_topic

logger = logging.getLogger("folio_events.dispatch")

#: Times that a receiver is started because of transient faults of the database.
_TRANSIENT_ATTEMPTS = 6
#: Most seconds before it is started again the first time; each further time twice as many.
_TRANSIENT_PAUSE = 0.02
#: Which beginning without an end of the one before makes an event dead unseen.
MAX_STARTS = 3


class ProcessEndedError(FolioEventsError):
    """The process ended each time that an event was begun; it becomes a dead letter."""


class _ReceiverFailedError(Exception):
    """A receiver failed within a batch: the batch is rolled back and goes one by one."""


class _Incoming(NamedTuple):
    """A record as far as it could be read; without event and error it is passed over."""

    record: Record
    event: Event | None
    error: DecodingError | TenantDisabledError | None
    replay: int

    def effect(self, receiver: Receiver, event: Event) -> Effect:
        return Effect(receiver.name, event.id, self.replay)


class PartitionBlockedError(FolioEventsError):
    """A partition has to wait, such as behind a delivery; what came before it in the batch is done.

    Attributes:
        place: The partition.
    """

    def __init__(self, place: TopicPartition, why: str) -> None:
        super().__init__(f"{place.topic}/{place.partition} waits: {why}")
        self.place = place


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Where a batch starts; who expects other offsets has been overtaken.

    Attributes:
        lane: Whose offsets.
        expected: Next offset of each partition of the batch.
        wait: Whether to wait for another consumer's lock, or give way to it.
        begun: How often the batch's first offsets were begun without an end; empty when
            the partitions have been worked through since they were handed over.
        replays: By partition that was reset to run events again: the number of that replay,
            and the offset from which on it is over.
    """

    lane: Lane
    expected: Mapping[TopicPartition, int]
    wait: bool
    begun: Mapping[TopicPartition, int] = field(default_factory=dict)
    replays: Mapping[TopicPartition, tuple[int, int]] = field(default_factory=dict)

    def replay_of(self, record: Record) -> int:
        """The number of the replay that a record belongs to, or 0."""
        number, end = self.replays.get(record.topic_partition, (0, 0))
        return number if record.offset < end else 0

    def lock(self, expected: Mapping[TopicPartition, int] | None = None) -> None:
        """Lock the offsets in the transaction of the caller, or raise FencedError."""
        inbox.lock(self.lane, self.expected if expected is None else expected, wait=self.wait)


def dispatch(records: Sequence[Record], receivers: Sequence[Receiver], fence: Fence) -> None:
    """Bring a batch to the receivers of one lane, and move its offsets on.

    Receivers with a transaction get one for the batch. If anything in it fails, the batch
    runs again record by record and receiver by receiver, each in a transaction of its own.
    So does a batch that was begun twice without an end; an event that was begun
    MAX_STARTS times is taken for one that ends the process, and becomes dead.

    Args:
        records: Ascending by offset within each partition, none before the fence.
        receivers: Those of the lane.
        fence: Where the batch starts.

    Raises:
        FencedError: Another consumer has these partitions; nothing took effect.
        PartitionBlockedError: A partition waits; what came before it took effect.
        django.db.Error: The database failed; what took effect is recorded.
    """
    batch = [_read(record, fence.replay_of(record)) for record in records]
    using = fence.lane.using
    if fence.lane.database and all(starts < 2 for starts in fence.begun.values()):
        try:
            with transaction.atomic(using=using):
                fence.lock()
                ran = _dispatch_together(batch, receivers, using)
                _keep_orphans(batch, receivers, fence.lane)
                ends = {record.topic_partition: record.offset + 1 for record in records}
                inbox.advance(fence.lane, ends)
        except (_ReceiverFailedError, PartitionBlockedError, DatabaseError) as error:
            if isinstance(error, DatabaseError):
                refresh_connection(using)
        else:
            for name, handled in ran.items():
                counts.add(counts.Outcome.HANDLED, name, len(handled), using=using)
                signals.tell_handled(name, handled, using=using)
            return
    _dispatch_apart(batch, receivers, fence)


def _read(record: Record, replay: int) -> _Incoming:
    try:
        event = decode(record)
        return _Incoming(record, event if entitlement.takes(event.tenant) else None, None, replay)
    except (DecodingError, TenantDisabledError) as error:
        return _Incoming(record, None, error, replay)


def _wanting(incoming: _Incoming, receivers: Sequence[Receiver]) -> list[Receiver]:
    if incoming.event is not None:
        event = incoming.event
        return [receiver for receiver in receivers if receiver.wants(event)]
    listening = _listening(incoming.record, receivers)
    if incoming.error is None or isinstance(incoming.error, OrphanError):
        return []
    if isinstance(incoming.error, TenantDisabledError) and listening:
        raise PartitionBlockedError(incoming.record.topic_partition, str(incoming.error))
    # Nobody knows what it is: whoever listens to the topic may have missed something.
    return listening


def _listening(record: Record, receivers: Sequence[Receiver]) -> list[Receiver]:
    topic = parse_wire_topic(record.topic).topic
    return [receiver for receiver in receivers if receiver.listens_to(topic)]


def _dispatch_together(
    batch: Sequence[_Incoming], receivers: Sequence[Receiver], using: str
) -> Mapping[str, Sequence[HandledEvent]]:
    """Run receivers in the caller's transaction.

    Returns:
        What each of them handled.
    """
    pairs = [
        (incoming, receiver) for incoming in batch for receiver in _wanting(incoming, receivers)
    ]
    known = [incoming.event for incoming, _ in pairs if incoming.event is not None]
    standing = deliveries.standing(
        {receiver.name for _, receiver in pairs},
        {event.key for event in known if event.key is not None},
        {event.id for event in known},
        {incoming.record.topic_partition for incoming, _ in pairs},
        replays={incoming.replay for incoming, _ in pairs},
        using=using,
    )
    troubled = breakers.troubled({receiver.name for _, receiver in pairs}, using=using)
    todo: list[tuple[Receiver, Event, Effect, Record]] = []
    for incoming, receiver in pairs:
        if incoming.event is None:
            _record_undecodable(incoming, receiver, using)
            standing.block(receiver, incoming.record)
        elif receiver.name in troubled:
            # Its own transactions tell which events it fails on, and that it works again.
            raise _ReceiverFailedError
        elif _is_free(incoming, incoming.event, receiver, standing, using):
            effect = incoming.effect(receiver, incoming.event)
            todo.append((receiver, incoming.event, effect, incoming.record))
    fresh = inbox.record({effect for _, _, effect, _ in todo}, using=using)
    ran: defaultdict[str, list[HandledEvent]] = defaultdict(list)
    for receiver, event, effect, record in todo:
        if effect in fresh:
            fresh.discard(effect)  # the same event may stand in the batch twice
            started = time.monotonic()
            _run_in_batch(receiver, event, effect.replay)
            ran[receiver.name].append(_handled(event, record, started))
    return ran


def _keep_orphans(batch: Sequence[_Incoming], receivers: Sequence[Receiver], lane: Lane) -> None:
    found = [
        (incoming.record, incoming.error)
        for incoming in batch
        if isinstance(incoming.error, OrphanError) and _listening(incoming.record, receivers)
    ]
    if found:
        places = {record.topic_partition for record, _ in found}
        topic_ids = {at: known.topic_id for at, known in inbox.positions(lane, places).items()}
        orphans.keep(found, topic_ids, using=lane.using)


def _is_free(
    incoming: _Incoming, event: Event, receiver: Receiver, standing: Standing, using: str
) -> bool:
    """Whether an event is to be run now; if it has to wait, it is kept as a delivery."""
    record = incoming.record
    # An event may come twice; what has become a delivery is the retry pass's to run.
    if incoming.effect(receiver, event) in standing.kept:
        return False
    waiting = standing.waiting(receiver, record)
    if waiting is None:
        return True
    if receiver.order == "partition" or waiting >= get_settings().MAX_HELD:
        raise PartitionBlockedError(
            record.topic_partition, f"{waiting} deliveries of {receiver.name}"
        )
    deliveries.record_held(receiver, record, event, replay=incoming.replay, using=using)
    standing.block(receiver, record)
    return False


def _handled(event: Event, record: Record, started: float) -> HandledEvent:
    return HandledEvent(event, record.timestamp / 1000, time.monotonic() - started)


def _run_in_batch(receiver: Receiver, event: Event, replay: int) -> None:
    try:
        run(receiver, event, replay=replay)
    except DatabaseError:
        raise
    except Exception as error:
        raise _ReceiverFailedError from error


def _record_undecodable(incoming: _Incoming, receiver: Receiver, using: str) -> None:
    if incoming.error is not None:
        failure = Failure(error=incoming.error, attempt=1, pause=None, duration=0.0)
        deliveries.record_failure(
            receiver, incoming.record, None, failure, replay=incoming.replay, using=using
        )


def _dispatch_apart(
    batch: Sequence[_Incoming], receivers: Sequence[Receiver], fence: Fence
) -> None:
    positions = dict(fence.expected)
    blocked: dict[TopicPartition, PartitionBlockedError] = {}
    for incoming in batch:
        place = incoming.record.topic_partition
        if place in blocked:
            continue
        step = replace(fence, expected={place: positions[place]})
        killer = place in fence.begun and _begin(incoming, fence, positions[place]) >= MAX_STARTS
        try:
            for receiver in _wanting(incoming, receivers):
                _deliver(incoming, receiver, step, killer=killer)
        except PartitionBlockedError as error:
            blocked[place] = error
            continue
        with transaction.atomic(using=fence.lane.using):
            step.lock()
            _keep_orphans([incoming], receivers, fence.lane)
            positions[place] = incoming.record.offset + 1
            inbox.advance(fence.lane, {place: positions[place]})
    if blocked:
        raise next(iter(blocked.values()))


def _begin(incoming: _Incoming, fence: Fence, position: int) -> int:
    place = incoming.record.topic_partition
    if position == fence.expected[place]:
        return fence.begun[place]  # the consumer has noted this one
    return inbox.begin(fence.lane, place, position, wait=fence.wait)


def _deliver(incoming: _Incoming, receiver: Receiver, fence: Fence, *, killer: bool) -> None:
    """Bring one record to one receiver; a failure becomes a delivery."""
    using = fence.lane.using
    event = incoming.event
    ran = False

    def attempt() -> None:
        nonlocal ran
        if killer and event is not None and not _has_effect(incoming, event, receiver, using):
            raise ProcessEndedError(
                f"The process ended {MAX_STARTS - 1} times after this event was begun."
            )
        if receiver.mode == "transaction":
            with transaction.atomic(using=using):
                fence.lock()
                if (
                    _has_turn(incoming, receiver, using)
                    and event is not None
                    and inbox.record([incoming.effect(receiver, event)], using=using)
                ):
                    run(receiver, event, replay=incoming.replay)
                    ran = True
        else:
            ran = _run_outside(incoming, receiver, fence)

    breaker = breakers.troubled([receiver.name], using=using).get(receiver.name)
    if breaker is not None and breaker.is_open and not breakers.take_probe(receiver, using=using):
        _leave_alone(incoming, receiver, fence)
        return
    started = time.monotonic()
    try:
        retrying_transients(attempt, using=using)
        # What had to wait or had its effect before says nothing of how the receiver fares.
        if breaker is not None and ran:
            breakers.succeeded(receiver, using=using)
        if ran and event is not None:
            counts.add(counts.Outcome.HANDLED, receiver.name, using=using)
            handled = _handled(event, incoming.record, started)
            signals.tell_handled(receiver.name, [handled], using=using)
    except (FencedError, PartitionBlockedError):
        raise
    except Exception as error:
        # A fault that does not pass: if it is the database's own, the next statement shows it.
        if event is None:
            raise
        duration = None if killer else time.monotonic() - started
        pause = None if killer else receiver.retry.pause(error, 1)
        with transaction.atomic(using=using):
            fence.lock()
            failure = Failure(error=error, attempt=1, pause=pause, duration=duration)
            deliveries.record_failure(
                receiver, incoming.record, event, failure, replay=incoming.replay, using=using
            )
            breakers.failed(receiver, using=using)
        if receiver.order == "partition":
            place = incoming.record.topic_partition
            raise PartitionBlockedError(place, f"{receiver.name} failed") from error


def _leave_alone(incoming: _Incoming, receiver: Receiver, fence: Fence) -> None:
    """Keep a record for a receiver whose breaker is open, without an attempt."""
    using, record, event = fence.lane.using, incoming.record, incoming.event
    limit = get_settings().MAX_WAITING
    replays = {0, incoming.replay}
    if deliveries.count_open(receiver.name, limit, replays=replays, using=using) >= limit:
        raise PartitionBlockedError(
            record.topic_partition, f"{limit} deliveries of {receiver.name}, whose breaker is open"
        )
    with transaction.atomic(using=using):
        fence.lock()
        if (
            _has_turn(incoming, receiver, using)
            and event is not None
            and not _has_effect(incoming, event, receiver, using)
        ):
            deliveries.record_held(receiver, record, event, replay=incoming.replay, using=using)


def _has_effect(incoming: _Incoming, event: Event, receiver: Receiver, using: str) -> bool:
    return inbox.seen(incoming.effect(receiver, event), using=using)


def _has_turn(incoming: _Incoming, receiver: Receiver, using: str) -> bool:
    event, record = incoming.event, incoming.record
    if event is None:
        _record_undecodable(incoming, receiver, using)
        return False
    standing = deliveries.standing(
        [receiver.name],
        [] if event.key is None else [event.key],
        [event.id],
        [record.topic_partition],
        replays=[incoming.replay],
        using=using,
    )
    return _is_free(incoming, event, receiver, standing, using)


def _run_outside(incoming: _Incoming, receiver: Receiver, fence: Fence) -> bool:
    """Run a receiver that works outside the transaction, and note it afterwards.

    Returns:
        Whether it was run.
    """
    using, event = fence.lane.using, incoming.event
    with transaction.atomic(using=using):
        fence.lock()
        has_turn = _has_turn(incoming, receiver, using)
    if not has_turn or event is None:
        return False
    if _has_effect(incoming, event, receiver, using):
        return False
    run(receiver, event, replay=incoming.replay)
    if receiver.mode == "after_commit":
        inbox.record([incoming.effect(receiver, event)], using=using)
    return True


def retrying_transients(attempt: Callable[[], None], *, using: str) -> None:
    """Run something in a transaction of its own, again where the database had a passing fault.

    Raises:
        Exception: What the last run raised.
    """
    for number in range(1, _TRANSIENT_ATTEMPTS + 1):
        try:
            attempt()
        except DatabaseError as error:
            if number == _TRANSIENT_ATTEMPTS or not is_transient(error):
                raise
            # Who deadlocked once would do so again side by side.
            longest = _TRANSIENT_PAUSE * 2 ** (number - 1)
            time.sleep(random.uniform(0, longest))  # noqa: S311 - spreads load
            logger.info(
                "a transient fault of database %s, trying again: %s", using, type(error).__name__
            )
            refresh_connection(using)
        else:
            return
