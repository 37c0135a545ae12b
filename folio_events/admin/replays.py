"""Replays: what was run again, by whom and why."""

from __future__ import annotations

from django.contrib import admin

from folio_events.admin.ledger import LedgerAdmin
from folio_events.models import Replay


@admin.register(Replay)
class ReplayAdmin(LedgerAdmin):
    list_display = ("id", "state", "source", "deliveries", "reason", "created_by", "created_at")
    fields = (
        "state",
        "source",
        "receivers",
        "criteria",
        "position",
        "passed",
        "unreadable",
        "deliveries",
        "reason",
        "created_by",
        "created_at",
        "updated_at",
        "finished_at",
    )
    ordering = ["-id"]
    list_filter = ("state", "source")
