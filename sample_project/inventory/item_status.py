"""The door by which other modules change an item's status."""

from __future__ import annotations

from uuid import UUID

from django.db import transaction

from sample_project.inventory.models import Item


def change_status(item_id: UUID | str, *, before: str, after: str) -> bool:
    """Change the status of an item of the current tenant, if it is what the caller thinks.

    Returns:
        Whether it was changed: False when there is no such item, or its status differs.
    """
    with transaction.atomic():
        item = Item.objects.select_for_update(no_key=True).filter(pk=item_id).first()
        if item is None or item.status.get("name") != before:
            return False
        item.status = {**item.status, "name": after}
        item.save(update_fields=["status"])
    return True
