"""The outbox: what was recorded, and where it stands on the broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from folio_events.dialects import wire_headers
from folio_events.models import (
    Delivery,
    OutboxMessage,
    Publication,
    WithheldMessage,
)
from folio_events.operations.retention import horizon


class ProgressFilter(admin.SimpleListFilter):
    """How far messages got."""

    title = _("progress")
    parameter_name = "progress"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterator[tuple[str, Any]]:
        yield "waiting", _("waiting")
        yield "published", _("published")
        yield "withheld", _("withheld")
        yield "discarded", _("discarded")

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "waiting":
                # Below the horizon none is, and nothing has to be read.
                return queryset.filter(
                    pk__gte=horizon(using=queryset.db),
                    publication__isnull=True,
                    withheldmessage__isnull=True,
                )
            case "published":
                return queryset.filter(publication__isnull=False)
            case "withheld":
                return queryset.filter(withheldmessage__state__in=WithheldMessage.OPEN)
            case "discarded":
                return queryset.filter(withheldmessage__state=WithheldMessage.State.DISCARDED)
        return queryset


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
        if _publication(row) is not None:
            return badge(_("published"), "good")
        withheld = _withheld(row)
        if withheld is None:
            return badge(_("waiting"), "going")
        if withheld.state in WithheldMessage.OPEN:
            return badge(_("withheld"), "bad")
        return badge(withheld.get_state_display(), "closed")

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
        repeating, own = (
            [(name, value.encode()) for name, value in json.loads(bytes(stored))] if stored else []
            for stored in (row.repeating_headers, row.own_headers)
        )
        return headers_block(
            wire_headers(
                repeating,
                own,
                event_id=str(row.event_id),
                occurred_at=row.occurred_at,
                sequence=row.pk,
            )
        )

    def logical_topic(self, row: OutboxMessage) -> str:
        return row.topic

    def get_urls(self) -> list[Any]:
        return [*EventPages(self.admin_site).urls(), *super().get_urls()]


def _publication(row: OutboxMessage) -> Publication | None:
    return getattr(row, "publication", None)


def _withheld(row: OutboxMessage) -> WithheldMessage | None:
    return getattr(row, "withheldmessage", None)
