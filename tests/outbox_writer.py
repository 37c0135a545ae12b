"""A database session of its own that appends to the outbox and ends when it is told to."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connection
from django.utils import timezone

_INSERT = """
INSERT INTO folio_events_outboxmessage
    (id, event_id, topic, event_type, tenant, key, payload, repeating_headers, own_headers,
     occurred_at)
VALUES (coalesce(%s, nextval('folio_events_outboxmessage_id_seq')),
        %s, %s, 'UPDATE', '', %s, %s, '[]', '', %s)
RETURNING id
"""


def database_address() -> dict[str, Any]:
    """Where psycopg finds the database of the tests."""
    settings = connection.settings_dict
    return {
        "dbname": settings["NAME"],
        "user": settings["USER"],
        "password": settings["PASSWORD"],
        "host": settings["HOST"],
        "port": settings["PORT"] or None,
    }


class OutboxWriter:
    """Several of them in one test are several transactions at once, in one thread."""

    def __init__(self) -> None:
        self.session = psycopg.connect(**database_address())

    def append(
        self,
        key: str | None = "k",
        payload: bytes = b"{}",
        *,
        topic: str = "library.book",
        outbox_id: int | None = None,
    ) -> int:
        """Insert one row, after ``BEGIN`` if no transaction is open; returns its id."""
        values = (outbox_id, uuid.uuid4(), topic, key, payload, timezone.now())
        return int(self.one(_INSERT, *values))

    def execute(self, statement: str, *parameters: object) -> None:
        self.session.execute(statement, parameters or None)

    def one(self, statement: str, *parameters: object) -> Any:
        row = self.session.execute(statement, parameters or None).fetchone()
        assert row is not None
        return row[0]

    def commit(self) -> None:
        self.session.commit()

    def rollback(self) -> None:
        self.session.rollback()

    def close(self) -> None:
        self.session.close()


@contextmanager
def outbox_writers(count: int) -> Iterator[list[OutboxWriter]]:
    """Some writers, closed at the end; what they have not committed is rolled back."""
    writers = [OutboxWriter() for _ in range(count)]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.close()
