"""What orders does when inventory changed something.

This is the storage module's style: the receiver writes the module's own tables.
"""

from __future__ import annotations

from folio_events import Event, RetryPolicy, receiver
from sample_project.contracts import ITEM, PIECE_ITEM, TITLE
from sample_project.orders.models import OrderLine, Piece


class OrderLineLockedError(Exception):
    """Pieces of an order line must not change now; works again once the line is unlocked."""


@receiver(
    ITEM,
    types=["UPDATE"],
    name="orders.update_pieces",
    # Five runs within a second and a half or so: locks are short, or a person's business.
    retry=RetryPolicy(attempts=5, backoff=0.1, jitter=0.2),
    order="key",
    # Whoever looks at a failure sees whether the event is to blame.
    schema="schemas/item-update.json",
)
def update_pieces(event: Event) -> None:
    """Give every piece of the item what was written on it."""
    if PIECE_ITEM.changes(event):
        _refuse_locked_lines(event)
        PIECE_ITEM.apply(event, Piece)


def _refuse_locked_lines(event: Event) -> None:
    lines = Piece.objects.filter(item_id=event.key).values("po_line_id")
    locked = OrderLine.objects.filter(pk__in=lines).exclude(locked_for="").first()
    if locked is not None:
        raise OrderLineLockedError(f"Order line {locked} is locked for {locked.locked_for}.")


# Nothing but the field map is needed where there is no more to do.
TITLE.follow(OrderLine)
