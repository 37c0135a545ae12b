"""Orphans: messages without an owner, to be assigned to a tenant or discarded."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from folio_events import orphans
from folio_events.admin.filters import ExactValueFilter
from folio_events.admin.readable import (
    badge,
    headers_block,
    moment,
    on_broker,
    short_key,
    stacked,
    text_block,
    visible,
)
from folio_events.admin.settling import MAX_NAMED, SelectionForm, SettlingAdmin, selected_ids
from folio_events.audit import Actor
from folio_events.message import decode_headers
from folio_events.models import Orphan
from folio_events.ownership import is_tenant

State = Orphan.State
_TONES: dict[str, str] = {State.OPEN: "bad", State.ASSIGNED: "good", State.DISCARDED: "closed"}


class AssignForm(SelectionForm):
    """Whose messages they are."""

    tenant = forms.CharField(max_length=200, widget=forms.TextInput(attrs={"autofocus": True}))

    def clean_tenant(self) -> str:
        tenant: str = self.cleaned_data["tenant"]
        if not is_tenant(tenant):
            raise forms.ValidationError(_("Letters, digits, '_' and '-' only."))
        return tenant


@admin.register(Orphan)
class OrphanAdmin(SettlingAdmin):
    """Orphans, the newest first."""

    large_fields = ("payload", "headers", "raw_key")
    search_help_text = _("The whole key.")
    buttons = {"assign": _("Assign to a tenant"), "discard": _("Discard")}
    open_states = (State.OPEN,)
    actions = ("assign", "discard")
    list_display = ("number", "state_shown", "fault_and_error", "place", "key_in_list", "found")
    list_filter = ("state", "fault", ("topic", ExactValueFilter))
    optional_fields = ("resolved", "assigned_to", "reason_whole", "key_whole", "headers_whole")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "state_shown",
                    "error_whole",
                    "found",
                    "resolved",
                    "assigned_to",
                    "reason_whole",
                )
            },
        ),
        (_("Message"), {"fields": ("place", "key_whole", "published", "headers_whole", "body")}),
    )

    def has_assign_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "assign")

    @admin.action(
        permissions=["assign"], description=_("Assign selected %(verbose_name_plural)s to a tenant")
    )
    def assign(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask for the tenant, then assign."""
        if "tenant" not in request.POST:
            ids = selected_ids(queryset)
            form = AssignForm(initial={"ids": " ".join(map(str, ids))})
            return self._ask_tenant(request, form, ids)
        form = AssignForm(request.POST)
        if not form.is_valid():
            return self._ask_tenant(request, form, form.cleaned_data.get("ids", []))
        tenant = form.cleaned_data["tenant"]
        self.settle(
            request,
            partial(orphans.assign, form.cleaned_data["ids"], tenant=tenant),
            lambda count: (
                ngettext(
                    "%(count)d orphan runs as %(tenant)s at the next retry pass.",
                    "%(count)d orphans run as %(tenant)s at the next retry pass.",
                    count,
                )
                % {"count": count, "tenant": tenant}
            ),
        )
        return None

    def _ask_tenant(self, request: HttpRequest, form: AssignForm, ids: list[int]) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": _("Assign orphans to a tenant"),
            "opts": self.opts,
            "media": self.media + form.media,
            "form": form,
            "named": Orphan.objects.defer(*self.large_fields).filter(pk__in=ids[:MAX_NAMED]),
            "unnamed": max(len(ids) - MAX_NAMED, 0),
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "folio_events/admin/assign.html", context)

    def discard_rows(self, ids: Collection[int], *, reason: str, by: Actor, using: str) -> int:
        return orphans.discard(ids, reason=reason, by=by, using=using)

    def with_event_id(self, event_id: uuid.UUID) -> Q:
        return Q(pk__in=[])  # whose event it is nobody knows, nor therefore its id

    @admin.display(description=_("state"))
    def state_shown(self, row: Orphan) -> SafeString:
        return badge(row.get_state_display(), _TONES.get(row.state, "closed"))

    @admin.display(description=_("error"))
    def fault_and_error(self, row: Orphan) -> SafeString:
        return stacked(row.get_fault_display(), visible(row.error))

    @admin.display(description=_("error"))
    def error_whole(self, row: Orphan) -> SafeString | None:
        return text_block(row.error)

    @admin.display(description=_("topic, partition, offset"))
    def place(self, row: Orphan) -> SafeString:
        return on_broker(row.topic, row.partition, row.offset)

    @admin.display(description=_("key"))
    def key_in_list(self, row: Orphan) -> SafeString | None:
        return short_key(row.key)

    @admin.display(description=_("found"))
    def found(self, row: Orphan) -> SafeString | None:
        return moment(row.found_at)

    @admin.display(description=_("published"))
    def published(self, row: Orphan) -> SafeString | None:
        return moment(row.published_at)

    @admin.display(description=_("resolved"))
    def resolved(self, row: Orphan) -> SafeString | None:
        return moment(row.resolved_at)

    @admin.display(description=_("assigned to"))
    def assigned_to(self, row: Orphan) -> str | None:
        return row.tenant or None

    @admin.display(description=_("reason"))
    def reason_whole(self, row: Orphan) -> SafeString | None:
        return text_block(row.reason)

    @admin.display(description=_("headers"))
    def headers_whole(self, row: Orphan) -> SafeString | None:
        return headers_block(decode_headers(bytes(row.headers)))
