"""How the delivery of one database fares, asked without counting a large table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Count, Min, OuterRef, Subquery
from django.utils import timezone

from folio_events import breakers, outbox
from folio_events.models import (
    Delivery,
    Orphan,
    OutboxMessage,
    ReceiverState,
    RelayCursor,
    RelayGap,
    WithheldMessage,
)

_MOST_COUNTED = 10_000
#: Most gaps that are looked into for the oldest row; the lowest have it.
_MOST_GAPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What waits, what failed, and who is left alone.

    Attributes:
        waiting: How many outbox messages wait to be published; from 10,000 on about how many.
        oldest_age: Seconds since the oldest of them was recorded; 0.0 where none waits.
        withheld: How many messages are set aside, by state "refused" or "waiting".
        deliveries: How many are open, by receiver and state "retrying" or "dead".
        orphans: How many are open, by fault "missing", "disagreeing" or "invalid".
        failures: Events in a row that a receiver failed on, by receiver; 0 after a success.
        open_breakers: Receivers that are left alone now.
    """

    waiting: int
    oldest_age: float
    withheld: dict[str, int]
    deliveries: dict[tuple[str, str], int]
    orphans: dict[str, int]
    failures: dict[str, int]
    open_breakers: set[str]


def status(*, using: str = DEFAULT_DB_ALIAS) -> Status:
    """Ask how the delivery of one database fares.

    Args:
        using: Database alias.
    """
    withheld = WithheldMessage.objects.using(using).filter(state__in=WithheldMessage.OPEN)
    deliveries = Delivery.objects.using(using).filter(state__in=Delivery.OPEN)
    orphans = Orphan.objects.using(using).filter(state=Orphan.State.OPEN)
    oldest = _oldest(using)
    return Status(
        waiting=_waiting(using),
        oldest_age=max((timezone.now() - oldest).total_seconds(), 0.0) if oldest else 0.0,
        withheld=dict(withheld.values_list("state").annotate(Count("pk")).order_by()),
        deliveries={
            (receiver, state): count
            for receiver, state, count in deliveries.values_list("receiver", "state")
            .annotate(number=Count("*"))
            .order_by()
        },
        orphans=dict(orphans.values_list("fault").annotate(Count("pk")).order_by()),
        failures=dict(ReceiverState.objects.using(using).values_list("receiver", "failures")),
        open_breakers=breakers.open_names(using=using),
    )


def _waiting(using: str) -> int:
    counted = outbox.backlog(using=using, limits=(1, _MOST_COUNTED))
    # By the distance of ids, in which those of a large rollback may be for a moment.
    return counted if counted < _MOST_COUNTED else outbox.backlog(using=using)


def _oldest(using: str) -> datetime | None:
    """When the oldest row was recorded that the relay still has to publish."""
    position = RelayCursor.objects.using(using).values_list("position", flat=True).first() or 0
    rows = OutboxMessage.objects.using(using).order_by("id")
    ahead = rows.filter(id__gt=position).values_list("occurred_at", flat=True).first()
    inside = rows.filter(id__gte=OuterRef("first_id"), id__lte=OuterRef("last_id"))
    lowest = RelayGap.objects.using(using).order_by("first_id")[:_MOST_GAPS]
    held = (
        RelayGap.objects.using(using)
        .filter(pk__in=lowest.values("pk"))
        .annotate(oldest=Subquery(inside.values("occurred_at")[:1]))
        .aggregate(found=Min("oldest"))["found"]
    )
    return min((moment for moment in (ahead, held) if moment is not None), default=None)
