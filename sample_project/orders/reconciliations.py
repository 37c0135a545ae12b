"""What orders repeats of inventory, to be compared by ``manage.py reconcile_events``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.db.models import QuerySet

from folio_events.operations.reconcile import Difference, Reconciliation, reconciliations
from sample_project.orders.models import OrderLine


@reconciliations.register
class Titles(Reconciliation):
    """An order line has the title of its instance."""

    name = "orders.titles"
    projection_key = "instance_id"
    fields = {"title_or_package": "title"}
    # Most titles were never ordered.
    complete = False

    def source(self) -> QuerySet[Any]:
        # By label, since nothing else of orders knows inventory's code.
        return apps.get_model("inventory", "Instance").objects.all()

    def projection(self) -> QuerySet[Any]:
        return OrderLine.objects.all()

    def repair(self, differences: Sequence[Difference]) -> int:
        stale = [found.row for found in differences if found.kind == "stale"]
        # Without a stamp the line's own title loses against the one that is said again.
        OrderLine.objects.filter(pk__in=stale).update(edit_stamps={})
        return super().repair(differences)
