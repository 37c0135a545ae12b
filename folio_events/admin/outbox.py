"""The outbox: what was recorded, and where it stands on the broker."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from folio_events.admin.event_page import EventPages, event_link
from folio_events.admin.filters import ExactValueFilter
from folio_events.admin.ledger import SearchedLedgerAdmin
from folio_events.admin.readable import (
    badge,
    headers_block,
    moment,
    note,
    on_broker,
    stacked,
)
from folio_events.models import (
    Delivery,
    OutboxMessage,
    Publication,
    WithheldMessage,
)
from folio_events.operations.retention import of_progress
from folio_events.sending import headers_of

_TONES = {
    OutboxMessage.Progress.WAITING: "going",
    OutboxMessage.Progress.PUBLISHED: "good",
    OutboxMessage.Progress.WITHHELD: "bad",
    OutboxMessage.Progress.DISCARDED: "closed",
}


class ProgressFilter(admin.SimpleListFilter):
    """How far messages got."""

    title = _("progress")
    parameter_name = "progress"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return OutboxMessage.Progress.choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        if chosen is None or chosen not in OutboxMessage.Progress.values:
            return queryset
        return queryset.filter(*of_progress(OutboxMessage.Progress(chosen), using=queryset.db))


@admin.register(OutboxMessage)
class OutboxMessageAdmin(SearchedLedgerAdmin):
    """Messages in the order in which they were recorded, the newest first."""

    large_fields = ("payload", "repeating_headers", "own_headers")
    list_display = (
        "number",
        "progress",
        "kind",
        "key_and_event_id",
        "times",
        "place",
    )
    list_filter = (
        ProgressFilter,
        ("topic", ExactValueFilter),
        ("event_type", ExactValueFilter),
        ("tenant", ExactValueFilter),
    )
    list_select_related = ("publication", "withheldmessage")
    optional_fields = ("key_whole", "place", "published")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "progress",
                    "topic",
                    "event_type",
                    "tenant",
                    "key_whole",
                    "event_id_whole",
                    "occurred",
                    "related",
                )
            },
        ),
        (_("On the broker"), {"fields": ("place", "published")}),
        (_("Message"), {"fields": ("headers", "body")}),
    )

    @admin.display(description=_("progress"))
    def progress(self, row: OutboxMessage) -> SafeString:
        return badge(row.progress.label, _TONES[row.progress])

    @admin.display(description=_("topic, type, tenant"))
    def kind(self, row: OutboxMessage) -> SafeString:
        return stacked(row.topic, row.event_type, row.tenant and note(row.tenant))

    @admin.display(description=_("occurred, published"))
    def times(self, row: OutboxMessage) -> SafeString:
        return stacked(self.occurred(row), self.published(row))

    @admin.display(description=_("occurred"))
    def occurred(self, row: OutboxMessage) -> SafeString | None:
        return moment(row.occurred_at)

    @admin.display(description=_("topic, partition, offset"))
    def place(self, row: OutboxMessage) -> SafeString | None:
        publication = _publication(row)
        if publication is None:
            return None
        return on_broker(publication.topic, publication.partition, publication.offset)

    @admin.display(description=_("published"))
    def published(self, row: OutboxMessage) -> SafeString | None:
        publication = _publication(row)
        return None if publication is None else moment(publication.published_at)

    @admin.display(description=_("see also"))
    def related(self, row: OutboxMessage) -> SafeString:
        deliveries = format_html(
            '{}, <a href="{}">{}</a>',
            event_link(self.admin_site, row.event_id, _("everything about this event")),
            self.link(Delivery, "changelist", query=f"?q={row.event_id}"),
            _("deliveries of this event"),
        )
        if _withheld(row) is None:
            return deliveries
        withheld = self.link(WithheldMessage, "change", row.pk)
        return format_html('{}, <a href="{}">{}</a>', deliveries, withheld, _("withheld message"))

    @admin.display(description=_("headers"))
    def headers(self, row: OutboxMessage) -> SafeString | None:
        return headers_block(headers_of(row))

    def logical_topic(self, row: OutboxMessage) -> str:
        return row.topic

    def get_urls(self) -> list[Any]:
        return [*EventPages(self.admin_site).urls(), *super().get_urls()]


def _publication(row: OutboxMessage) -> Publication | None:
    return getattr(row, "publication", None)


def _withheld(row: OutboxMessage) -> WithheldMessage | None:
    return getattr(row, "withheldmessage", None)
