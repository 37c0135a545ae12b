"""The checks that look at databases: what is named, and that a sound project passes."""

from __future__ import annotations

from typing import Any

import pytest
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection
from django.db.backends.postgresql import psycopg_any

from tests.conftest import is_postgres

pytestmark = pytest.mark.django_db


def found() -> dict[str, str]:
    """What the checks of folio_events say now: messages by id."""
    messages = checks.run_checks(tags=["folio_events"])
    for message in messages:
        assert message.hint, message
    return {str(message.id): message.msg for message in messages}


@pytest.fixture
def sqlite(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The database is SQLite, with the options that a test puts in."""
    options: dict[str, Any] = {}
    monkeypatch.setattr(connection, "vendor", "sqlite")
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    return options


def test_a_sound_project_has_neither_errors_nor_warnings():
    """On the databases that folio_events works on, the checks find nothing."""
    assert found() == {}
    call_command("check", databases=["default"])


@pytest.mark.parametrize(
    ("vendor", "name"), [("mysql", "MySQL"), ("oracle", "Oracle"), ("microsoft", "SQL Server")]
)
def test_other_databases_are_refused(monkeypatch: pytest.MonkeyPatch, vendor, name):
    """A database that is neither PostgreSQL nor SQLite is an error that names alias and product."""
    monkeypatch.setattr(connection, "vendor", vendor)
    monkeypatch.setattr(connection, "display_name", name)
    message = found()["folio_events.E010"]
    assert "'default'" in message
    assert name in message
    with pytest.raises(SystemCheckError, match=r"folio_events\.E010"):
        call_command("check")


@pytest.mark.postgres
def test_an_old_driver_of_postgresql_is_refused(monkeypatch: pytest.MonkeyPatch):
    """PostgreSQL without psycopg 3 is an error whose hint says what to install."""
    monkeypatch.setattr(psycopg_any, "is_psycopg3", False)
    assert "psycopg 3" in found()["folio_events.E011"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transaction_mode": "IMMEDIATE"},
        {"timeout": 20},
        {"transaction_mode": "DEFERRED", "timeout": 20},
        {"transaction_mode": "IMMEDIATE", "timeout": 5},
        {"transaction_mode": None, "timeout": 20},
    ],
    ids=str,
)
def test_a_sqlite_that_cannot_wait_is_warned_of(sqlite, options):
    """SQLite without IMMEDIATE transactions or with a short timeout is a warning."""
    sqlite.update(options)
    assert "'default'" in found()["folio_events.W001"]


@pytest.mark.parametrize("mode", ["IMMEDIATE", "immediate"])
def test_a_sqlite_that_waits_is_accepted(sqlite, mode):
    """SQLite with IMMEDIATE transactions and twenty seconds is no warning."""
    sqlite.update(transaction_mode=mode, timeout=20)
    assert "folio_events.W001" not in found()


@pytest.mark.skipif(is_postgres(), reason="SQLite's own error")
@pytest.mark.django_db(transaction=True)
def test_the_hint_for_sqlite_is_what_sqlite_takes():
    """With the options of the hint a connection is in WAL mode and begins with the write lock."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        assert cursor.fetchone() == ("wal",)
        cursor.execute("PRAGMA busy_timeout")
        assert cursor.fetchone()[0] >= 20_000
