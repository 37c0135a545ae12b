"""Writer of receiver states: the circuit breaker of each receiver."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from django.db import connections
from django.db.models import F
from django.utils import timezone

from folio_events import signals
from folio_events.models import ReceiverState
from folio_events.receivers import Receiver

logger = logging.getLogger("folio_events.breakers")

_TABLE = ReceiverState._meta.db_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """A receiver that has failed of late."""

    #: Events in a row that it failed on.
    failures: int
    #: Whether it is left alone.
    is_open: bool


def troubled(receivers: Collection[str], *, using: str) -> dict[str, Breaker]:
    """The breakers of those receivers that failed on their last event."""
    names = list(receivers)
    if not names:
        return {}
    # Raw, since each batch asks: Django takes longer to build the statement than it takes to run.
    listed = ", ".join(["%s"] * len(names))
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"SELECT receiver, failures, probe_at IS NOT NULL FROM {_TABLE} "  # noqa: S608
            f"WHERE failures > 0 AND receiver IN ({listed})",
            names,
        )
        return {
            name: Breaker(failures=failures, is_open=bool(is_open))
            for name, failures, is_open in cursor.fetchall()
        }


def open_names(*, using: str) -> set[str]:
    """Receivers that are left alone now."""
    rows = ReceiverState.objects.using(using).filter(probe_at__isnull=False)
    return set(rows.values_list("receiver", flat=True))


def failed(receiver: Receiver, *, using: str) -> None:
    """Count a failure; enough of them open the breaker, any opens one that was probed."""
    if receiver.breaker is None:
        return
    now = timezone.now()
    rows = ReceiverState.objects.using(using).filter(receiver=receiver.name)
    if not rows.update(failures=F("failures") + 1, updated_at=now):
        state = ReceiverState(receiver=receiver.name, failures=1, updated_at=now)
        ReceiverState.objects.using(using).bulk_create([state], ignore_conflicts=True)
    probe_at = now + timedelta(seconds=receiver.breaker.pause)
    tripped = rows.filter(failures__gte=receiver.breaker.failures, probe_at=None)
    if tripped.update(opened_at=now, probe_at=probe_at):
        logger.error(
            "breaker open: receiver=%s failed on %s events in a row; next probe in %s s",
            receiver.name, receiver.breaker.failures, receiver.breaker.pause,
        )  # fmt: skip
        signals.breaker_opened.tell(
            using=using, receiver=receiver.name, failures=receiver.breaker.failures
        )


def succeeded(receiver: Receiver, *, using: str) -> None:
    """Close the breaker and count from 0 again."""
    rows = ReceiverState.objects.using(using).filter(receiver=receiver.name)
    was_open = rows.filter(probe_at__isnull=False).exists()
    rows.update(failures=0, opened_at=None, probe_at=None, updated_at=timezone.now())
    if was_open:
        logger.warning("breaker closed: receiver=%s works again", receiver.name)
        signals.breaker_closed.tell(using=using, receiver=receiver.name)


def count_anew(receiver: Receiver, *, using: str) -> None:
    """Count failures from 0 again; whether an open breaker closes, only its probe says."""
    if receiver.breaker is None:
        return
    counted = ReceiverState.objects.using(using).filter(
        receiver=receiver.name, failures__gt=0, probe_at=None
    )
    counted.update(failures=0, updated_at=timezone.now())


def take_probe(receiver: Receiver, *, using: str) -> bool:
    """Ask for the one event that an open breaker lets through once its pause is over."""
    if receiver.breaker is None:
        return True
    now = timezone.now()
    due = ReceiverState.objects.using(using).filter(receiver=receiver.name, probe_at__lte=now)
    next_probe = now + timedelta(seconds=receiver.breaker.pause)
    return bool(due.update(probe_at=next_probe, updated_at=now))
