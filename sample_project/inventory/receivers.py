"""What inventory does when orders changed something.

This is the storage module's style: the receiver writes the module's own tables.
"""

from __future__ import annotations

from folio_events import Event, RetryPolicy, receiver
from sample_project.contracts import PIECE, PIECE_ITEM, TITLE
from sample_project.inventory.models import Instance, Item


@receiver(
    PIECE,
    types=["CREATE", "UPDATE"],
    name="inventory.update_item",
    retry=RetryPolicy(attempts=5),
    order="key",
)
def update_item(event: Event) -> None:
    """Give the item what was written on its piece."""
    PIECE_ITEM.apply(event, Item)


# Nothing but the field map is needed where there is no more to do.
TITLE.follow(Instance)
