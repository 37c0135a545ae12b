"""RetryPolicy: how often, when, for which errors; which database errors pass by themselves."""

from __future__ import annotations

import random
import sqlite3
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import (
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from django.utils import timezone
from psycopg import errors as pg

from folio_events import RejectEvent, RetryLater, RetryPolicy
from folio_events.exceptions import ConfigurationError, DecodingError
from folio_events.retry import CircuitBreaker, is_transient

ERROR = ValueError("oops")


# The pause


def test_pauses_grow_up_to_the_longest() -> None:
    """Without jitter the pause after attempt n is backoff * factor ** (n - 1)."""
    policy = RetryPolicy(attempts=7, backoff=1.0, factor=3.0, max_backoff=30.0, jitter=0.0)

    pauses = [policy.pause(ERROR, attempt) for attempt in range(1, 8)]

    assert pauses == [1.0, 3.0, 9.0, 27.0, 30.0, 30.0, None]


def test_one_attempt_means_no_retry() -> None:
    """The first run is an attempt."""
    assert RetryPolicy(attempts=1).pause(ERROR, 1) is None


@pytest.mark.parametrize("jitter", [0.25, 0.5, 1.0])
def test_jitter_shortens_a_pause_by_its_part_at_most(jitter: float) -> None:
    """Retries of many events that failed together do not come together again."""
    policy = RetryPolicy(backoff=8.0, jitter=jitter)
    rng = random.Random(1)

    pauses = [policy.pause(ERROR, 1, rng) or 0.0 for _ in range(500)]

    assert 8.0 * (1 - jitter) <= min(pauses) < 8.0 * (1 - jitter) + 0.5
    assert 7.5 < max(pauses) <= 8.0


def test_the_same_seed_gives_the_same_pauses() -> None:
    """A test can know what comes."""
    policy = RetryPolicy()

    assert policy.pause(ERROR, 1, random.Random(3)) == policy.pause(ERROR, 1, random.Random(3))


@pytest.mark.parametrize("factor", [2, 2.0, 10.0])
@pytest.mark.parametrize("attempt", [1_100, 100_000])
def test_very_many_attempts_wait_the_longest_pause(factor: float, attempt: int) -> None:
    """The power does not overflow in the thousandth attempt."""
    policy = RetryPolicy(attempts=10**9, factor=factor, max_backoff=600.0, jitter=0.0)

    assert policy.pause(ERROR, attempt) == 600.0
    without = RetryPolicy(attempts=10**9, backoff=0, factor=factor, jitter=0.0)
    assert without.pause(ERROR, attempt) == 0.0


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (RetryPolicy(), RetryLater(seconds=1e300)),
        (RetryPolicy(), RetryLater(seconds=float("inf"))),
        (RetryPolicy(backoff=1e300, max_backoff=float("inf")), ERROR),
    ],
    ids=["late", "never", "policy"],
)
def test_no_pause_is_longer_than_a_time_can_be_stored(policy: RetryPolicy, error: Any) -> None:
    """A pause out of all proportion must not stop the consumer."""
    pause = policy.pause(error, 1)

    assert pause is not None
    assert timezone.now() + timedelta(seconds=pause) > timezone.now() + timedelta(days=365)


def test_a_receiver_may_ask_for_another_time() -> None:
    """Its wish stands in for the policy's pause, not for its number of attempts."""
    policy = RetryPolicy(attempts=3, max_backoff=10.0, retry_on=())

    assert policy.pause(RetryLater(seconds=77), 1) == 77.0
    assert policy.pause(RetryLater(seconds=77), 2) == 77.0
    assert policy.pause(RetryLater(seconds=77), 3) is None
    assert policy.pause(RetryLater(seconds=-5), 1) == 0.0
    assert policy.pause(RetryLater(seconds=float("nan")), 1) == 0.0


@pytest.mark.parametrize("error", [RejectEvent("no such loan"), DecodingError("no JSON")], ids=repr)
def test_what_cannot_get_better_is_not_tried_again(error: Exception) -> None:
    """Whatever the policy says about other errors."""
    assert RetryPolicy(attempts=10, retry_on=(Exception,)).pause(error, 1) is None


