"""Replay: past events, from the broker's log or the outbox, again to receivers by name."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from django.db import DEFAULT_DB_ALIAS, transaction

from folio_events import deliveries, entitlement, inbox
from folio_events.audit import Actor
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.dialects import decode
from folio_events.event import Event
from folio_events.exceptions import DecodingError, InvalidStateError
from folio_events.inbox import Lane, Position
from folio_events.message import Record, TopicPartition
from folio_events.models import Replay
from folio_events.operations import replays
from folio_events.operations.criteria import Criteria
from folio_events.operations.past_events import Batch, PastEvents, past_events, read_on
from folio_events.receivers import Receiver, broadcasts, registry

logger = logging.getLogger("folio_events.replay")

Source = Replay.Source


@dataclass(slots=True, kw_only=True)
class Count:
    """What a replay found, or would find."""

    source: Replay.Source
    #: Topic on the broker and receiver, to events that it runs again.
    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Messages that were looked at, and those among them that are no events.
    passed: int = 0
    unreadable: int = 0

    @property
    def deliveries(self) -> int:
        return self.events.total()


def replayed_receivers(names: Collection[str]) -> list[Receiver]:
    """The receivers of these names.

    Raises:
        InvalidStateError: One is not registered, or runs nothing that could run again.
        ValueError: There is none, or they keep their state in several databases.
    """
    found = []
    for name in sorted(set(names)):
        receiver = registry.get(name)
        if receiver is None:
            broadcast = broadcasts.get(name) is not None
            why = "is a broadcast receiver: start its processes anew" if broadcast else "is unknown"
            raise InvalidStateError(f"Receiver {name!r} {why}.")
        found.append(receiver)
    if not found:
        raise ValueError("Name the receivers that are to run the events again.")
    if len(aliases := {receiver.using for receiver in found}) > 1:
        raise ValueError(
            f"These receivers work in the databases {', '.join(sorted(aliases))}: replay to those "
            "of one database at a time."
        )
    return found


def warnings_about(receivers: Collection[Receiver]) -> list[str]:
    """What running events again means for some receivers, in sentences."""
    said = []
    for receiver in receivers:
        if receiver.mode != "transaction":
            said.append(
                f"{receiver.name} runs outside a transaction (mode {receiver.mode!r}): its calls "
                "and mails are made again, under other idempotency keys."
            )
        if receiver.order == "partition":
            said.append(
                f"{receiver.name} keeps the order of partitions: new events of them wait, for its "
                "whole group, until the replayed ones are settled."
            )
        if not inbox.has_begun(Lane(group=receiver.group, database=receiver.lane)):
            said.append(
                f"Group {receiver.group!r} of {receiver.name} has read nothing yet, so nothing can "
                "run again: its consumer brings it what is on the broker."
            )
    return said


def count_events(
    criteria: Criteria,
    receivers: Collection[str],
    *,
    source: str | None = None,
    broker: Broker | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> Count:
    """Say what a replay would run; nothing is written.

    Args:
        criteria: Which events.
        receivers: Names of receivers of one database.
        source: "broker" or "outbox"; None: the broker's log where it still holds the events.
        broker: Defaults to the setting BROKER.
        advance: Told of each batch how many messages were looked at.

    Raises:
        ValueError: No receiver is named, or those of several databases.
        InvalidStateError: A receiver cannot run events again, or they are not all kept.
        BrokerError: The broker does not answer.
    """
    found = replayed_receivers(receivers)
    broker = broker or get_broker()
    where, log = past_events(criteria, found, source, broker)
    run = _Run(criteria=criteria, receivers=found, advance=advance, count=Count(source=where))
    run.follow(log)
    return run.count


def replay_events(
    criteria: Criteria,
    receivers: Collection[str],
    *,
    reason: str,
    source: str | None = None,
    rate: float | None = None,
    by: Actor = None,
    broker: Broker | None = None,
    advance: Callable[[int], None] = lambda _count: None,
    started: Callable[[Replay], None] = lambda _replay: None,
    stop: threading.Event | None = None,
) -> Replay:
    """Have receivers run past events again, once, as deliveries of the retry pass.

    Other receivers, the group's offsets and its reading are not touched. The events run in the
    order of their keys, when no other delivery is due; new events of a key wait behind those of
    it. What the group has not read yet is left to it. Without an end, the replay ends where the
    group is, so that the last event of a key that a receiver runs is the newest.

    Each batch is a transaction of its own that also notes how far the replay is, so not to be
    called within one. After a kill, ``resume_replay()`` goes on.

    Args:
        criteria: Which events.
        receivers: Names of receivers of one database; its outbox is meant by "outbox".
        reason: Kept with the replay and in Django's log.
        source: "broker" or "outbox"; None: the broker's log where it still holds the events.
        rate: Most deliveries that are made in a second, on the average; None: any. Where the group
            reads more than that, a replay without an end has none.
        by: The user who asks.
        broker: Defaults to the setting BROKER.
        advance: Told of each batch how many messages were looked at.
        started: Told of the replay when it has its number.
        stop: Ends the work after the batch in hand; the replay stays to be resumed.

    Returns:
        The replay, as the database has it.

    Raises:
        ValueError: No receiver or reason is named, or receivers of several databases.
        InvalidStateError: A receiver cannot run events again, they are not all kept, or the
            replay was cancelled or taken over meanwhile.
        BrokerError: The broker does not answer; the replay can be resumed.
    """
    found = replayed_receivers(receivers)
    broker = broker or get_broker()
    where, log = past_events(criteria, found, source, broker)
    replay = replays.start(
        [receiver.name for receiver in found],
        criteria.as_json(),
        where,
        reason=reason,
        by=by,
        using=found[0].using,
    )
    # Before the first batch: when it is resumed it has the same ends.
    replays.advance(replay, log.position, passed=0, unreadable=0, made=0)
    started(replay)
    run = _Run(
        criteria=criteria, receivers=found, advance=advance, count=Count(source=where),
        replay=replay, rate=rate, stop=stop,
    )  # fmt: skip
    return _complete(run, replay, log)


def resume_replay(
    number: int,
    *,
    rate: float | None = None,
    broker: Broker | None = None,
    advance: Callable[[int], None] = lambda _count: None,
    stop: threading.Event | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> Replay:
    """Go on with a replay that was killed or stopped; a process that works on it ends.

    Args:
        number: Of the replay.
        rate: As for ``replay_events()``, and so are the others.
        broker: Defaults to the setting BROKER.
        advance: Told of each batch how many messages were looked at.
        stop: Ends the work after the batch in hand.
        using: Database alias.

    Raises:
        InvalidStateError: It has ended, or a receiver of it is no more.
        BrokerError: The broker does not answer, or has deleted what is left of it.
    """
    replay = replays.take_over(number, using=using)
    found = replayed_receivers(replay.receivers)
    criteria = Criteria.from_json(replay.criteria)
    broker = broker or get_broker()
    where = Source(replay.source)
    if replay.position:
        log = read_on(criteria, found, replay.position, broker)
    else:  # killed before it began
        where, log = past_events(criteria, found, where, broker)
    run = _Run(
        criteria=criteria, receivers=found, advance=advance, count=Count(source=where),
        replay=replay, rate=rate, stop=stop,
    )  # fmt: skip
    return _complete(run, replay, log)


def cancel_replay(
    number: int, *, reason: str, by: Actor = None, using: str = DEFAULT_DB_ALIAS
) -> int:
    """End a replay, and discard those of its deliveries that are open.

    What took effect stays. Doing it again discards what is still open.

    Args:
        number: Of the replay.
        reason: Kept with the deliveries and in Django's log.
        by: The user who asks.
        using: Database alias.

    Returns:
        How many deliveries were discarded.

    Raises:
        InvalidStateError: There is no such replay, or it is a reset of offsets.
    """
    replay = replays.cancel(number, reason=reason, by=by, using=using)
    return deliveries.discard_replayed(number, replay.receivers, reason=reason, using=using)


def _complete(run: _Run, replay: Replay, log: PastEvents) -> Replay:
    if run.follow(log):
        replays.finish(replay)
    replay.refresh_from_db()
    logger.info(
        "replay %s is %s: %s messages, %s deliveries, %s unreadable",
        replay.pk, replay.state, replay.passed, replay.deliveries, replay.unreadable,
    )  # fmt: skip
    return replay


@dataclass(slots=True, kw_only=True)
class _Run:
    """One pass over past messages; without a replay it only counts."""

    criteria: Criteria
    receivers: Sequence[Receiver]
    advance: Callable[[int], None]
    count: Count
    replay: Replay | None = None
    rate: float | None = None
    stop: threading.Event | None = None

    @property
    def _using(self) -> str:
        return self.receivers[0].using

    def follow(self, log: PastEvents) -> bool:
        """Look at all that is left; False if it was stopped before the end."""
        began = time.monotonic()
        for batch in log.batches(self._limits):
            self._take(batch)
            self.advance(len(batch.records))
            if self.stop is not None and self.stop.is_set():
                return False
            if self.rate is not None and self.replay is not None:
                early = self.count.deliveries / self.rate - (time.monotonic() - began)
                (self.stop or threading.Event()).wait(max(early, 0))
        return True

    def _limits(self, places: Collection[TopicPartition], wait: bool) -> dict[TopicPartition, int]:
        with transaction.atomic(using=self._using):
            reached = self._reached(places, locked=wait and self.replay is not None)
        return {place: max(one[place] for one in reached.values()) for place in places}

    def _reached(
        self, places: Collection[TopicPartition], *, locked: bool
    ) -> dict[str, dict[TopicPartition, int]]:
        """By receiver, the offsets that it has come to; what is left it reads by itself."""
        read = inbox.locked_positions if locked else inbox.positions
        lanes = {r.name: Lane(group=r.group, database=r.lane) for r in self.receivers}
        # In one order everywhere, or two would wait for each other.
        ordered = sorted(set(lanes.values()), key=lambda lane: (lane.group, lane.database))
        found = {lane: read(lane, places) for lane in ordered}
        return {
            name: {place: found[lane].get(place, Position(0)).offset for place in places}
            for name, lane in lanes.items()
        }

    def _take(self, batch: Batch) -> None:
        """Keep for each receiver what it is to run again."""
        events, unreadable = self._read(batch.records)
        places = {record.topic_partition for record in batch.records}
        with transaction.atomic(using=self._using):
            reached = self._reached(places, locked=False)
            if self.replay is not None and any(
                record.offset >= one[record.topic_partition]
                for one in reached.values()
                for record in batch.records
            ):
                # Side by side with the group: what it has in hand must not overtake these.
                reached = self._reached(places, locked=True)
            found = [
                (receiver, record, event)
                for record, event in events
                for receiver in self.receivers
                if record.offset < reached[receiver.name][record.topic_partition]
                and receiver.wants(event)
            ]
            if self.replay is not None:
                deliveries.record_replayed(found, self.replay.pk, using=self._using)
                replays.advance(
                    self.replay,
                    batch.position,
                    passed=len(batch.records),
                    unreadable=unreadable,
                    made=len(found),
                )
        self.count.events.update((record.topic, r.name) for r, record, _ in found)
        self.count.passed += len(batch.records)
        self.count.unreadable += unreadable

    def _read(self, records: Sequence[Record]) -> tuple[list[tuple[Record, Event]], int]:
        found, unreadable = [], 0
        for record in records:
            try:
                event = decode(record)
            except DecodingError:
                unreadable += 1
                continue
            if self.criteria.takes(event, record) and entitlement.takes(event.tenant):
                found.append((record, event))
        return found, unreadable
