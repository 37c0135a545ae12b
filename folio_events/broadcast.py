"""Broadcast: every process brings every event to receivers of its own, such as of its cache."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable

from django.db import connections

from folio_events import signals, topics
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, Reader
from folio_events.conf import get_settings
from folio_events.connection import refresh_connection
from folio_events.event import Event
from folio_events.exceptions import BrokerError
from folio_events.logs import log_message, refer_to_event
from folio_events.loop import repeat
from folio_events.message import TopicPartition
from folio_events.reading import NewestOfKeys, readable
from folio_events.receivers import Receiver, Start, broadcasts
from folio_events.running import run
from folio_events.signals import HandledEvent
from folio_events.topics.declared import is_compacted

logger = logging.getLogger("folio_events.broadcast")

#: How often each broadcast receiver failed in this process, by its name.
failures: Counter[str] = Counter()
#: Seconds that the end of a process waits for the receiver in hand.
_LAST_WAIT = 5.0


class Broadcast:
    """Reads for the broadcast receivers of this process; used by one thread.

    Args:
        start: Those receivers that begin there.
        broker: Defaults to the setting BROKER.
    """

    def __init__(self, start: Start, *, broker: Broker | None = None) -> None:
        self.start_at = start
        self.name = f"broadcast {start}"
        self.broker = broker or get_broker()
        self.receivers = [receiver for receiver in broadcasts if receiver.start == start]
        self._reader: Reader | None = None
        self._newest = NewestOfKeys()
        self._from_end = start == "latest"
        self._known: dict[TopicPartition, int] = {}

    @staticmethod
    def starts() -> list[Start]:
        """Where broadcast receivers begin; empty where there are none."""
        return sorted({receiver.start for receiver in broadcasts})

    def start(self) -> None:
        """Begin; all that is published from now on reaches the receivers.

        Raises:
            BrokerError: The broker does not answer, or refuses.
        """
        names = topics.subscriptions(receiver.topic for receiver in self.receivers)
        self._reader = self.broker.read(names, latest=self._from_end, known=self._known)
        self._from_end = False

    def step(self, timeout: float | None = None) -> int:
        """Poll once, and run the receivers for what came.

        Args:
            timeout: Seconds to wait for records; defaults to CONSUMER_POLL_INTERVAL.

        Returns:
            How many records came.
        """
        if self._reader is None:
            self.start()
        assert self._reader is not None  # noqa: S101 - for the type checker
        settings = get_settings()
        longest = settings.CONSUMER_POLL_INTERVAL if timeout is None else timeout
        records = self._reader.poll(settings.CONSUMER_BATCH_SIZE, longest)
        for record in records:
            event = readable(record)
            if event is None or (is_compacted(event.topic) and not self._newest.takes(event)):
                continue
            for receiver in self.receivers:
                if receiver.wants(event):
                    _bring(event, receiver)
        return len(records)

    def run(
        self,
        stop: threading.Event,
        *,
        alive: Callable[[], None] = lambda: None,
        for_ever: bool = False,
    ) -> None:
        """Go on until told to stop; the batch in hand is finished first.

        Args:
            stop: Says so.
            alive: Called after each poll, and the batch that it brought, without an error.
            for_ever: Whether no error of the broker ends it.

        Raises:
            BrokerError: The broker refuses for good, or CONSECUTIVE_ERRORS_LIMIT was met.
        """
        try:
            repeat(
                self.step,
                stop,
                name=self.name,
                close=self.close,
                alive=alive,
                for_ever=for_ever,
            )
        finally:
            self.close()
            connections.close_all()

    def close(self) -> None:
        """End reading; a new start goes on from here."""
        reader, self._reader = self._reader, None
        if reader is not None:
            self._known = dict(reader.positions)
            reader.close()


def _bring(event: Event, receiver: Receiver) -> None:
    refresh_connection(receiver.using)
    started = time.monotonic()
    try:
        run(receiver, event)
    except Exception as error:  # noqa: BLE001 - the next event is another's
        failures[receiver.name] += 1
        # Without the error's own text, which may hold what was in the payload.
        trace = "".join(traceback.format_tb(error.__traceback__))
        log_message(
            logger,
            logging.ERROR,
            "failed",
            refer_to_event(event),
            f"failure {failures[receiver.name]} of this process\n{trace}",
            receiver=receiver.name,
            error=type(error).__name__,
        )
        signals.broadcast_failed.tell(
            using=receiver.using,
            message=refer_to_event(event),
            receiver=receiver.name,
            error_class=type(error).__name__,
        )
    else:
        handled = HandledEvent(event, None, time.monotonic() - started)
        signals.tell_handled(receiver.name, [handled], using=receiver.using)


class _Threads:
    """The threads of a process that was asked for them once."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._stop = threading.Event()
        self._threads = []
        for start in Broadcast.starts():
            broadcast = Broadcast(start)
            try:
                # Here, so that what the caller reads from now on is followed from now on.
                broadcast.start()
            except BrokerError as error:
                logger.warning("%s begins when the broker answers: %s", broadcast.name, error)
            thread = threading.Thread(
                target=broadcast.run,
                args=[self._stop],
                kwargs={"for_ever": True},
                name=broadcast.name,
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)
        atexit.register(self.end)

    def end(self) -> None:
        self._stop.set()
        if self.process == os.getpid():
            for thread in self._threads:
                thread.join(_LAST_WAIT)


_running: _Threads | None = None
_lock = threading.Lock()


def start_broadcast() -> None:
    """Run the broadcast receivers in threads of this process, such as a web worker.

    To be called in each process after it was forked; a second call does nothing. When it
    returns, all that is published from now on reaches the receivers; unless the broker is
    away, then it is logged, and they begin when it answers.
    """
    global _running
    with _lock:
        if _running is None or _running.process != os.getpid():
            _running = _Threads()


def stop_broadcast() -> None:
    """End what ``start_broadcast`` began, when the receiver in hand has returned."""
    global _running
    with _lock:
        threads, _running = _running, None
        if threads is not None:
            atexit.unregister(threads.end)
            threads.end()
