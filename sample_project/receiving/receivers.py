"""What follows when a piece has arrived.

This is the business module's style: the receiver holds a rule, and changes what belongs
to a storage module through that module's door.
"""

from __future__ import annotations

from folio_events import Event, RetryPolicy, receiver
from sample_project.contracts import PIECE
from sample_project.inventory.item_status import change_status


@receiver(PIECE, types=["UPDATE"], name="receiving.process_item", retry=RetryPolicy(attempts=5))
def process_item(event: Event) -> None:
    """Send an ordered item to processing when its piece is received."""
    old, new = event.old or {}, event.new or {}
    arrived = new.get("receivingStatus") == "Received" and old.get("receivingStatus") != "Received"
    if arrived and new.get("itemId"):
        change_status(new["itemId"], before="On order", after="In process")
