"""The port: what relay and consumer ask of a broker."""

from __future__ import annotations

import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from django.core.checks import CheckMessage

from folio_events.exceptions import BrokerError
from folio_events.message import Message, Record, TopicPartition


class Acknowledgement(NamedTuple):
    """Where the broker has put a message."""

    partition: int
    offset: int


#: What became of one message.
Report = Acknowledgement | BrokerError


class TopicSpec(NamedTuple):
    """A topic as it is wanted."""

    name: str
    partitions: int
    #: -1 leaves it to the broker.
    replication: int
    #: Kafka's names and values, such as "retention.ms"; what it leaves out is the broker's.
    config: Mapping[str, str] = MappingProxyType({})


class TopicState(NamedTuple):
    """A topic as it is."""

    partitions: int
    #: Of the partition that has the fewest; None: brokers without replicas.
    replication: int | None = None
    #: By Kafka's names; None: the broker keeps no settings of a topic, or tells none.
    config: Mapping[str, str] | None = None


class TopicUse(NamedTuple):
    """What stands in a topic, and how far it is read."""

    #: By partition: the first offset that is there, and the one after the last.
    ends: Mapping[int, tuple[int, int]]
    #: By group that the broker knows: the next offset of each partition that it has read.
    groups: Mapping[str, Mapping[int, int]] = MappingProxyType({})
    #: When its newest record was written, in milliseconds since 1970; None: it has none.
    newest: int | None = None


class PartitionState(NamedTuple):
    """What the broker knows of a partition that is handed over."""

    #: First offset that is still there, and the one after the last.
    low: int
    high: int
    #: The group's offset on the broker; None: it has none.
    committed: int | None = None
    #: Whether folio_events committed that, and no foreign tool.
    own_commit: bool = True
    #: Another when a topic of the same name is created anew; "" where brokers have none.
    topic_id: str = ""


#: Says from which offset each partition that is handed over is to be read. None: not to be
#: read. What it leaves out starts where the broker says.
Positions = Callable[[Mapping[TopicPartition, PartitionState]], Mapping[TopicPartition, int | None]]
#: Called before partitions are given up; may take a while to finish what is in hand.
Revoke = Callable[[Collection[TopicPartition]], None]


class Subscription(ABC):
    """One consumer's membership in a group; not shared between threads."""

    #: Whether the broker gives a partition to one member of a group at a time.
    exclusive: bool = True

    @abstractmethod
    def poll(self, limit: int, timeout: float) -> list[Record]:
        """Fetch the next records.

        Args:
            limit: Most records.
            timeout: Seconds to wait for the first.

        Returns:
            Records in the order of each partition; empty after the timeout.

        Raises:
            MissingTopicError: A topic subscribed to by name does not exist.
            BrokerUnavailableError: The broker does not answer.
            BrokerError: Not retryable: the subscription is of no more use.
        """

    def keep_alive(self) -> None:  # noqa: B027 - most brokers watch nobody
        """Stay a member while a batch takes its time; fetches nothing."""

    def pause(self, places: Collection[TopicPartition], seconds: float) -> None:  # noqa: B027
        """Leave partitions aside for a while; where there is no such thing, they come again."""

    @abstractmethod
    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read on from other offsets; of partitions given away, nothing happens."""

    @abstractmethod
    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Tell the broker the next offset of each partition; it may follow a little later."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group."""


class Reader(ABC):
    """Reads topics for one process alone: no group, and nothing of it stays on the broker.

    Not shared between threads.
    """

    #: Next offset of each partition.
    positions: Mapping[TopicPartition, int]

    @abstractmethod
    def poll(self, limit: int, timeout: float) -> list[Record]:
        """Fetch the next records; topics and partitions that are new are found by themselves.

        Args:
            limit: Most records.
            timeout: Seconds to wait for the first.

        Returns:
            Records in the order of each partition; empty after the timeout.

        Raises:
            BrokerError: The broker refuses; the reader is of no more use.
        """

    @abstractmethod
    def caught_up(self) -> bool:
        """Whether all has been read that the topics held when the reader was made."""

    @abstractmethod
    def close(self) -> None:
        """End reading."""


