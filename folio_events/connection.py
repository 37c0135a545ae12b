"""The database connection of a process that works on and on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

#: Seconds after which a connection that was not used is asked whether it lives.
IDLE = 1.0

_refreshed: WeakKeyDictionary[BaseDatabaseWrapper, float] = WeakKeyDictionary()


def refresh_connection(using: str) -> None:
    """Close a connection that has died or is past its CONN_MAX_AGE; the next use opens another.

    To be called between two pieces of work. The CONN_MAX_AGE of 0, one connection for each
    request, means nothing here: to connect takes longer than most pieces of work.

    Args:
        using: Database alias.
    """
    connection = connections[using]
    if connection.in_atomic_block or connection.connection is None:
        return
    now = time.monotonic()
    idle = now - _refreshed.get(connection, 0.0) > IDLE
    _refreshed[connection] = now
    if not connection.settings_dict["CONN_MAX_AGE"]:
        connection.close_at = None
    connection.close_if_unusable_or_obsolete()
    if idle and connection.connection is not None and not connection.is_usable():
        connection.close()


@contextmanager
def impatient(*, lock: float, statement: float, using: str) -> Iterator[None]:
    """Have PostgreSQL end what takes too long, in a transaction; other databases do not.

    Args:
        lock: Most seconds that a statement waits for a lock.
        statement: Most seconds that it takes in all.
        using: Database alias.

    Raises:
        OperationalError: By a statement in it.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        yield
        return
    with transaction.atomic(using=using):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
            )
            before = cursor.fetchone()
        _set_timeouts(connection, f"{lock * 1000:.0f}ms", f"{statement * 1000:.0f}ms")
        yield
        # The transaction may be the caller's, and go on.
        _set_timeouts(connection, *before)


def _set_timeouts(connection: BaseDatabaseWrapper, lock: str, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
            [lock, statement],
        )
