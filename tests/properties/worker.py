"""A thread with a database connection of its own, driven step by step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import connections, transaction


class UndoError(Exception):
    """Rolls back the block that it leaves."""


class Worker:
    """One of several processes, as far as the database can tell."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._blocks: list[transaction.Atomic] = []

    def do(self, function: Callable[[], Any]) -> Any:
        """Run something there and wait for it."""
        return self._thread.submit(function).result(timeout=30)

    def enter(self) -> None:
        """Open a transaction, or a savepoint in it."""
        block = transaction.atomic()
        self.do(block.__enter__)
        self._blocks.append(block)

    def leave(self, *, undo: bool) -> None:
        """Close the innermost block."""
        block = self._blocks.pop()
        error = UndoError() if undo else None
        self.do(lambda: block.__exit__(type(error) if error else None, error, None))

    def close(self) -> None:
        while self._blocks:
            self.leave(undo=True)
        self.do(connections.close_all)
        self._thread.shutdown()
