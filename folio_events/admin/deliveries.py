"""Deliveries: what receivers failed on, to be retried or discarded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from folio_events import deliveries
from folio_events.admin.editing import EditingAdmin
from folio_events.admin.event_page import event_link
from folio_events.admin.filters import ExactValueFilter
from folio_events.admin.readable import (
    badge,
    code,
    headers_block,
    moment,
    note,
    on_broker,
    shortened,
    stacked,
    text_block,
)
from folio_events.admin.settling import MAX_NAMED, SelectionForm, selected_ids
from folio_events.audit import Actor
from folio_events.message import decode_headers
from folio_events.models import Delivery, OutboxMessage
from folio_events.operations import dead_letters
from folio_events.receivers import registry

State = Delivery.State
_TONES: dict[str, str] = {
    State.RETRYING: "going",
    State.DEAD: "bad",
    State.RESOLVED: "good",
    State.DISCARDED: "closed",
}


class VanishedFilter(admin.SimpleListFilter):
    """Open deliveries that no receiver takes until they are re-pointed."""

    title = _("whether its receiver is registered")
    parameter_name = "vanished"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("yes", _("open, and its receiver is no more"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() != "yes":
            return queryset
        names = deliveries.vanished(using=queryset.db)
        return queryset.filter(receiver__in=names, state__in=Delivery.OPEN)


def _registered() -> list[tuple[str, str]]:
    return [(name, name) for name in sorted(receiver.name for receiver in registry)]


class RepointForm(SelectionForm):
    """Which receiver takes deliveries on."""

    receiver = forms.ChoiceField(choices=_registered)


class ReceiverFilter(ExactValueFilter):
    """Offers all receivers there are, and those of the newest rows that are no more."""

    def offer(self, rows: QuerySet[Any]) -> Iterable[str]:
        return {*super().offer(rows), *(receiver.name for receiver in registry)}


@admin.register(Delivery)
class DeliveryAdmin(EditingAdmin):
    """Deliveries, the newest first."""

    large_fields = (
        "payload",
        "headers",
        "traceback",
        "raw_key",
        "original_payload",
        "original_headers",
        "original_raw_key",
    )
    buttons = {"retry": _("Retry"), "discard": _("Discard")}
    open_states = Delivery.OPEN
    actions = ("retry", "repoint", "discard")
    list_display = (
        "number",
        "state_shown",
        "receiver_and_error",
        "attempts_and_next",
        "place",
        "key_and_event_id",
    )
    list_filter = (
        "state",
        ("receiver", ReceiverFilter),
        VanishedFilter,
        ("topic", ExactValueFilter),
        ("tenant", ExactValueFilter),
    )
    optional_fields = (
        "waits_for",
        "waited_for",
        "blocks",
        "cause",
        "comparison",
        "edited",
        "changes",
        "last_attempt",
        "next_attempt",
        "resolved",
        "reason_whole",
        "error_class_whole",
        "error_whole",
        "traceback_whole",
        "key_whole",
        "raw_key_whole",
        "headers_whole",
    )
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "state_shown",
                    "waits_for",
                    "waited_for",
                    "blocks",
                    "receiver_shown",
                    "group",
                    "attempts",
                    "created",
                    "last_attempt",
                    "next_attempt",
                    "resolved",
                    "reason_whole",
                )
            },
        ),
        (_("Error"), {"fields": ("cause", "error_class_whole", "error_whole", "traceback_whole")}),
        (
            _("Event"),
            {
                "fields": (
                    "event_id_whole",
                    "event_type",
                    "tenant",
                    "key_whole",
                    "raw_key_whole",
                    "place",
                    "published",
                    "replay",
                    "related",
                )
            },
        ),
        (_("Against the schema"), {"fields": ("comparison",)}),
        (_("Message"), {"fields": ("edited", "changes", "headers_whole", "body")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return deliveries.with_held_behind(super().get_queryset(request))

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "retry")

    @admin.action(permissions=["retry"], description=_("Retry selected %(verbose_name_plural)s"))
    def retry(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.settle(
            request,
            partial(deliveries.retry, selected_ids(queryset)),
            lambda count: (
                ngettext(
                    "%d delivery runs again at the next retry pass.",
                    "%d deliveries run again at the next retry pass.",
                    count,
                )
                % count
            ),
        )

    def has_repoint_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "repoint")

    @admin.action(
        permissions=["repoint"], description=_("Re-point selected %(verbose_name_plural)s")
    )
    def repoint(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask for the receiver, then re-point."""
        if "receiver" not in request.POST:
            ids = selected_ids(queryset)
            form = RepointForm(initial={"ids": " ".join(map(str, ids))})
            return self._ask_receiver(request, form, ids)
        form = RepointForm(request.POST)
        if not form.is_valid():
            return self._ask_receiver(request, form, form.cleaned_data.get("ids", []))
        name = form.cleaned_data["receiver"]
        self.settle(
            request,
            partial(deliveries.repoint, form.cleaned_data["ids"], receiver=name),
            lambda count: (
                ngettext(
                    "%(count)d delivery runs in %(name)s at the next retry pass.",
                    "%(count)d deliveries run in %(name)s at the next retry pass.",
                    count,
                )
                % {"count": count, "name": name}
            ),
        )
        return None

    def _ask_receiver(
        self, request: HttpRequest, form: RepointForm, ids: list[int]
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": _("Re-point deliveries"),
            "opts": self.opts,
            "media": self.media + form.media,
            "form": form,
            "named": Delivery.objects.defer(*self.large_fields).filter(pk__in=ids[:MAX_NAMED]),
            "unnamed": max(len(ids) - MAX_NAMED, 0),
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "folio_events/admin/repoint.html", context)

    def discard_rows(self, ids: Collection[int], *, reason: str, by: Actor, using: str) -> int:
        return deliveries.discard(ids, reason=reason, by=by, using=using)

    @admin.display(description=_("state"))
    def state_shown(self, row: Any) -> SafeString:
        badges = [badge(row.get_state_display(), _TONES.get(row.state, "closed"))]
        if row.unfinished:
            badges.append(badge(_("unfinished"), "held"))
        if row.held_behind is not None:
            badges.append(badge(_("held"), "held"))
        if row.edited_at is not None:
            badges.append(badge(_("edited"), "closed"))
        return format_html_join(" ", "{}", ((one,) for one in badges))

    @admin.display(description=_("waits for"))
    def waits_for(self, row: Any) -> SafeString | None:
        """The delivery before which this one is not run."""
        if row.held_behind is None:
            return None
        return format_html(
            '<a href="{}">{}</a>',
            self.link(Delivery, "change", row.held_behind),
            _("delivery %s, the oldest open one of its key") % row.held_behind,
        )

    @admin.display(description=_("was held"))
    def waited_for(self, row: Any) -> SafeString | None:
        """The delivery before which this one was not run, where it does not wait any more."""
        first = None if row.held_behind is not None else deliveries.waited_for(row)
        if first is None:
            return None
        return format_html(
            '<a href="{}">{}</a>',
            self.link(Delivery, "change", first),
            _("behind delivery %s, which was open when it was recorded") % first,
        )

    @admin.display(description=_("waits behind it"))
    def blocks(self, row: Delivery) -> SafeString | None:
        """How many deliveries are not run until this one is settled."""
        waiting = dead_letters.followers(row)[: dead_letters.MOST_COUNTED].count()
        if not waiting:
            return None
        words = ngettext("%s delivery", "%s deliveries", waiting) % f"{waiting:,}"
        filters = {"receiver": row.receiver, "topic": row.topic, "state__exact": State.RETRYING}
        if row.order == "key":
            filters |= {"q": row.key or ""}
        query = f"?{urlencode(filters)}"
        return format_html(
            '<a href="{}">{}</a>', self.link(Delivery, "changelist", query=query), words
        )

    @admin.display(description=_("cause"))
    def cause(self, row: Delivery) -> SafeString | None:
        """Others that failed like it."""
        if not row.fingerprint:
            return None
        query = f"?{urlencode({'fingerprint': row.fingerprint})}"
        return format_html(
            '{} <a href="{}">{}</a>',
            code(row.fingerprint),
            self.link(Delivery, "changelist", query=query),
            _("deliveries that failed like it"),
        )

    @admin.display(description=_("receiver"))
    def receiver_shown(self, row: Delivery) -> SafeString | str:
        if registry.get(row.receiver) is not None:
            return row.receiver
        return format_html("{} {}", row.receiver, badge(_("vanished"), "closed"))

    @admin.display(description=_("receiver, error"))
    def receiver_and_error(self, row: Delivery) -> SafeString:
        return stacked(
            self.receiver_shown(row),
            row.error_class and note(row.error_class),
            shortened(row.error),
        )

    @admin.display(description=_("attempts, next"))
    def attempts_and_next(self, row: Any) -> SafeString:
        return stacked(str(row.attempts), self.next_attempt(row))

    @admin.display(description=_("next attempt"))
    def next_attempt(self, row: Any) -> SafeString | None:
        # A held one is not run at that time, but once the one before it is settled.
        return None if row.held_behind is not None else moment(row.next_attempt_at)

    @admin.display(description=_("last attempt"))
    def last_attempt(self, row: Delivery) -> SafeString | None:
        return moment(row.last_attempt_at)

    @admin.display(description=_("recorded"))
    def created(self, row: Delivery) -> SafeString | None:
        return moment(row.created_at)

    @admin.display(description=_("resolved"))
    def resolved(self, row: Delivery) -> SafeString | None:
        return moment(row.resolved_at)

    @admin.display(description=_("published"))
    def published(self, row: Delivery) -> SafeString | None:
        return moment(row.published_at)

    @admin.display(description=_("topic, partition, offset"))
    def place(self, row: Delivery) -> SafeString:
        return on_broker(row.topic, row.partition, row.offset)

    @admin.display(description=_("raw key"))
    def raw_key_whole(self, row: Delivery) -> SafeString | None:
        """The key's bytes where the text does not say them all."""
        if row.raw_key is None or bytes(row.raw_key) == (row.key or "").encode():
            return None
        return code(bytes(row.raw_key).hex(" "))

    @admin.display(description=_("reason"))
    def reason_whole(self, row: Delivery) -> SafeString | None:
        return text_block(row.reason)

    @admin.display(description=_("class"))
    def error_class_whole(self, row: Delivery) -> SafeString | None:
        return code(row.error_class) if row.error_class else None

    @admin.display(description=_("error"))
    def error_whole(self, row: Delivery) -> SafeString | None:
        return text_block(row.error)

    @admin.display(description=_("traceback"))
    def traceback_whole(self, row: Delivery) -> SafeString | None:
        return text_block(row.traceback)

    @admin.display(description=_("headers"))
    def headers_whole(self, row: Delivery) -> SafeString | None:
        return headers_block(decode_headers(bytes(row.headers)))

    @admin.display(description=_("see also"))
    def related(self, row: Delivery) -> SafeString:
        query = f"?q={row.event_id}"
        event = event_link(self.admin_site, row.event_id, _("everything about this event"))
        return event + format_html_join(
            "",
            ', <a href="{}">{}</a>',
            (
                (self.link(Delivery, "changelist", query=query), _("deliveries of this event")),
                (self.link(OutboxMessage, "changelist", query=query), _("its outbox message")),
            ),
        )
