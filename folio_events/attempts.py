"""Writer of attempts: how the runs of deliveries went."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from folio_events.models import Attempt

#: Most attempts that are kept of a delivery, the newest.
MAX_KEPT = 20


def record(ended: Sequence[Attempt], *, using: str) -> None:
    """Keep runs that have ended, in the transaction of the caller.

    Args:
        ended: Of one delivery each, not saved.
        using: Database alias.
    """
    rows = Attempt.objects.using(using)
    rows.bulk_create(ended)
    for attempt in ended:
        if attempt.number > MAX_KEPT:
            of_delivery = rows.filter(delivery=attempt.delivery_id).order_by("-id")
            for oldest_kept in of_delivery.values_list("id", flat=True)[MAX_KEPT - 1 : MAX_KEPT]:
                of_delivery.filter(id__lt=oldest_kept).delete()


def forget(deliveries: Collection[int], *, using: str) -> None:
    """Delete what is kept of the runs of some deliveries.

    Args:
        deliveries: Their ids.
        using: Database alias.
    """
    Attempt.objects.using(using).filter(delivery__in=deliveries).delete()
