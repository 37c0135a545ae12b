"""A process that works on and on keeps its database connection, and gets another when it dies."""

from __future__ import annotations

import pytest
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from folio_events import connection as module
from folio_events.connection import refresh_connection

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def one_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect as a project that leaves CONN_MAX_AGE at Django's default."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
    connection.connect()


def session() -> object:
    connection.ensure_connection()
    return connection.connection


@pytest.mark.usefixtures("one_for_each_request")
def test_a_connection_for_one_request_serves_many_pieces_of_work() -> None:
    """With the default CONN_MAX_AGE of 0 nothing is connected anew."""
    first = session()
    for _ in range(3):
        refresh_connection("default")
        assert session() is first


def test_a_connection_past_its_age_is_renewed() -> None:
    """A CONN_MAX_AGE above 0 is heeded."""
    first = session()
    age, connection.settings_dict["CONN_MAX_AGE"] = connection.settings_dict["CONN_MAX_AGE"], 100
    try:
        connection.close_at = 1.0
        refresh_connection("default")
        assert session() is not first
    finally:
        connection.settings_dict["CONN_MAX_AGE"] = age


def test_a_connection_in_a_transaction_is_left_alone() -> None:
    """Whoever calls inside a transaction keeps it."""

    with transaction.atomic():
        first = session()
        connection.close_at = 1.0
        refresh_connection("default")
        assert session() is first


@pytest.mark.postgres
def test_a_connection_that_died_while_idle_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next statement works, though nobody has noticed the end."""
    monkeypatch.setattr(module, "IDLE", 0.0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
    other: BaseDatabaseWrapper = connections.create_connection("default")
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
    finally:
        other.close()
    refresh_connection("default")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone()[0] != pid