class SubscribedReader(Reader):
    """A reader in a group that nobody else has, for brokers that keep nothing of a group.

    Args:
        subscribe: Makes the subscription, which hands all partitions over when it is polled.
        latest: Whether partitions that are there already are read from their end.
        known: Partitions to be read on from these offsets instead.
    """

    def __init__(
        self,
        subscribe: Callable[[Positions], Subscription],
        *,
        latest: bool,
        known: Mapping[TopicPartition, int],
    ) -> None:
        self._latest = latest
        self._caught_up = False
        self.positions: dict[TopicPartition, int] = dict(known)
        self._subscription = subscribe(self._start)
        self._fetched = self._subscription.poll(1, 0)
        # What comes from now on is new.
        self._latest = False

    def _start(
        self, states: Mapping[TopicPartition, PartitionState]
    ) -> Mapping[TopicPartition, int | None]:
        for place, state in states.items():
            self.positions.setdefault(place, state.high if self._latest else state.low)
        return {place: self.positions[place] for place in states}

    def poll(self, limit: int, timeout: float) -> list[Record]:
        records, self._fetched = self._fetched or self._subscription.poll(limit, timeout), []
        self.positions.update((record.topic_partition, record.offset + 1) for record in records)
        self._caught_up = self._caught_up or not records
        return records

    def caught_up(self) -> bool:
        return self._caught_up

    def close(self) -> None:
        self._subscription.close()


