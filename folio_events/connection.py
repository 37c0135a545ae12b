"""The database connection of a process that works on and on."""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

from django.db import connections
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
