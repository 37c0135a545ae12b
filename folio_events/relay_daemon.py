"""The relay as a loop: drain, wait for a hint or a while, drain again."""

from __future__ import annotations

import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing

from django.db import Error as DatabaseError
from django.db import connections

from folio_events import counts, signals
from folio_events.conf import get_settings
from folio_events.connection import refresh_connection
from folio_events.database_faults import explain
from folio_events.models import Process
from folio_events.processes import Heartbeat
from folio_events.relay import Drain, drain
from folio_events.wakeup import Listener

logger = logging.getLogger("folio_events.relay")

#: Longest pause while broker or database are away, in seconds.
_MAX_PAUSE = 30.0
#: Rest after a drain, in durations of that drain. A drain of one message costs nearly as much as
#: one of ten: where they keep coming, they should come together.
_REST = 2.0


def serve(stop: threading.Event, *, using: str, alive: Callable[[], None] = lambda: None) -> None:
    """Publish what comes into the outbox until told to stop.

    Args:
        stop: Ends it after the drain in hand.
        using: Database alias.
        alive: Called after each drain that database and broker have answered.
    """
    listener = Listener(using)
    heartbeat = Heartbeat(Process.Kind.RELAY, using, using=using)
    faults = 0
    logger.info("relay of database %s started", using)
    try:
        while not stop.is_set():
            began = time.monotonic()
            result = _drain(using)
            _report(heartbeat, listener, result, using)
            if result is None or result.unavailable:
                if not faults:
                    reason = result.unavailable if result else "the database does not answer"
                    signals.relay_stalled.tell(using=using, reason=reason)
                faults += 1
                stop.wait(_pause(faults))
                continue
            if faults:
                signals.relay_resumed.tell(using=using)
            faults = 0
            alive()
            if not result.more:
                interval = get_settings().RELAY_POLL_INTERVAL
                if result.published:
                    stop.wait(min(_REST * (time.monotonic() - began), interval))
                # Another relay is at work: nothing to be quick about.
                listener.wait(stop, poll=interval, longest=interval if result.standby else 1.0)
        heartbeat.end()
    finally:
        listener.close()
        counts.flush(using=using, at_once=True)
        logger.info("relay of database %s stopped", using)


def serve_slot(*, using: str, wait: bool = False) -> int:
    """Publish what is in the outbox, for at most RELAY_SLOT seconds and the drain in hand.

    Returns at once where another relay is at work or the broker does not answer, so that
    calls by the clock do not pile up.

    Args:
        using: Database alias.
        wait: Whether to stay until the slot is over, and publish what comes meanwhile.

    Returns:
        How many messages were published.
    """
    settings = get_settings()
    end = time.monotonic() + settings.RELAY_SLOT
    never = threading.Event()
    published = 0
    with closing(Listener(using)) as listener:
        if wait:
            # It has to listen before the first drain: a hint in between would be lost.
            listener.wait(never, poll=0, longest=0)
        while True:
            result = drain(using=using)
            _report(_task_heartbeat(using, os.getpid()), listener, result, using)
            published += result.published
            left = end - time.monotonic()
            if left <= 0 or result.standby or result.unavailable or not (result.more or wait):
                return published
            if not result.more:
                # Within a slot nobody would notice that the listener is deaf, so it polls too.
                pause = min(settings.RELAY_POLL_INTERVAL, left)
                listener.wait(never, poll=pause, longest=pause)


@functools.cache
def _task_heartbeat(using: str, _pid: int) -> Heartbeat:
    # Of the worker's process, which outlives the slot; fork() makes another.
    return Heartbeat(Process.Kind.TASK, using, using=using)


def _report(heartbeat: Heartbeat, listener: Listener, result: Drain | None, using: str) -> None:
    """Say how it goes, now and then, between two drains."""
    if result is None:
        return
    counts.flush(using=using)
    if result.unavailable:
        heartbeat.beat(Process.State.STALLED, result.unavailable)
    elif result.standby:
        # On SQLite the one at work has the only write lock: runs that wait for it would pile up.
        if connections[using].vendor != "sqlite":
            heartbeat.beat(Process.State.STANDBY, "another relay is at work")
    elif listener.mode == "listen":
        heartbeat.beat(Process.State.LISTENING)
    else:
        heartbeat.beat(Process.State.POLLING, listener.reason)


def _drain(using: str) -> Drain | None:
    refresh_connection(using)
    try:
        return drain(using=using)
    except DatabaseError as error:
        said = explain(error, using) or type(error).__name__
        logger.warning("relay of database %s: %s", using, said)
        connections[using].close()
        return None


def _pause(faults: int) -> float:
    grown: float = get_settings().POLL_FAILURE_SLEEP * 2 ** min(faults - 1, 10)
    return min(grown, _MAX_PAUSE) * random.uniform(0.5, 1)  # noqa: S311 - spreads load
