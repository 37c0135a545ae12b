"""The loop: poll, dispatch, commit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime

from django.db import Error as DatabaseError
from django.db import OperationalError, ProgrammingError, connections
from django.utils import timezone

from folio_events import counts, inbox, signals, topics
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, PartitionState, Subscription
from folio_events.conf import get_settings
from folio_events.connection import refresh_connection
from folio_events.dispatch import Fence, PartitionBlockedError, dispatch
from folio_events.exceptions import BrokerError, ConfigurationError, FencedError, MissingTopicError
from folio_events.inbox import Lane, Position
from folio_events.loop import repeat
from folio_events.message import Record, TopicPartition
from folio_events.models import Process
from folio_events.processes import Heartbeat
from folio_events.provisioning import own_topics, topic_spec
from folio_events.receivers import Receiver, registry
from folio_events.retry import is_transient

logger = logging.getLogger("folio_events.consumer")

#: Seconds that a batch may take before the group is told that this member lives.
_KEEP_ALIVE_INTERVAL = 1.0
#: Seconds for which partitions that another consumer is at are left aside.
_FENCED_PAUSE = 0.1


@dataclass(slots=True)
class _LaneState:
    """What a member knows of one lane; the fence finds out what it does not."""

    lane: Lane
    #: Next offset of each partition, as last seen.
    known: dict[TopicPartition, int] = field(default_factory=dict)
    #: By partition that was reset to run events again: number of the replay, and its end.
    replays: dict[TopicPartition, tuple[int, int]] = field(default_factory=dict)
    #: Partitions of which a batch has ended well since they were handed over.
    proven: set[TopicPartition] = field(default_factory=set)
    #: Partitions whose note of a beginning is to be taken back: this process has outlived it.
    outlived: set[TopicPartition] = field(default_factory=set)

    def learn(self, positions: Mapping[TopicPartition, Position]) -> None:
        for place, position in positions.items():
            if self.known.get(place) != position.offset:
                self.forget([place])
            self.known[place] = position.offset
            if position.offset < position.replay_end:
                self.replays[place] = position.replay, position.replay_end

    def forget(self, places: Iterable[TopicPartition]) -> None:
        for place in places:
            self.known.pop(place, None)
            self.replays.pop(place, None)
            self.proven.discard(place)


class Consumer:
    """A member of one consumer group; used by one thread.

    Args:
        group: Its name; it must have receivers.
        broker: Defaults to the setting BROKER.
        follows_broker: Whether partitions that no database knows of are read on from where the
            broker has the group, as after a test that was rolled back.

    Raises:
        ConfigurationError: No receiver is in the group.
    """

    def __init__(
        self, group: str, *, broker: Broker | None = None, follows_broker: bool = False
    ) -> None:
        self.group = group
        self._follows_broker = follows_broker
        self.name = f"group {group}"
        self.broker = broker or get_broker()
        self.receivers = registry.in_group(group)
        if not self.receivers:
            known = ", ".join(registry.groups()) or "none"
            raise ConfigurationError(
                f"No receiver is in group {group!r}. Groups with receivers: {known}."
            )
        # Those without a transaction last: they run when the others have committed.
        names = sorted({receiver.lane for receiver in self.receivers}, reverse=True)
        self._lanes = [_LaneState(Lane(group=group, database=name)) for name in names]
        self._subscription: Subscription | None = None
        self._topic_ids: dict[str, str] = {}
        #: What was handed over to this member and not taken from it.
        self._assigned: set[TopicPartition] = set()
        #: Runs batches while this thread keeps polling; None: batches run in this thread.
        self._background: ThreadPoolExecutor | None = None
        self._in_hand: Future[None] | None = None
        self._alive: Callable[[], None] = lambda: None
        self._heartbeat = Heartbeat(Process.Kind.CONSUMER, group, using=self._databases[0])

    @property
    def _databases(self) -> list[str]:
        return list(dict.fromkeys(state.lane.using for state in self._lanes))

    @property
    def topics(self) -> list[str]:
        """What the group subscribes to: names and patterns of the broker's topics."""
        return topics.subscriptions(receiver.topic for receiver in self.receivers)

    def start(self) -> None:
        """Join the group.

        Raises:
            ConfigurationError: A database has no tables of folio_events.
            MissingTopicError: A topic that receivers name does not exist.
            BrokerUnavailableError: The broker does not answer.
        """
        for state in self._lanes:
            _require_tables(state.lane)
        self._ensure_topics()
        self._subscription = self.broker.subscribe(
            self.group, self.topics, self._positions, self._finish_before_revoke
        )

    def _ensure_topics(self) -> None:
        names = [name for name in self.topics if not name.startswith("^")]
        missing = self.broker.missing_topics(names) if names else set()
        if missing and get_settings().CREATE_TOPICS:
            specs = [topic_spec(topic, None) for topic in own_topics()]
            own = [spec for spec in specs if spec.name in missing]
            self.broker.create_topics(own)
            missing -= {spec.name for spec in own}
        if missing and self.broker.requires_topics:
            listed = ", ".join(sorted(missing))
            raise MissingTopicError(
                f"Group {self.group!r} listens to topics that do not exist: {listed}. Create them "
                "with 'manage.py create_topics', or mend the receivers' topics."
            )

    def _positions(
        self, states: Mapping[TopicPartition, PartitionState]
    ) -> Mapping[TopicPartition, int | None]:
        """Where to read on: the lane that is furthest behind decides, the others skip."""
        self._topic_ids.update((place.topic, state.topic_id) for place, state in states.items())
        self._assigned.update(states)
        found: dict[TopicPartition, int | None] = {}
        for lane_state in self._lanes:
            positions = inbox.positions(lane_state.lane, states)
            # Who moves them from now on is noticed, also before the first batch.
            lane_state.learn(positions)
            for place, position in positions.items():
                fault = _fault(position, states[place])
                if fault:
                    self._say_stopped(place, position.offset, fault)
                    found[place] = None
                elif (known := found.get(place, position.offset)) is not None:
                    found[place] = min(position.offset, known)
        if self._follows_broker:
            return found
        for place, state in states.items():
            if place not in found and state.committed is not None and state.own_commit:
                self._say_stopped(
                    place,
                    state.committed,
                    "the group has read up to there, and no database knows of it: one is empty, or "
                    "from a backup of before the group's first event of this partition",
                )
                found[place] = None
        return found

    def _say_stopped(self, place: TopicPartition, offset: int, fault: str) -> None:
        logger.error(
            "stopped: group=%s topic=%s partition=%s offset=%s: %s. Say where it goes on with "
            "'manage.py reset_offsets --group %s --topic %s --partition %s'",
            self.group, place.topic, place.partition, offset, fault,
            self.group, place.topic, place.partition,
        )  # fmt: skip
        signals.partition_stopped.tell(
            using=self._databases[0], group=self.group, reason=fault,
            topic=place.topic, partition=place.partition, offset=offset,
        )  # fmt: skip

    def _finish_before_revoke(self, places: Collection[TopicPartition]) -> None:
        """Let the batch in hand end before its partitions go to another member."""
        if self._in_hand is not None:
            wait([self._in_hand], timeout=get_settings().REVOKE_WAIT)
        self._assigned.difference_update(places)
        for state in self._lanes:
            state.forget(places)

    def step(self, timeout: float | None = None) -> int:
        """Poll once, dispatch what came, and move the group on.

        Args:
            timeout: Seconds to wait for records; defaults to CONSUMER_POLL_INTERVAL.

        Returns:
            How many records were dispatched.
        """
        if self._subscription is None:
            self.start()
        subscription = self._subscription
        assert subscription is not None  # noqa: S101 - for the type checker
        if self._background is not None:
            self._report()
        settings = get_settings()
        longest = settings.CONSUMER_POLL_INTERVAL if timeout is None else timeout
        records = subscription.poll(settings.CONSUMER_BATCH_SIZE, longest)
        if not records:
            return 0
        done = False
        try:
            self._dispatch(records, subscription)
            done = True
        except FencedError as error:
            logger.info("%s", error)
            places = {record.topic_partition for record in records}
            subscription.pause(places, _FENCED_PAUSE)
            return 0
        except PartitionBlockedError as error:
            logger.info("%s", error)
            subscription.pause([error.place], settings.POLL_FAILURE_SLEEP)
            return 0
        finally:
            if not done:
                self._rewind(subscription, records)
        subscription.commit({record.topic_partition: record.offset + 1 for record in records})
        return len(records)

    def _dispatch(self, records: Sequence[Record], subscription: Subscription) -> None:
        if self._background is None:
            self._dispatch_to_lanes(records, subscription.exclusive)
            return
        self._in_hand = self._background.submit(
            self._dispatch_to_lanes, records, subscription.exclusive
        )
        begun = timezone.now()
        try:
            while not wait([self._in_hand], timeout=_KEEP_ALIVE_INTERVAL).done:
                subscription.keep_alive()
                self._alive()
                self._report(len(records), begun)
            self._in_hand.result()
        finally:
            self._in_hand = None

    def _report(self, records: int = 0, begun: datetime | None = None) -> None:
        """Say how it goes, now and then, from the thread that polls."""
        # A batch holds SQLite's one write lock.
        free = [
            using
            for using in self._databases
            if begun is None or connections[using].vendor != "sqlite"
        ]
        for using in free:
            counts.flush(using=using)
        if free[:1] == self._databases[:1] and self._heartbeat.is_due:
            self._heartbeat.beat(
                Process.State.WORKING if begun else Process.State.WAITING,
                partitions=self._assigned,
                records=records,
                busy_since=begun,
            )

    def _dispatch_to_lanes(self, records: Sequence[Record], exclusive: bool) -> None:
        # All of them first: a lane without a row begins where the others have come to.
        for state in self._lanes:
            refresh_connection(state.lane.using)
            self._meet(state, records)
        for state in self._lanes:
            receivers = [r for r in self.receivers if r.lane == state.lane.database]
            self._dispatch_to_lane(state, receivers, records, exclusive=exclusive)

    def _dispatch_to_lane(
        self,
        state: _LaneState,
        receivers: Sequence[Receiver],
        records: Sequence[Record],
        *,
        exclusive: bool,
    ) -> None:
        # Another lane may be behind this one.
        todo = [r for r in records if r.offset >= state.known[r.topic_partition]]
        if not todo:
            return
        expected = {r.topic_partition: state.known[r.topic_partition] for r in todo}
        self._take_back(state, expected)
        begun = {
            place: inbox.begin(state.lane, place, offset, wait=exclusive)
            for place, offset in expected.items()
            if place not in state.proven
        }
        fence = Fence(
            lane=state.lane, expected=expected, wait=exclusive, begun=begun, replays=state.replays
        )
        try:
            dispatch(todo, receivers, fence)
        finally:
            state.outlived |= begun.keys()
            self._take_back(state, begun)
        state.known.update((record.topic_partition, record.offset + 1) for record in todo)
        state.proven |= expected.keys()

    @staticmethod
    def _take_back(state: _LaneState, places: Collection[TopicPartition]) -> None:
        # Again where the database was away: an outage must not count against an event.
        inbox.end(state.lane, state.outlived & set(places))
        state.outlived -= set(places)

    def _meet(self, state: _LaneState, records: Sequence[Record]) -> None:
        """Learn the offsets of partitions that are new to this member."""
        firsts: dict[TopicPartition, int] = {}
        for record in records:
            if record.topic_partition not in state.known:
                firsts.setdefault(record.topic_partition, record.offset)
        if not firsts:
            return
        found = inbox.positions(state.lane, firsts)
        if new := {place: first for place, first in firsts.items() if place not in found}:
            inbox.start(
                state.lane,
                {
                    place: Position(first, self._topic_ids.get(place.topic, ""))
                    for place, first in new.items()
                },
            )
            found |= inbox.positions(state.lane, new)
        state.learn(found)

    def _rewind(self, subscription: Subscription, records: Sequence[Record]) -> None:
        """Have the records of a batch that did not end come again, from where they count."""
        firsts: dict[TopicPartition, int] = {}
        for record in records:
            firsts.setdefault(record.topic_partition, record.offset)
        for state in self._lanes:
            state.forget(firsts)
        try:
            furthest_behind: dict[TopicPartition, int] = {}
            for state in self._lanes:
                for place, position in inbox.positions(state.lane, firsts).items():
                    known = furthest_behind.get(place, position.offset)
                    furthest_behind[place] = min(position.offset, known)
            subscription.seek({**firsts, **furthest_behind})
        except (DatabaseError, BrokerError):
            # Joining anew reads the positions again.
            self.close()

    def run(self, stop: threading.Event, *, alive: Callable[[], None] = lambda: None) -> None:
        """Go on until told to stop; the batch in hand is finished first.

        Args:
            stop: Says so.
            alive: Called after each poll, and the batch that it brought, without an error; each
                second while a batch is being worked on.

        Raises:
            BrokerError: The broker refuses for good, or CONSECUTIVE_ERRORS_LIMIT was met.
            django.db.Error: CONSECUTIVE_ERRORS_LIMIT was met, or a table is missing.
        """
        with ThreadPoolExecutor(1, thread_name_prefix=f"receivers {self.group}") as pool:
            self._background = pool
            self._alive = alive
            try:
                # Joining anew reads positions and topics again, whatever an error left behind.
                repeat(self.step, stop, name=self.name, close=self.close, alive=alive)
                self._heartbeat.end()
            finally:
                self._background = None
                pool.submit(connections.close_all).result()

    def close(self) -> None:
        """Leave the group."""
        for state in self._lanes:
            state.forget(list(state.known))
        self._assigned.clear()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()
        for using in self._databases:
            counts.flush(using=using, at_once=True)


def _require_tables(lane: Lane) -> None:
    refresh_connection(lane.using)
    try:
        inbox.positions(lane, [TopicPartition("", 0)])
    except (ProgrammingError, OperationalError) as error:
        if is_transient(error):
            raise
        raise ConfigurationError(
            f"Database {lane.using!r} does not have the tables of folio_events: {error}. "
            "Run 'manage.py migrate'."
        ) from error


def _fault(position: Position, state: PartitionState) -> str:
    """Why a partition cannot be read on from a position; "" if it can."""
    if position.topic_id and state.topic_id and position.topic_id != state.topic_id:
        return "the topic was created anew; its offsets count from 0 again"
    if position.offset > state.high:
        return f"the log ends at {state.high}: records were lost, or the topic was created anew"
    if position.offset < state.low:
        return f"the log begins at {state.low}: records were deleted before they were read"
    if not state.own_commit and state.committed != position.offset:
        return f"another tool has set the group's offset to {state.committed}"
    return ""
