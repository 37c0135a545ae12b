"""The loop: poll, dispatch, commit."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Collection, Mapping, Sequence

from django.db import Error as DatabaseError
from django.db import connections

from folio_events import dispatch, inbox, topics
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, Subscription, TopicSpec
from folio_events.conf import get_settings
from folio_events.declarations import events
from folio_events.dispatch import Fence
from folio_events.exceptions import BrokerError, ConfigurationError, FencedError, MissingTopicError
from folio_events.message import Record, TopicPartition
from folio_events.receivers import Receiver, registry

logger = logging.getLogger("folio_events.consumer")

#: Longest pause after errors of the loop, in seconds.
_MAX_PAUSE = 30.0


class Consumer:
    """A member of one consumer group; used by one thread.

    Args:
        group: Its name; it must have receivers.
        broker: Defaults to the setting BROKER.

    Raises:
        ConfigurationError: No receiver is in the group.
    """

    def __init__(self, group: str, *, broker: Broker | None = None) -> None:
        self.group = group
        self.broker = broker or get_broker()
        self.receivers = registry.in_group(group)
        if not self.receivers:
            known = ", ".join(registry.groups()) or "none"
            raise ConfigurationError(
                f"No receiver is in group {group!r}. Groups with receivers: {known}."
            )
        self._by_alias: dict[str, list[Receiver]] = {}
        for receiver in self.receivers:
            self._by_alias.setdefault(receiver.using, []).append(receiver)
        self._subscription: Subscription | None = None
        self._known: dict[str, dict[TopicPartition, int]] = {}

    @property
    def topics(self) -> list[str]:
        """What the group subscribes to: names and patterns of the broker's topics."""
        return sorted({topics.subscription(receiver.topic) for receiver in self.receivers})

    def start(self) -> None:
        """Join the group.

        Raises:
            MissingTopicError: A topic that receivers name does not exist.
            BrokerUnavailableError: The broker does not answer.
        """
        self._ensure_topics()
        self._subscription = self.broker.subscribe(self.group, self.topics, self._positions)

    def _ensure_topics(self) -> None:
        settings = get_settings()
        names = [name for name in self.topics if not name.startswith("^")]
        missing = self.broker.missing_topics(names) if names else set()
        declared = (
            {topics.wire_topic(topic, None) for topic in events.topics()} if missing else set()
        )
        if settings.CREATE_TOPICS and (own := missing & declared):
            specs = [
                TopicSpec(name, settings.TOPIC_PARTITIONS, settings.TOPIC_REPLICATION)
                for name in own
            ]
            self.broker.create_topics(specs)
            missing -= own
        if missing and self.broker.requires_topics:
            listed = ", ".join(sorted(missing))
            raise MissingTopicError(
                f"Group {self.group!r} listens to topics that do not exist: {listed}. Create them "
                "with 'manage.py create_topics', or mend the receivers' topics."
            )

    def _positions(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Where to read on: the database that is furthest behind decides, the inbox skips the rest."""
        found: dict[TopicPartition, int] = {}
        for alias in self._by_alias:
            for place, offset in inbox.offsets(self.group, places, using=alias).items():
                found[place] = min(offset, found.get(place, offset))
        return found

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
        settings = get_settings()
        wait = settings.CONSUMER_POLL_INTERVAL if timeout is None else timeout
        records = subscription.poll(settings.CONSUMER_BATCH_SIZE, wait)
        if not records:
            return 0
        done = False
        try:
            for alias, receivers in self._by_alias.items():
                self._dispatch(records, receivers, alias, exclusive=subscription.exclusive)
            done = True
        except FencedError as error:
            logger.info("%s", error)
            return 0
        finally:
            if not done:
                self._rewind(subscription, records)
        subscription.commit({record.topic_partition: record.offset + 1 for record in records})
        return len(records)

    def _rewind(self, subscription: Subscription, records: Sequence[Record]) -> None:
        self._known.clear()
        firsts: dict[TopicPartition, int] = {}
        for record in records:
            firsts.setdefault(record.topic_partition, record.offset)
        try:
            subscription.seek({**firsts, **self._positions(firsts)})
        except (DatabaseError, BrokerError):
            # Joining anew reads the positions again.
            self.close()

    def _dispatch(
        self,
        records: Sequence[Record],
        receivers: Sequence[Receiver],
        alias: str,
        *,
        exclusive: bool,
    ) -> None:
        connections[alias].close_if_unusable_or_obsolete()
        known = self._known_offsets(records, alias)
        # Another database of the group may be behind this one.
        todo = [record for record in records if record.offset >= known[record.topic_partition]]
        if todo:
            expected = {record.topic_partition: known[record.topic_partition] for record in todo}
            fence = Fence(group=self.group, expected=expected, wait=exclusive)
            dispatch.dispatch(todo, receivers, fence, using=alias)
            known.update((record.topic_partition, record.offset + 1) for record in todo)

    def _known_offsets(self, records: Sequence[Record], alias: str) -> dict[TopicPartition, int]:
        """The next offset of each partition as last seen; the fence finds what has changed."""
        known = self._known.setdefault(alias, {})
        firsts: dict[TopicPartition, int] = {}
        for record in records:
            if record.topic_partition not in known:
                firsts.setdefault(record.topic_partition, record.offset)
        if firsts:
            known |= inbox.offsets(self.group, firsts, using=alias)
        if new := {place: first for place, first in firsts.items() if place not in known}:
            inbox.start_offsets(self.group, new, using=alias)
            known |= inbox.offsets(self.group, new, using=alias)
        return known

    def run(self, stop: threading.Event) -> None:
        """Go on until told to stop; the batch in hand is finished first.

        Raises:
            BrokerError: The broker refuses for good, or CONSECUTIVE_ERRORS_LIMIT was met.
            django.db.Error: CONSECUTIVE_ERRORS_LIMIT was met.
        """
        errors = 0
        while not stop.is_set():
            try:
                self.step()
            except (BrokerError, DatabaseError) as error:
                errors += 1
                settings = get_settings()
                fatal = isinstance(error, BrokerError) and not error.retryable
                if fatal or errors >= settings.CONSECUTIVE_ERRORS_LIMIT:
                    raise
                pause = min(settings.POLL_FAILURE_SLEEP * 2 ** (errors - 1), _MAX_PAUSE)
                pause *= random.uniform(0.5, 1)  # noqa: S311 - spreads load
                logger.warning(
                    "group %s: %s, error %s in a row; next try in %.1f s",
                    self.group, type(error).__name__, errors, pause,
                )  # fmt: skip
                # Joining anew reads positions and topics again, whatever the error left behind.
                self.close()
                connections.close_all()
                stop.wait(pause)
            else:
                errors = 0

    def close(self) -> None:
        """Leave the group."""
        self._known.clear()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()
