"""The wake-up: a hint after a commit that the outbox has something, throttled.

Never in the writer's transaction: NOTIFY takes a global lock at commit. Losing a hint
costs a poll interval, nothing else.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import threading
import time
from typing import Any

from django.db import Error as DatabaseError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from folio_events.conf import get_settings

logger = logging.getLogger("folio_events.wakeup")

CHANNEL = "folio_events_outbox"
#: Seconds without a hint after which a process gives its connection back.
IDLE = 1.0
#: Seconds between two proofs that the listening connection still hears.
PROOF_INTERVAL = 10.0
#: Seconds in which a proof must be heard.
PROOF_TIMEOUT = 2.0
#: Seconds before a listener that failed is tried again.
RECONNECT_INTERVAL = 5.0


class _Waker:
    """Sends hints from a thread and a connection of its own."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._wanted = threading.Event()
        self._failed = False
        threading.Thread(
            target=self._serve, name=f"folio_events wake-up {using}", daemon=True
        ).start()

    def hint(self) -> None:
        self._wanted.set()

    def _serve(self) -> None:
        connection = connections[self._using]
        pause = threading.Event()
        while True:
            if not self._wanted.wait(IDLE):
                connection.close()
                self._wanted.wait()
            # At once, then a pause: a timer that each hint sets back would never fire under load.
            self._wanted.clear()
            self._notify(connection)
            pause.wait(get_settings().WAKE_UP_INTERVAL)

    def _notify(self, connection: BaseDatabaseWrapper) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"NOTIFY {CHANNEL}")
        except DatabaseError as error:
            if not self._failed:
                logger.warning("no wake-up, the relay polls: %s", type(error).__name__)
            self._failed = True
            connection.close()
        else:
            self._failed = False


@functools.cache
def _waker(using: str, _pid: int) -> _Waker:
    # Threads do not survive fork(): each child has its own.
    return _Waker(using)


def is_wanted(connection: BaseDatabaseWrapper) -> bool:
    """Whether the relay of a database is to be woken up; else polling is all it has."""
    return connection.vendor == "postgresql" and get_settings().WAKE_UP


def wake_after_commit(connection: BaseDatabaseWrapper) -> None:
    """Hint to the relay once the current transaction has committed."""
    if is_wanted(connection):
        connection.on_commit(lambda: _waker(connection.alias, os.getpid()).hint())


class Listener:
    """Waits for hints; says whether it can hear them.

    Args:
        using: Database alias.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        self._connection: Any = None
        self._token = ""
        self._proof_due = 0.0
        self._retry_at = 0.0
        self._fault = ""

    @property
    def reason(self) -> str:
        """Why the relay polls; empty while it listens."""
        if self._connection is not None:
            return ""
        if connections[self._using].vendor != "postgresql":
            return "only PostgreSQL has wake-ups"
        if not get_settings().WAKE_UP:
            return "the setting WAKE_UP is off"
        return f"no wake-ups are heard: {self._fault}" if self._fault else ""

    @property
    def mode(self) -> str:
        """What the relay goes by: "listen" while hints are known to arrive, else "poll"."""
        return "poll" if self._connection is None else "listen"

    def wait(self, stop: threading.Event, *, poll: float, longest: float) -> None:
        """Wait for a hint.

        Args:
            stop: Ends the wait within a second.
            poll: Seconds to wait without hints.
            longest: Seconds to wait with them.
        """
        if not self._ready():
            stop.wait(poll)
            return
        try:
            self._prove()
            for notice in self._connection.notifies(timeout=min(longest, 1.0), stop_after=1):
                if notice.payload == self._token:
                    self._token = ""
        except (self._errors(), DatabaseError) as error:
            self._fail(type(error).__name__)

    def close(self) -> None:
        """Stop listening."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @staticmethod
    def _errors() -> type[Exception]:
        import psycopg

        return psycopg.Error

    def _ready(self) -> bool:
        if self._connection is not None:
            return True
        wrapper = connections[self._using]
        if not is_wanted(wrapper) or time.monotonic() < self._retry_at:
            return False
        import psycopg

        parameters = wrapper.get_connection_params()
        for name in ("context", "cursor_factory", "prepare_threshold", "server_side_binding"):
            parameters.pop(name, None)
        try:
            self._connection = psycopg.connect(**parameters, autocommit=True)
            self._connection.execute(f"LISTEN {CHANNEL}")
        except psycopg.Error as error:
            self._fail(type(error).__name__)
            return False
        self._token, self._proof_due, self._fault = "", 0.0, ""
        logger.info("relay of database %s listens for wake-ups", self._using)
        return True

    def _prove(self) -> None:
        """Send something to itself now and then: such a connection can die in silence."""
        now = time.monotonic()
        if self._token and now > self._proof_due - PROOF_INTERVAL + PROOF_TIMEOUT:
            raise DatabaseError("nothing was heard")
        if now >= self._proof_due:
            self._token = secrets.token_hex(8)
            self._proof_due = now + PROOF_INTERVAL
            with connections[self._using].cursor() as cursor:
                cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, self._token])

    def _fail(self, reason: str) -> None:
        if self._connection is not None or self._retry_at == 0.0:
            logger.warning(
                "relay of database %s hears no wake-ups and polls: %s", self._using, reason
            )
        self.close()
        self._fault = reason
        self._retry_at = time.monotonic() + RECONNECT_INTERVAL
