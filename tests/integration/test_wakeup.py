"""Hints to the relay: after the commit, throttled, and missed by nobody who polls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction

from folio_events import publish
from folio_events.wakeup import CHANNEL, Listener
from tests.outbox_writer import database_address

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def sessions_that(statement: str) -> list[int]:
    """Server processes whose last statement begins so."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND query ILIKE %s",
            [f"{statement}%"],
        )
        return [pid for (pid,) in cursor.fetchall()]


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    pause, until = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        pause.wait(0.02)


@pytest.fixture(autouse=True)
def _awake(folio_events: Callable[..., None]) -> Iterator[None]:
    folio_events(WAKE_UP=True, WAKE_UP_INTERVAL=0.2)
    yield
    # The thread gives its connection back, or the database of the tests could not be dropped.
    wait_until(lambda: not sessions_that("NOTIFY"))


@pytest.fixture
def ear() -> Iterator[Any]:
    """A connection that listens as a relay does."""
    with psycopg.connect(**database_address(), autocommit=True) as session:
        session.execute(f"LISTEN {CHANNEL}")
        yield session


def heard(session: Any, seconds: float) -> int:
    """How many hints come within some seconds."""
    return len(list(session.notifies(timeout=seconds)))


def test_a_commit_wakes_the_relay(ear: Any) -> None:
    """The hint comes after the transaction, not in it."""
    with transaction.atomic():
        publish("library.note", key="a", payload={})
        assert heard(ear, 0.3) == 0
    assert len(list(ear.notifies(timeout=10, stop_after=1))) == 1


def test_a_rollback_wakes_nobody(ear: Any) -> None:
    """There is nothing to publish."""
    with transaction.atomic():
        publish("library.note", key="a", payload={})
        transaction.set_rollback(True)
    assert heard(ear, 0.5) == 0


def test_many_commits_share_a_few_hints(ear: Any) -> None:
    """The first comes at once, the others wait for the interval together."""
    started = time.monotonic()
    for _ in range(30):
        publish("library.note", key="a", payload={})
    intervals = (time.monotonic() - started) / 0.2
    assert 1 <= heard(ear, 1.0) <= intervals + 3


def test_a_listener_hears_a_commit_before_its_time_is_up() -> None:
    """It need not wait for the longest pause."""
    listener, stop = Listener("default"), threading.Event()
    try:
        listener.wait(stop, poll=0.01, longest=0.05)
        assert listener.mode == "listen"
        listener.wait(stop, poll=5, longest=0.2)  # its own proof
        publish("library.note", key="a", payload={})
        started = time.monotonic()
        listener.wait(stop, poll=5, longest=5)
        assert time.monotonic() - started < 1
    finally:
        listener.close()


def test_a_listener_whose_connection_dies_polls_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The relay goes on without hints."""
    listener, stop = Listener("default"), threading.Event()
    try:
        listener.wait(stop, poll=0.01, longest=0.05)
        (pid,) = sessions_that("LISTEN")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: not sessions_that("LISTEN"))
        listener.wait(stop, poll=0.01, longest=0.05)
        assert listener.mode == "poll"
        assert "hears no wake-ups" in caplog.text
    finally:
        listener.close()


def test_a_listener_that_hears_nothing_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends a proof to itself now and then; a connection can die in silence."""
    monkeypatch.setattr("folio_events.wakeup.PROOF_TIMEOUT", 0.1)
    listener, stop = Listener("default"), threading.Event()
    try:
        listener.wait(stop, poll=0.01, longest=0.05)
        listener._connection.execute(f"UNLISTEN {CHANNEL}")
        listener._proof_due = 0.0
        until = time.monotonic() + 10
        while listener.mode == "listen":
            assert time.monotonic() < until
            listener.wait(stop, poll=0.01, longest=0.05)
    finally:
        listener.close()
