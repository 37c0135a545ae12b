"""A second connection to the database, and waiting until it waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections

#: Longest wait of a test for another thread, in seconds.
_PATIENCE = 30


@pytest.fixture
def other() -> Iterator[Callable[[Callable[[], Any]], Future[Any]]]:
    """Runs functions one after the other in a second thread, on a connection of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda function: pool.submit(function)
        pool.submit(connections.close_all).result(_PATIENCE)


@pytest.fixture
def until_somebody_waits() -> Callable[[], None]:
    """Returns as soon as some other connection waits for a lock."""

    def wait() -> None:
        for _ in range(_PATIENCE * 100):
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*), pg_sleep(0.01) FROM pg_locks "
                    "WHERE NOT granted AND pid <> pg_backend_pid()"
                )
                if cursor.fetchone()[0]:
                    return
        pytest.fail("nobody waits")

    return wait
