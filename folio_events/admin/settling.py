"""Actions that settle rows: buttons, the page that asks for a reason, and what is said after."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.contrib.auth import get_permission_codename
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from folio_events.admin.ledger import SearchedLedgerAdmin
from folio_events.audit import Actor
from folio_events.exceptions import InvalidStateError

#: Rows that the page names before it only counts.
MAX_NAMED = 20


class SelectionForm(forms.Form):
    """Which rows were chosen before the page asked for more."""

    #: In one field: Django takes a thousand of them at most.
    ids = forms.CharField(widget=forms.HiddenInput)

    def clean_ids(self) -> list[int]:
        try:
            return [int(number) for number in self.cleaned_data["ids"].split()]
        except ValueError as error:
            raise forms.ValidationError("Not a list of ids.") from error


class DiscardForm(SelectionForm):
    """Why rows are given up."""

    required_css_class = "required"

    reason = forms.CharField(
        max_length=1000, widget=forms.Textarea(attrs={"rows": 4, "cols": 80, "autofocus": True})
    )


class SettlingAdmin(SearchedLedgerAdmin):
    """Rows that a person may settle; each action has a permission of its own."""

    change_form_template = "folio_events/admin/settle_row.html"
    #: Action to the word on its button, which stands on the page of an open row.
    buttons: Mapping[str, str | Promise] = {}
    #: States in which a row can be settled.
    open_states: Collection[str] = ()

    def discard_rows(self, ids: Collection[int], *, reason: str, by: Actor, using: str) -> int:
        raise NotImplementedError

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "discard")

    def may(self, request: HttpRequest, action: str) -> bool:
        """Whether the user has the permission that goes with the action."""
        codename = get_permission_codename(action, self.opts)
        return bool(request.user.has_perm(f"{self.opts.app_label}.{codename}"))

    def settle(
        self, request: HttpRequest, operation: Callable[..., int], said: Callable[[int], str]
    ) -> None:
        """Run an operation as the user and say what it did, or why it did nothing.

        Args:
            request: Of the user who acts.
            operation: Takes ``by`` and ``using``; returns how many rows it settled.
            said: What to say of that many rows.
        """
        try:
            count = operation(by=request.user, using=router.db_for_write(self.model))
        except InvalidStateError as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            self.message_user(request, said(count), messages.SUCCESS)

    @admin.action(
        permissions=["discard"],
        description=gettext_lazy("Discard selected %(verbose_name_plural)s"),
    )
    def discard(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask for the reason, then discard."""
        if "reason" not in request.POST:
            ids = selected_ids(queryset)
            form = DiscardForm(initial={"ids": " ".join(map(str, ids))})
            return self._ask(request, form, ids)
        form = DiscardForm(request.POST)
        if not form.is_valid():
            return self._ask(request, form, form.cleaned_data.get("ids", []))
        operation = partial(
            self.discard_rows, form.cleaned_data["ids"], reason=form.cleaned_data["reason"]
        )
        self.settle(request, operation, lambda count: _("Discarded: %d.") % count)
        return None

    def _ask(self, request: HttpRequest, form: DiscardForm, ids: list[int]) -> HttpResponse:
        named = self.get_queryset(request).defer(*self.large_fields).filter(pk__in=ids[:MAX_NAMED])
        names = {
            "verbose_name": self.opts.verbose_name,
            "verbose_name_plural": self.opts.verbose_name_plural,
        }
        context = {
            **self.admin_site.each_context(request),
            "title": ngettext(
                "Discard %(count)s %(verbose_name)s",
                "Discard %(count)s %(verbose_name_plural)s",
                len(ids),
            )
            % {"count": len(ids), **names},
            "opts": self.opts,
            "media": self.media + form.media,
            "form": form,
            "named": named,
            "unnamed": max(len(ids) - MAX_NAMED, 0),
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "folio_events/admin/discard.html", context)

    def response_action(
        self, request: HttpRequest, queryset: QuerySet[Any], *more: Any, **named: Any
    ) -> HttpResponse | None:
        response = super().response_action(request, queryset, *more, **named)
        row = request.POST.get("row", "")
        if isinstance(response, HttpResponseRedirect) and row.isdecimal():
            # Pressed on the page of a row: what became of it is seen there.
            return HttpResponseRedirect(self.link(self.model, "change", row))
        return response

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        row = self.get_object(request, unquote(object_id))
        is_open = row is not None and row.state in self.open_states
        extra = {
            "settling": [
                (action, word)
                for action, word in self.buttons.items()
                if is_open and self.may(request, action)
            ],
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
        }
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **extra})


def selected_ids(rows: QuerySet[Any]) -> list[int]:
    """Primary keys in ascending order."""
    return list(rows.order_by("pk").values_list("pk", flat=True))


def actor(request: HttpRequest) -> Actor:
    """The user who acts."""
    return request.user if isinstance(request.user, AbstractBaseUser) else None