class Broker(ABC):
    """A log of topics and partitions, built from the OPTIONS of the setting BROKER."""

    #: Whether a consumer of a topic that does not exist would wait for ever.
    requires_topics: bool = False
    #: Whether a topic that was seen once is there to stay; not where a rollback takes it back.
    keeps_topics: bool = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        #: Topics that this process has seen; a deleted one shows when it is published to.
        self.known_topics: set[str] = set()

    def check(self) -> list[CheckMessage]:
        """Name what is wrong with the options, for ``manage.py check``."""
        return []

    def lives_in(self, using: str) -> bool:
        """Whether publishing is part of a transaction on this database alias."""
        return False

    @abstractmethod
    def missing_topics(self, names: Collection[str]) -> set[str]:
        """Which of these topics do not exist.

        Raises:
            BrokerUnavailableError: The broker does not answer.
        """

    @abstractmethod
    def create_topics(self, specs: Iterable[TopicSpec]) -> set[str]:
        """Create those topics that do not exist yet; safe when several do it at once.

        Returns:
            The names that were created.

        Raises:
            BrokerError: A topic could not be created.
        """

    def ping(self, *, timeout: float) -> None:  # noqa: B027 - nothing to wait for is no fault
        """Return as soon as the broker answers, whatever it says.

        Args:
            timeout: Most seconds to wait.

        Raises:
            BrokerUnavailableError: It does not answer in time.
        """

    @abstractmethod
    def list_topics(self, prefix: str) -> set[str]:
        """Name the topics that begin with a prefix.

        Raises:
            BrokerUnavailableError: The broker does not answer.
        """

    @abstractmethod
    def describe_topics(self, names: Collection[str]) -> dict[str, TopicState]:
        """Say how topics are.

        Args:
            names: Those that do not exist, or are not to be described, are left out.

        Raises:
            BrokerUnavailableError: The broker does not answer.
        """

    @abstractmethod
    def grow_topics(self, partitions: Mapping[str, int]) -> None:
        """Give topics more partitions; there is no way back.

        Args:
            partitions: By topic, how many it has afterwards: more than it has.

        Raises:
            BrokerError: A topic could not grow.
        """

    def configure_topics(self, configs: Mapping[str, Mapping[str, str]]) -> None:  # noqa: B027
        """Change settings of topics; where brokers keep none, nothing happens.

        Args:
            configs: By topic, what to set, in Kafka's names; other settings stay.

        Raises:
            BrokerError: A topic could not be changed.
        """

    @abstractmethod
    def delete_topics(self, names: Collection[str]) -> set[str]:
        """Delete topics with all their records.

        Args:
            names: Those that do not exist are left out.

        Returns:
            The names that were deleted.

        Raises:
            BrokerError: A topic could not be deleted.
        """

    @abstractmethod
    def describe_use(self, names: Collection[str]) -> dict[str, TopicUse]:
        """Say what stands in topics, and how far the groups that the broker knows have read.

        Args:
            names: Those that do not exist are left out.

        Raises:
            BrokerError: The broker does not answer, or does not tell.
        """

    def check_topics(self, names: Collection[str]) -> list[CheckMessage]:
        """Name what the broker's settings of these topics put at risk; asks the broker.

        Args:
            names: Those that do not exist are left out.

        Raises:
            BrokerUnavailableError: The broker does not answer.
        """
        return []

    @abstractmethod
    def max_message_bytes(self, topic: str) -> int | None:
        """The largest message that the topic is known to take, or None."""

    def forget_topics(self) -> None:
        """Ask anew about topics: somebody may have created or changed them."""
        self.known_topics.clear()

    @abstractmethod
    def publish(self, messages: Sequence[Message], *, timeout: float) -> list[Report]:
        """Publish messages and wait for the broker's word on each.

        Messages of one topic and key are put down in the order given, and none is put down
        after an earlier one of its key was refused. When the call returns, nothing of it is
        still under way.

        Args:
            messages: To topics that exist.
            timeout: Seconds to wait for all of them.

        Returns:
            One report for each message, in the same order.
        """

    @abstractmethod
    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        positions: Positions,
        revoke: Revoke = lambda _places: None,
    ) -> Subscription:
        """Join a consumer group.

        Args:
            group: Its name.
            topics: Names, and patterns that begin with ``^``.
            positions: Asked for the partitions that are handed over.
            revoke: Told which partitions are about to be given up.
        """

    def read(
        self,
        topics: Sequence[str],
        *,
        latest: bool,
        known: Mapping[TopicPartition, int] = MappingProxyType({}),
    ) -> Reader:
        """Read topics outside any group.

        When the call returns, all that is published from now on will be read.

        Args:
            topics: Names, and patterns that begin with ``^``.
            latest: Whether to leave out what is there already.
            known: Partitions to be read on from these offsets instead.

        Raises:
            BrokerError: The broker does not answer, or refuses.
        """
        name = f"reader-{uuid.uuid4()}"
        return SubscribedReader(
            lambda positions: self.subscribe(name, topics, positions), latest=latest, known=known
        )

    @abstractmethod
    def partition_states(
        self, topics: Collection[str], group: str | None = None
    ) -> dict[TopicPartition, PartitionState]:
        """Say where the partitions of topics begin and end, and how far a group is there.

        Args:
            topics: Those that do not exist are left out.
            group: Whose offsets are told; None: nobody's.

        Raises:
            BrokerError: The broker does not answer, or does not tell.
        """

    @abstractmethod
    def offsets_at(
        self, places: Collection[TopicPartition], milliseconds: int
    ) -> dict[TopicPartition, int]:
        """Find the first offset of each partition that is stamped at a time or later.

        Args:
            places: Partitions that exist.
            milliseconds: Since 1970.

        Returns:
            Offsets; the end of the partition where all is older.

        Raises:
            BrokerError: The broker does not answer, or does not tell.
        """

    @abstractmethod
    def read_range(self, place: TopicPartition, first: int, end: int) -> Iterator[list[Record]]:
        """Read a piece of a partition's log, outside any group, a batch at a time.

        Args:
            place: A partition that exists.
            first: Where to begin: not before the log's own beginning.
            end: The offset to stop before: not after the log's own end.

        Raises:
            BrokerError: The broker does not answer, or refuses.
        """

    @abstractmethod
    def group_members(self, group: str) -> list[str]:
        """Name the members that a group has now, as far as the broker knows of members.

        Raises:
            BrokerError: The broker does not answer, or does not tell.
        """

    @abstractmethod
    def set_group_offsets(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """Set the next offsets of a group that has no members, as commits of folio_events.

        Raises:
            BrokerError: The group has members, or the broker does not answer.
        """

    def close(self) -> None:  # noqa: B027 - most brokers hold nothing
        """Let go of connections."""


class Aside:
    """Partitions that a subscription leaves aside, each until its time."""

    def __init__(self) -> None:
        self._until: dict[TopicPartition, float] = {}

    def add(self, places: Collection[TopicPartition], seconds: float) -> None:
        self._until.update(dict.fromkeys(places, time.monotonic() + seconds))

    def __contains__(self, place: object) -> bool:
        until = self._until.get(place)  # type: ignore[call-overload]  # any object may be asked for
        return until is not None and until > time.monotonic()

    def take_due(self) -> list[TopicPartition]:
        """Partitions whose time has come; they are not aside any longer."""
        now = time.monotonic()
        due = [place for place, until in self._until.items() if until <= now]
        for place in due:
            del self._until[place]
        return due


def partition_of(key: bytes | None, partitions: int) -> int:
    """The partition that Kafka's Java producer chooses.

    Source: org.apache.kafka.common.utils.Utils.murmur2, BuiltInPartitioner.
    """
    if key is None:
        return random.randrange(partitions)  # noqa: S311 - spreads load
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 as an unsigned number."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k ^= k >> 24
        h = (h * m & mask) ^ (k * m & mask)
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h ^= h >> 13
    h = h * m & mask
    return h ^ (h >> 15)
