"""How far relay and consumers are."""

from __future__ import annotations

from django.contrib import admin

from folio_events.admin.filters import ExactValueFilter
from folio_events.admin.ledger import LedgerAdmin
from folio_events.models import ConsumerOffset, RelayCursor


@admin.register(RelayCursor)
class RelayCursorAdmin(LedgerAdmin):
    list_display = ("position", "updated_at")
    list_display_links = None
    fields = ("position", "updated_at")


@admin.register(ConsumerOffset)
class ConsumerOffsetAdmin(LedgerAdmin):
    list_display = ("group", "topic", "partition", "offset", "database", "updated_at")
    list_display_links = None
    fields = ("group", "topic", "partition", "offset", "database", "updated_at")
    ordering = ["group", "topic", "partition", "database"]
    list_filter = (("group", ExactValueFilter), ("topic", ExactValueFilter))
