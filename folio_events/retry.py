"""RetryPolicy, and which errors are nobody's fault."""

from __future__ import annotations

import random
from dataclasses import dataclass

from django.db import InterfaceError, OperationalError

from folio_events.conf import get_settings
from folio_events.exceptions import ConfigurationError, DecodingError, RejectEvent, RetryLater


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreaker:
    """When a receiver is left alone, because what it depends on seems to be down.

    While the breaker is open its events are kept as deliveries without an attempt; after
    each pause one of them is tried, and success closes the breaker.
    """

    #: Events in a row that it fails on until the breaker opens.
    failures: int = 20
    #: Seconds between two probes.
    pause: float = 30.0

    def __post_init__(self) -> None:
        if self.failures < 1 or self.pause <= 0:
            raise ConfigurationError("CircuitBreaker: failures must be at least 1, pause above 0.")


#: Ten years in seconds: what lies far beyond could not be stored as a time.
_LONGEST_PAUSE = 10 * 365 * 86_400.0
#: SQLSTATE classes and codes that go away by themselves: connection lost, serialization
#: failure, deadlock, lock not available, server shutting down or starting.
#: Source: PostgreSQL manual, appendix A.
_TRANSIENT_STATES = ("08", "40001", "40P01", "55P03", "57P01", "57P02", "57P03")
#: Source: SQLite result codes SQLITE_BUSY and SQLITE_LOCKED.
_TRANSIENT_SQLITE = ("SQLITE_BUSY", "SQLITE_LOCKED")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a receiver gets an event again that it failed on.

    The pause after attempt n is ``backoff * factor ** (n - 1)`` seconds, at most
    ``max_backoff``, of which the last part ``jitter`` (0 to 1) is random.
    """

    #: Runs in all, the first included, until the delivery is dead.
    attempts: int = 5
    #: Seconds after the first failure.
    backoff: float = 1.0
    factor: float = 2.0
    #: Longest pause in seconds.
    max_backoff: float = 600.0
    jitter: float = 0.5
    #: Errors worth another attempt; all others are dead at once.
    retry_on: tuple[type[Exception], ...] = (Exception,)
    #: Errors that are dead at once although ``retry_on`` has them.
    give_up_on: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigurationError(
                f"RetryPolicy.attempts must be at least 1, not {self.attempts}."
            )
        if self.backoff < 0 or self.max_backoff < 0 or self.factor < 1:
            raise ConfigurationError(
                "RetryPolicy: backoff and max_backoff must not be negative, factor at least 1."
            )
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"RetryPolicy.jitter must lie in 0 to 1, not {self.jitter}.")

    def pause(
        self, error: BaseException, attempt: int, rng: random.Random | None = None
    ) -> float | None:
        """Say how long to wait after a failed attempt.

        Args:
            error: What the receiver raised.
            attempt: Which run failed, counted from 1.
            rng: Source of the jitter.

        Returns:
            Seconds until the next attempt, or None when there is none.
        """
        if attempt >= self.attempts or isinstance(error, (RejectEvent, DecodingError)):
            return None
        if isinstance(error, RetryLater):
            return min(max(0.0, error.seconds), _LONGEST_PAUSE)
        if not isinstance(error, self.retry_on) or isinstance(error, self.give_up_on):
            return None
        try:
            whole = self.backoff * self.factor ** (attempt - 1)
        except OverflowError:
            whole = self.max_backoff if self.backoff else 0.0
        whole = min(whole, self.max_backoff, _LONGEST_PAUSE)
        spread = (rng or random).random()
        return whole * (1 - self.jitter) + whole * self.jitter * spread


def default_policy() -> RetryPolicy:
    """The policy of receivers that have none of their own, by the settings RETRY_*."""
    settings = get_settings()
    return RetryPolicy(attempts=settings.RETRY_ATTEMPTS, backoff=settings.RETRY_BACKOFF)


def is_transient(error: BaseException) -> bool:
    """Whether a database error is a passing fault of the system, no fault of the event."""
    if not isinstance(error, (OperationalError, InterfaceError)):
        return False
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_TRANSIENT_STATES)
    name = getattr(cause, "sqlite_errorname", None)
    if name is not None:
        return str(name).startswith(_TRANSIENT_SQLITE)
    # psycopg gives a lost connection no SQLSTATE.
    return type(cause).__module__.startswith("psycopg")
