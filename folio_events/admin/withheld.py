"""Withheld messages: what the broker refused, to be released or discarded."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from functools import partial
from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from folio_events import withheld
from folio_events.admin.filters import ExactValueFilter
from folio_events.admin.readable import badge, moment, note, shortened, stacked, text_block
from folio_events.admin.settling import SettlingAdmin, selected_ids
from folio_events.audit import Actor
from folio_events.models import OutboxMessage, WithheldMessage

State = WithheldMessage.State
_TONES: dict[str, str] = {
    State.REFUSED: "bad",
    State.WAITING: "going",
    State.PUBLISHED: "good",
    State.DISCARDED: "closed",
}


@admin.register(WithheldMessage)
class WithheldMessageAdmin(SettlingAdmin):
    """Messages that are not on the broker because it refused them or one before them."""

    buttons = {"release": _("Release"), "discard": _("Discard")}
    open_states = (State.REFUSED,)
    actions = ("release", "discard")
    list_display = (
        "number",
        "state_shown",
        "error_in_list",
        "kind",
        "key_and_event_id",
        "since",
    )
    list_filter = ("state", ("topic", ExactValueFilter), ("tenant", ExactValueFilter))
    optional_fields = (
        "error_whole",
        "resolved",
        "reason_whole",
        "event_type",
        "event_id_whole",
        "key_whole",
    )
    fieldsets = (
        (None, {"fields": ("state_shown", "error_whole", "since", "resolved", "reason_whole")}),
        (
            _("Message"),
            {"fields": ("message", "topic", "event_type", "tenant", "key_whole", "event_id_whole")},
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # The outbox row may have been purged after its withheld one was settled: no join.
        message = OutboxMessage.objects.filter(pk=OuterRef("pk"))
        rows: QuerySet[Any] = (
            super()
            .get_queryset(request)
            .annotate(
                outbox_event_id=Subquery(message.values("event_id")[:1]),
                outbox_event_type=Subquery(message.values("event_type")[:1]),
            )
        )
        return rows

    def with_event_id(self, event_id: uuid.UUID) -> Q:
        return Q(pk__in=OutboxMessage.objects.filter(event_id=event_id).values("pk"))

    def has_release_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "release")

    @admin.action(
        permissions=["release"], description=_("Release selected %(verbose_name_plural)s")
    )
    def release(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.settle(
            request,
            partial(withheld.release, selected_ids(queryset)),
            lambda count: (
                ngettext(
                    "%d message is tried again by the next drain.",
                    "%d messages are tried again by the next drain.",
                    count,
                )
                % count
            ),
        )

    def discard_rows(self, ids: Collection[int], *, reason: str, by: Actor, using: str) -> int:
        return withheld.discard(ids, reason=reason, by=by, using=using)

    @admin.display(description=_("state"))
    def state_shown(self, row: WithheldMessage) -> SafeString:
        return badge(row.get_state_display(), _TONES.get(row.state, "closed"))

    @admin.display(description=_("error"))
    def error_in_list(self, row: WithheldMessage) -> str | None:
        return shortened(row.error) or None

    @admin.display(description=_("error"))
    def error_whole(self, row: WithheldMessage) -> SafeString | None:
        return text_block(row.error)

    @admin.display(description=_("outbox message"))
    def message(self, row: Any) -> Any:
        if row.outbox_event_id is None:
            return str(row.pk)
        url = self.link(OutboxMessage, "change", row.pk)
        return format_html('<a href="{}">{}</a>', url, str(row.pk))

    @admin.display(description=_("event type"))
    def event_type(self, row: Any) -> str | None:
        kind: str | None = row.outbox_event_type
        return kind

    @admin.display(description=_("topic, type, tenant"))
    def kind(self, row: Any) -> SafeString:
        return stacked(row.topic, self.event_type(row), row.tenant and note(row.tenant))

    @admin.display(description=_("withheld"))
    def since(self, row: WithheldMessage) -> SafeString | None:
        return moment(row.withheld_at)

    @admin.display(description=_("resolved"))
    def resolved(self, row: WithheldMessage) -> SafeString | None:
        return moment(row.resolved_at)

    @admin.display(description=_("reason"))
    def reason_whole(self, row: WithheldMessage) -> SafeString | None:
        return text_block(row.reason)

    def event_id_of(self, row: Any) -> uuid.UUID | None:
        found: uuid.UUID | None = row.outbox_event_id
        return found
