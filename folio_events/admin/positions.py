"""How far relay and consumers are, and how receivers fare."""

from __future__ import annotations

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from folio_events.admin.filters import ExactValueFilter
from folio_events.admin.ledger import LedgerAdmin
from folio_events.models import ConsumerOffset, ReceiverState, RelayCursor


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


@admin.register(ReceiverState)
class ReceiverStateAdmin(LedgerAdmin):
    list_display = ("receiver", "breaker", "failures", "opened_at", "probe_at")
    list_display_links = None
    fields = ("receiver", "failures", "opened_at", "probe_at", "updated_at")
    ordering = ["receiver"]

    @admin.display(description=_("circuit breaker"))
    def breaker(self, state: ReceiverState) -> str:
        return str(_("closed") if state.probe_at is None else _("open"))
