"""Reset: the offsets of a group that does not run, to another place in its topics."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction

from folio_events import inbox
from folio_events.audit import Actor
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, PartitionState
from folio_events.exceptions import ConfigurationError, FencedError, InvalidStateError
from folio_events.inbox import Lane, Position
from folio_events.message import TopicPartition
from folio_events.models import Replay
from folio_events.operations import replays
from folio_events.operations.criteria import milliseconds, names_topic
from folio_events.operations.past_events import listened_topics
from folio_events.receivers import Receiver, registry

logger = logging.getLogger("folio_events.offsets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a group is to go on: one of these.

    Raises:
        ValueError: None of them is named, or several are; or the time has no zone.
    """

    #: "earliest", "latest".
    end: str | None = None
    #: At the first message that was published then or later. With a zone.
    time: datetime | None = None
    offset: int | None = None

    def __post_init__(self) -> None:
        if [self.end, self.time, self.offset].count(None) != 2:
            raise ValueError("Say where to: earliest, latest, a time or an offset; one of them.")
        if self.end not in (None, "earliest", "latest"):
            raise ValueError(f"{self.end!r} is no end of a log: it is 'earliest' or 'latest'.")
        if self.time is not None and self.time.tzinfo is None:
            raise ValueError(f"{self.time} has no time zone: add one, such as +00:00.")

    def __str__(self) -> str:
        return str(next(one for one in (self.end, self.time, self.offset) if one is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One partition of a reset, for the receivers of one database."""

    place: TopicPartition
    #: Alias of the receivers' database; "" for those without a transaction.
    database: str
    #: Next offset; None: the group has not begun there.
    old: int | None
    new: int
    #: First offset that is kept, and the one after the last.
    low: int
    high: int

    @property
    def between(self) -> int:
        """Offsets that are kept between the two: above 0 read again, below 0 passed over."""
        old = self.low if self.old is None else min(max(self.old, self.low), self.high)
        return old - self.new


def reset_offsets(
    group: str,
    to: Target,
    *,
    topic: str | None = None,
    partitions: Collection[int] | None = None,
    unknown: bool = False,
    again: bool = False,
    reason: str = "",
    dry_run: bool = False,
    by: Actor = None,
    broker: Broker | None = None,
) -> list[Move]:
    """Move the offsets of a group that does not run, in its databases and on the broker.

    Also the way on for partitions that are stopped since their topic was created anew, records
    of it were lost, or another tool has moved the group. The databases come first, each in one
    transaction: after a kill in between, their offsets are the ones that count, or the partition
    is still stopped; reset again.

    What has taken effect in a receiver does not run again, nor does what it has a delivery of,
    unless ``again`` is set.

    Args:
        group: Name of a group with receivers.
        to: Where it goes on.
        topic: Logical topic, ``*`` for any characters of a segment, or a topic's name on the
            broker; None: all that the group listens to.
        partitions: None: all.
        unknown: Only partitions of which no database has an offset, as after a restore.
        again: Whether the events up to where the group was run again, under the number of a new
            replay.
        reason: Kept in Django's log.
        dry_run: Only say what would move.
        by: The user who asks.
        broker: Defaults to the setting BROKER.

    Returns:
        What was moved, or would be.

    Raises:
        ConfigurationError: No receiver is in the group.
        ValueError: There is no reason.
        InvalidStateError: The group has members, no such partition exists, or it has no such
            offset. Nothing was moved.
        BrokerError: The broker does not answer; or it refuses, since a member has joined: then
            the databases' offsets are moved, and a member follows them.
    """
    receivers = registry.in_group(group)
    if not receivers:
        known = ", ".join(registry.groups()) or "none"
        raise ConfigurationError(
            f"No receiver is in group {group!r}. Groups with receivers: {known}."
        )
    if not dry_run and not reason.strip():
        raise ValueError("Say why: the reason is kept in Django's log.")
    broker = broker or get_broker()
    states = _states(group, receivers, topic, partitions, broker)
    lanes = [
        Lane(group=group, database=name)
        for name in sorted({receiver.lane for receiver in receivers}, reverse=True)
    ]
    if unknown:
        met = {place for lane in lanes for place in inbox.positions(lane, states)}
        states = {place: state for place, state in states.items() if place not in met}
    targets = _targets(to, states, broker)
    if dry_run:
        return [
            move
            for lane in lanes
            for move in _moves(lane, inbox.positions(lane, states), states, targets)
        ]
    if members := broker.group_members(group):
        raise InvalidStateError(
            f"Group {group!r} has members: {', '.join(members)}. Stop its consumers first "
            "('manage.py consume_events'); one that was killed is forgotten after its session "
            "timeout."
        )
    done: list[Move] = []
    for lane in lanes:
        own = [receiver.name for receiver in receivers if receiver.lane == lane.database]
        done += _reset_lane(lane, own, states, targets, to, again=again, reason=reason, by=by)
    broker.set_group_offsets(group, targets)
    logger.warning(
        "group %s reset to %s by %s: %s partitions, %s",
        group, to, "a program" if by is None else f"user {by.pk}", len(targets), reason,
    )  # fmt: skip
    return done


def _states(
    group: str,
    receivers: Collection[Receiver],
    topic: str | None,
    partitions: Collection[int] | None,
    broker: Broker,
) -> dict[TopicPartition, PartitionState]:
    names = listened_topics(broker, {receiver.topic for receiver in receivers})
    if topic is not None:
        names = {name for name in names if names_topic(topic, name)}
    found = broker.partition_states(names, group)
    if partitions is not None:
        found = {place: state for place, state in found.items() if place.partition in partitions}
    missing = set(partitions or ()) - {place.partition for place in found}
    if not found or missing:
        what = f"topic {topic!r}" if topic is not None else "topic"
        which = f" with partition {min(missing)}" if missing else ""
        raise InvalidStateError(
            f"Group {group!r} listens to no {what}{which} on the broker. Nothing was moved."
        )
    return found


def _targets(
    to: Target, states: Mapping[TopicPartition, PartitionState], broker: Broker
) -> dict[TopicPartition, int]:
    if to.time is not None:
        return broker.offsets_at(list(states), milliseconds(to.time))
    if to.end == "earliest":
        return {place: state.low for place, state in states.items()}
    if to.offset is None:
        return {place: state.high for place, state in states.items()}
    for place, state in states.items():
        if not state.low <= to.offset <= state.high:
            raise InvalidStateError(
                f"{place.topic}/{place.partition} has the offsets {state.low} to {state.high}, not "
                f"{to.offset}. Nothing was moved."
            )
    return dict.fromkeys(states, to.offset)


def _moves(
    lane: Lane,
    known: Mapping[TopicPartition, Position],
    states: Mapping[TopicPartition, PartitionState],
    targets: Mapping[TopicPartition, int],
) -> list[Move]:
    return [
        Move(
            place=place,
            database=lane.database,
            old=known[place].offset if place in known else None,
            new=targets[place],
            low=state.low,
            high=state.high,
        )
        for place, state in sorted(states.items())
    ]


def _reset_lane(
    lane: Lane,
    receivers: Collection[str],
    states: Mapping[TopicPartition, PartitionState],
    targets: Mapping[TopicPartition, int],
    to: Target,
    *,
    again: bool,
    reason: str,
    by: Actor,
) -> list[Move]:
    with transaction.atomic(using=lane.using):
        known = _lock(lane, states)
        moves = _moves(lane, known, states, targets)
        number = 0
        if again and any(move.between > 0 for move in moves):
            criteria = {"group": lane.group, "to": str(to)}
            number = replays.start(
                receivers, criteria, Replay.Source.RESET, reason=reason, by=by, using=lane.using
            ).pk
        inbox.reset(
            lane,
            {
                move.place: _position(
                    move, known.get(move.place), states[move.place].topic_id, number
                )
                for move in moves
            },
        )
    return moves


def _position(move: Move, known: Position | None, topic_id: str, number: int) -> Position:
    same = known is not None and known.topic_id in ("", topic_id)
    replay, end = (known.replay, known.replay_end) if known is not None and same else (0, 0)
    if number and known is not None and move.between > 0:
        # What an earlier reset has left to run again is part of it.
        replay, end = number, max(end, min(known.offset, move.high))
    return Position(move.new, topic_id, replay, end)


def _lock(lane: Lane, places: Collection[TopicPartition]) -> dict[TopicPartition, Position]:
    """Lock the rows that there are, unless a consumer is at work there.

    Raises:
        InvalidStateError: One is.
    """
    known = inbox.positions(lane, places)
    try:
        if known:
            expected = {place: position.offset for place, position in known.items()}
            inbox.lock(lane, expected, wait=False)
    except FencedError as error:
        raise InvalidStateError(
            f"A consumer of group {lane.group!r} is at work. Stop it first. Nothing was moved in "
            f"database {lane.using!r}."
        ) from error
    return known
