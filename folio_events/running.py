"""The receiver that is running: what it may ask, and the time it has."""

from __future__ import annotations

import faulthandler
import inspect
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from folio_events import inbox
from folio_events.event import Event
from folio_events.exceptions import FolioEventsError
from folio_events.inbox import Effect
from folio_events.logs import log_message, refer_to_event
from folio_events.receivers import Receiver
from folio_events.tenants import event_context

logger = logging.getLogger("folio_events.dispatch")

#: Exit status of a process whose receiver ran out of time. Source: sysexits.h, EX_SOFTWARE.
EXIT_TIMEOUT = 70


class BrokenTransactionError(FolioEventsError):
    """A receiver caught a database error and went on; its transaction cannot be committed."""


class UnawaitedCoroutineError(FolioEventsError):
    """A receiver returned a coroutine in place of doing its work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    receiver: Receiver
    event: Event
    replay: int

    @property
    def effect(self) -> Effect:
        return Effect(self.receiver.name, self.event.id, self.replay)


_Around = Callable[[Receiver, Event, int], AbstractContextManager[object]]
#: Set by ``tracing``.
_around: _Around | None = None


def wrap_runs(around: _Around | None) -> None:
    """Have each run of a receiver happen inside of something, such as a span; None: no longer.

    Args:
        around: Makes it from receiver, event and number of the replay.
    """
    global _around
    _around = around


_current: ContextVar[_Run | None] = ContextVar("folio_events_run", default=None)


def run(receiver: Receiver, event: Event, *, replay: int = 0) -> None:
    """Run one receiver as the event's tenant, within its time.

    Raises:
        BrokenTransactionError: It swallowed a database error.
        UnawaitedCoroutineError: It returned a coroutine.
        Exception: Whatever it raises.
    """
    with nullcontext() if _around is None else _around(receiver, event, replay):
        _run(receiver, event, replay)


def _run(receiver: Receiver, event: Event, replay: int) -> None:
    connection = connections[receiver.using]
    put_off = len(connection.run_on_commit)
    token = _current.set(_Run(receiver=receiver, event=event, replay=replay))
    try:
        with event_context(event), _limited(receiver, event):
            _refuse_coroutine(receiver, receiver.function(event))
    finally:
        _current.reset(token)
    if _is_broken(connection):
        raise BrokenTransactionError(
            f"{receiver.name} caught a database error and went on. Let it pass, or wrap the "
            "failing part in transaction.atomic()."
        )
    # A callback that fails after the commit may stop neither the consumer nor other callbacks.
    callbacks: list[Any] = connection.run_on_commit
    callbacks[put_off:] = [
        (sids, _as_event(event, call), True) for sids, call, _robust in callbacks[put_off:]
    ]


def _as_event(event: Event, call: Callable[[], object]) -> Callable[[], None]:
    # The commit comes when the receiver has ended, mostly with other tenants' events.
    @wraps(call)
    def called() -> None:
        with event_context(event):
            call()

    return called


def _refuse_coroutine(receiver: Receiver, returned: object) -> None:
    # A plain function may hand on the call of an async one.
    if inspect.iscoroutine(returned):
        returned.close()
        raise UnawaitedCoroutineError(
            f"{receiver.name} returned a coroutine, which nobody runs: call async code by async_to_sync()."
        )


def _is_broken(connection: BaseDatabaseWrapper) -> bool:
    if connection.needs_rollback or connection.vendor != "postgresql":
        return connection.needs_rollback
    # Django notes failures of its own calls only. After any other PostgreSQL answers COMMIT
    # with a rollback, and nobody hears of it.
    return (
        connection.connection is not None
        and connection.connection.info.transaction_status.name == "INERROR"
    )


@contextmanager
def _limited(receiver: Receiver, event: Event) -> Iterator[None]:
    """End the process if the block takes longer than the receiver may.

    A hanging thread cannot be stopped in Python, and its transaction would stay open. What
    was begun is counted, so that an event which always hangs ends as a dead letter.
    """
    if receiver.timeout is None:
        yield
        return

    def expire() -> None:
        log_message(
            logger,
            logging.CRITICAL,
            f"ran longer than {receiver.timeout} s: the process ends",
            refer_to_event(event),
            receiver=receiver.name,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        os._exit(EXIT_TIMEOUT)

    timer = threading.Timer(receiver.timeout, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _require_run() -> _Run:
    current = _current.get()
    if current is None:
        raise FolioEventsError("No receiver is running: this is for code that a receiver calls.")
    return current


def idempotency_key() -> str:
    """A key for HTTP calls and mail, the same in every attempt of this receiver at this event.

    Raises:
        FolioEventsError: No receiver is running.
    """
    effect = _require_run().effect
    return str(uuid.uuid5(effect.event_id, f"{effect.receiver}/{effect.replay}"))


def claim() -> bool:
    """Note, in the transaction of the running receiver of mode "manual", that it takes effect.

    Returns:
        False if it took effect before: the receiver should do nothing more.

    Raises:
        FolioEventsError: No receiver is running, or it has not opened a transaction.
    """
    current = _require_run()
    if current.receiver.broadcast:
        raise FolioEventsError(
            f"{current.receiver.name} is a broadcast receiver: it has no inbox to claim an event in."
        )
    using = current.receiver.using
    if not transaction.get_connection(using).in_atomic_block:
        raise FolioEventsError(
            "Call claim() inside transaction.atomic(), with the work it stands for."
        )
    return bool(inbox.record([current.effect], using=using))
