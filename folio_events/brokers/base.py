"""The port: what relay and consumer ask of a broker."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
    """A topic to be created."""

    name: str
    partitions: int
    #: -1 leaves it to the broker.
    replication: int


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
