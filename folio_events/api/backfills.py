"""Back-fills: how far they are, and their end; the command ``backfill_events`` starts them."""

from __future__ import annotations

import uuid
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request

from folio_events.api.access import actor
from folio_events.api.paging import Limited, list_of
from folio_events.api.resource import Resource, Settled, operation, reading, writing
from folio_events.models import Backfill
from folio_events.operations import backfill


class BackfillRow(serializers.ModelSerializer[Backfill]):
    """A back-fill."""

    class Meta:
        model = Backfill
        fields = (
            "id", "model", "event_type", "tenant", "filters", "keys_only", "state", "total",
            "passed", "events", "created_at", "updated_at", "finished_at",
        )  # fmt: skip


class BackfillsView(Resource):
    """Back-fills."""

    @operation("view_backfill", query=Limited, answer=list_of(BackfillRow))
    def get(self, request: Request, *, query: dict[str, Any]) -> list[Backfill]:
        """List back-fills, the newest first."""
        rows = Backfill.objects.using(reading(Backfill))
        return list(rows.order_by("-created_at")[: query["limit"]])


class CancelView(Resource):
    """The end of a back-fill."""

    @operation("run_backfill", answer=Settled, refusals=(404,))
    def post(self, request: Request, id: str) -> dict[str, int]:
        """Stop a back-fill after the chunk in hand; what it has recorded is published."""
        using = writing(Backfill)
        try:
            job = uuid.UUID(id)
        except ValueError as error:
            raise NotFound(f"{id[:50]!r} is no id of a back-fill.") from error
        if not Backfill.objects.using(using).filter(pk=job).exists():
            raise NotFound(f"There is no back-fill {job}.")
        return {"changed": int(backfill.cancel(job, using=using, by=actor(request)))}