def test_errors_may_be_chosen() -> None:
    """Only ``retry_on`` is tried again, and of it not ``give_up_on``."""
    policy = RetryPolicy(
        retry_on=(ValueError, OSError), give_up_on=(FileNotFoundError, UnicodeError)
    )

    assert policy.pause(ValueError(), 1) is not None
    assert policy.pause(ConnectionResetError(), 1) is not None
    for error in (KeyError(), FileNotFoundError(), UnicodeError()):
        assert policy.pause(error, 1) is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"attempts": 0}, "attempts"),
        ({"attempts": -1}, "attempts"),
        ({"backoff": -1}, "backoff"),
        ({"max_backoff": -1}, "max_backoff"),
        ({"factor": 0.5}, "factor"),
        ({"jitter": 1.5}, "jitter"),
        ({"jitter": -0.1}, "jitter"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(options: dict[str, Any], named: str) -> None:
    """When it is written, not when something fails."""
    with pytest.raises(ConfigurationError, match=named):
        RetryPolicy(**options)


@pytest.mark.parametrize("options", [{"failures": 0}, {"pause": 0}, {"pause": -1.0}], ids=repr)
def test_a_breaker_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    """It would be open for ever, or never rest."""
    with pytest.raises(ConfigurationError, match="CircuitBreaker"):
        CircuitBreaker(**options)


# Transient faults


def caused(error: Exception, cause: Exception | None) -> Exception:
    """A Django error as it comes up from a driver."""
    error.__cause__ = cause
    return error


def of_sqlite(name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = name
    return error


class StrangersError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


def name_of(error: Exception) -> str:
    cause = error.__cause__
    return f"{type(error).__name__} by {getattr(cause, 'sqlite_errorname', repr(cause))}"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (caused(OperationalError(), pg.DeadlockDetected()), True),
        (caused(OperationalError(), pg.SerializationFailure()), True),
        (caused(OperationalError(), pg.LockNotAvailable()), True),
        (caused(OperationalError(), pg.AdminShutdown()), True),
        (caused(OperationalError(), pg.CrashShutdown()), True),
        (caused(OperationalError(), pg.CannotConnectNow()), True),
        (caused(OperationalError(), pg.ConnectionFailure()), True),
        (caused(OperationalError(), psycopg.OperationalError("the connection is lost")), True),
        (caused(InterfaceError(), psycopg.InterfaceError("connection already closed")), True),
        (caused(OperationalError(), of_sqlite("SQLITE_BUSY")), True),
        (caused(OperationalError(), of_sqlite("SQLITE_BUSY_SNAPSHOT")), True),
        (caused(OperationalError(), of_sqlite("SQLITE_LOCKED")), True),
        (caused(OperationalError(), of_sqlite("SQLITE_FULL")), False),
        (caused(OperationalError(), pg.QueryCanceled()), False),
        (caused(OperationalError(), pg.DiskFull()), False),
        (caused(OperationalError(), pg.StatementTooComplex()), False),
        (caused(OperationalError(), None), False),
        (caused(OperationalError(), ValueError("a receiver's own")), False),
        (caused(OperationalError(), StrangersError("40P01")), True),
        (caused(IntegrityError(), pg.UniqueViolation()), False),
        (caused(DataError(), pg.NumericValueOutOfRange()), False),
        (caused(ProgrammingError(), pg.UndefinedTable()), False),
        (caused(InternalError(), pg.InFailedSqlTransaction()), False),
        (pg.DeadlockDetected(), False),
        (ConnectionError(), False),
    ],
    ids=lambda value: name_of(value) if isinstance(value, Exception) else "",
)
def test_which_database_errors_pass_by_themselves(error: Exception, expected: bool) -> None:
    """Deadlocks, serialization failures, busy databases and lost connections are nobody's fault."""
    assert is_transient(error) is expected
