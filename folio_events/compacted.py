"""The state that a compacted topic stands for: the last event of each key."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from folio_events import topics
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.conf import get_settings
from folio_events.event import Event
from folio_events.exceptions import BrokerUnavailableError
from folio_events.reading import NewestOfKeys, readable
from folio_events.topics.patterns import TENANT, escape

#: What else than a tenant stands in the tenant's place of a topic.
_COLLECTION = "[A-Z][A-Z0-9]{0,30}"


class CompactedTopic:
    """Reads a topic from its beginning, in no group; a context manager, used by one thread.

    ``for event in topic.read()`` brings each key's last event last, and ends where the topic
    ended when reading began. An event of type "DELETE", which a tombstone is too, says that
    the key is gone. Late repeats of older events are left out.

    Args:
        topic: Logical topic.
        tenant: Only this tenant's events; None: all.
        broker: Defaults to the setting BROKER.

    Raises:
        BrokerError: The broker does not answer, or refuses.
    """

    def __init__(
        self, topic: str, *, tenant: str | None = None, broker: Broker | None = None
    ) -> None:
        self._tenant = tenant
        pattern = topics.subscription(topics.validate_topic(topic))
        if tenant is not None:
            pattern = pattern.replace(TENANT, f"({escape(tenant)}|{_COLLECTION})")
        self._newest = NewestOfKeys()
        self._reader = (broker or get_broker()).read([pattern], latest=False)

    def read(self, *, timeout: float = 60.0) -> Iterator[Event]:
        """Bring what the topic held when reading began.

        Args:
            timeout: Most seconds in which nothing comes.

        Raises:
            BrokerUnavailableError: The end was not reached in time.
            BrokerError: The broker refuses.
        """
        last = time.monotonic()
        while not self._reader.caught_up():
            came = False
            for event in self._poll():
                came = True
                yield event
            if came:
                last = time.monotonic()
            elif time.monotonic() - last > timeout and not self._reader.caught_up():
                raise BrokerUnavailableError(
                    f"the end of the topic was not reached: nothing came for {timeout:g} s"
                )

    def follow(self, stop: threading.Event) -> Iterator[Event]:
        """Bring what comes from then on, until told to stop.

        Raises:
            BrokerError: The broker refuses; to read anew begins from the topic's beginning.
        """
        while not stop.is_set():
            yield from self._poll()

    def _poll(self) -> Iterator[Event]:
        settings = get_settings()
        for record in self._reader.poll(
            settings.CONSUMER_BATCH_SIZE, settings.CONSUMER_POLL_INTERVAL
        ):
            event = readable(record)
            if event is None or (self._tenant is not None and event.tenant != self._tenant):
                continue
            if self._newest.takes(event):
                yield event

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
