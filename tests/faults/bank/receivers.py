"""One receiver, which writes what it did; FAULTS_BEHAVIOUR says what it suffers from.

What has to be known of earlier attempts stands in files: a rolled-back transaction, or the end
of the process, must not take it along.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import uuid
from pathlib import Path

from django.db import DatabaseError, connection

from folio_events import Event, RetryPolicy, publish, receiver
from folio_events.retry import CircuitBreaker
from tests.faults.bank.models import Effect, Till

_FOLDER = Path(os.environ["FAULTS_FOLDER"])
_BEHAVIOUR, _, _SHARE = os.environ.get("FAULTS_BEHAVIOUR", "").partition("/")
_RUNS = (_FOLDER / f"runs-{os.getpid()}-{uuid.uuid4().hex}").open("a", buffering=1)


class UnluckyError(Exception):
    """The receiver fails, as it was told to."""


def _is_struck(event: Event) -> bool:
    """Whether the trouble is with this event: always the same ones."""
    return event.id.int % int(_SHARE or "1") == 0


def _is_first_time(event: Event) -> bool:
    try:
        (_FOLDER / f"seen-{event.id}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def is_healed() -> bool:
    return (_FOLDER / "healed").exists()


def _suffer(event: Event) -> None:
    if _BEHAVIOUR == "slow":
        time.sleep(float(_SHARE))
    elif not _is_struck(event):
        return
    elif _BEHAVIOUR == "deadlock":
        # Consumers of different partitions take the two rows in different orders.
        first, second = random.sample([1, 2], 2)
        Till.objects.filter(pk=first).update(total=event.id.int % 1000)
        time.sleep(0.005)
        Till.objects.filter(pk=second).update(total=event.id.int % 1000)
    elif _BEHAVIOUR == "fail-once":
        if _is_first_time(event):
            raise UnluckyError
    elif _BEHAVIOUR == "fail":
        if not is_healed():
            raise UnluckyError
    elif _BEHAVIOUR == "kill":
        if not is_healed():
            os.kill(os.getpid(), signal.SIGKILL)
    elif _BEHAVIOUR == "hang":
        if not is_healed():
            time.sleep(600)
    elif _BEHAVIOUR == "swallow":
        if _is_first_time(event):
            with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
                cursor.execute("SELECT 1 / 0")
    elif _BEHAVIOUR == "swallow-psycopg" and _is_first_time(event):
        with contextlib.suppress(Exception):
            connection.connection.execute("SELECT 1 / 0")


def _apply(event: Event) -> None:
    # Outside the transaction: also a run that is rolled back was a run.
    _RUNS.write(f"{event.id} {time.time()}\n")
    kind = event.topic.rpartition(".")[2]
    new = event.payload["new"]
    number = new["number"] if kind == "account" else new["id"]
    Effect.objects.create(
        receiver="ledger", kind=kind, key=str(event.key), number=number, event_id=event.id
    )
    if _BEHAVIOUR == "chain":
        publish("bank.notice", key=event.key, payload={"cause": str(event.id)})
        if _is_struck(event) and _is_first_time(event):
            raise UnluckyError
    else:
        _suffer(event)


_RETRY = RetryPolicy(attempts=5, backoff=0.2, factor=1.5, max_backoff=1)
#: Out of the way: with most keys held behind a failing event, most runs are failures.
_BREAKER = CircuitBreaker(failures=100_000)
_TIMEOUT = 2.0 if _BEHAVIOUR == "hang" else None


@receiver("bank.account", name="ledger.account", retry=_RETRY, timeout=_TIMEOUT, breaker=_BREAKER)
def book_account(event: Event) -> None:
    _apply(event)


@receiver("bank.entry", name="ledger.entry", retry=_RETRY, timeout=_TIMEOUT, breaker=_BREAKER)
def book_entry(event: Event) -> None:
    _apply(event)
