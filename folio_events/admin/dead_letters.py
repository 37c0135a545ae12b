"""Dead letters by cause, and what is done to all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseError
from django.db import router, transaction
from django.db.models import Model
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.template.response import TemplateResponse
from django.urls import path
from django.utils import timezone
from django.utils.functional import lazy
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from folio_events.admin.ledger import LedgerAdmin
from folio_events.admin.readable import badge, moment, shortened, text_block, visible
from folio_events.admin.settling import actor
from folio_events.exceptions import InvalidStateError
from folio_events.models import BulkAction, DeadLetter, Delivery, WithheldMessage
from folio_events.operations import bulk_actions, dead_letters
from folio_events.operations.dead_letters import Selection
from folio_events.receivers import registry

Action, Subject, State = BulkAction.Action, BulkAction.Subject, BulkAction.State
#: Groups that the page shows, and dead letters that its name counts.
MOST, MOST_IN_NAME = 100, 999
_TONES: dict[str, str] = {State.RUNNING: "going", State.CANCELLED: "held", State.DONE: "good"}
_OUTCOMES: dict[str, str] = {
    Delivery.State.RETRYING: "going",
    Delivery.State.DEAD: "bad",
    Delivery.State.RESOLVED: "good",
    Delivery.State.DISCARDED: "closed",
}
_RUN = "folio_events.run_bulkaction"
#: By subject and action: what a user has to be allowed besides running bulk actions.
_NEEDED = {
    (Subject.DELIVERY, Action.RETRY): "folio_events.retry_delivery",
    (Subject.DELIVERY, Action.DISCARD): "folio_events.discard_delivery",
    (Subject.WITHHELD, Action.RELEASE): "folio_events.release_withheldmessage",
    (Subject.WITHHELD, Action.DISCARD): "folio_events.discard_withheldmessage",
}
_VIEW = {
    Subject.DELIVERY: "folio_events.view_delivery",
    Subject.WITHHELD: "folio_events.view_withheldmessage",
}
_TITLES = {
    (Subject.DELIVERY, Action.RETRY): gettext_lazy("Retry dead letters"),
    (Subject.DELIVERY, Action.DISCARD): gettext_lazy("Discard dead letters"),
    (Subject.WITHHELD, Action.RELEASE): gettext_lazy("Release withheld messages"),
    (Subject.WITHHELD, Action.DISCARD): gettext_lazy("Discard withheld messages"),
}
_CONSEQUENCES = {
    (Subject.DELIVERY, Action.RETRY): gettext_lazy(
        "The retry passes run them again, in the order of their keys; each has one attempt."
    ),
    (Subject.DELIVERY, Action.DISCARD): gettext_lazy(
        "They are closed for good and never run; what waits behind them goes on."
    ),
    (Subject.WITHHELD, Action.RELEASE): gettext_lazy(
        "The relay tries them again, with their followers behind them."
    ),
    (Subject.WITHHELD, Action.DISCARD): gettext_lazy(
        "They are closed for good and never sent; what waits behind them is published."
    ),
}


def may(request: HttpRequest, subject: BulkAction.Subject, action: BulkAction.Action) -> bool:
    """Whether a user may start a bulk action."""
    needed = (_RUN, _VIEW[subject], _NEEDED[subject, action])
    return request.user.has_perms(needed)


class CriteriaForm(forms.Form):
    """Which rows; what is left empty does not matter."""

    receiver = forms.CharField(required=False)
    topic = forms.CharField(required=False)
    tenant = forms.CharField(required=False)
    event_type = forms.CharField(required=False)
    error = forms.CharField(required=False, label=gettext_lazy("Class of the error"))
    fingerprint = forms.CharField(required=False)
    since = forms.DateTimeField(required=False, label=gettext_lazy("Failed since"))
    until = forms.DateTimeField(required=False, label=gettext_lazy("Failed before"))

    def selection(self) -> Selection:
        """What the form says; valid."""
        return Selection(**{name: value or None for name, value in self.cleaned_data.items()})


class StartForm(forms.Form):
    """Why, and how fast."""

    required_css_class = "required"

    reason = forms.CharField(
        max_length=1000, widget=forms.Textarea(attrs={"rows": 3, "cols": 80, "autofocus": True})
    )
    rate = forms.FloatField(
        required=False,
        min_value=0.001,
        label=gettext_lazy("Most a second"),
        help_text=gettext_lazy("Empty: as fast as they go."),
    )


class CancelForm(forms.Form):
    """Why no more is to be done."""

    reason = forms.CharField(max_length=1000, required=False)


@admin.register(BulkAction)
class BulkActionAdmin(LedgerAdmin):
    """Bulk actions: how far they are; started from the page of the dead letters."""

    change_form_template = "folio_events/admin/bulk_action.html"
    list_display = ("id", "what", "state_shown", "progress", "reason", "created_by", "created")
    list_filter = ("state", "action", "subject")
    ordering = ["-id"]
    optional_fields = ("finished",)
    fields = (
        "state_shown",
        "what",
        "criteria",
        "progress",
        "rate",
        "reason_whole",
        "created_by",
        "created",
        "worked_at",
        "finished",
    )

    def get_urls(self) -> list[Any]:
        pages: list[tuple[str, Callable[..., HttpResponse], str]] = [
            ("start/<slug:action>/", self.start, "folio_events_bulkaction_start"),
            ("<int:pk>/cancel/", self.cancel, "folio_events_bulkaction_cancel"),
        ]
        return [
            *(
                path(route, self.admin_site.admin_view(view), name=name)
                for route, view, name in pages
            ),
            *super().get_urls(),
        ]

    def start(self, request: HttpRequest, action: str) -> HttpResponse:
        """Ask for the reason, then start."""
        said = request.POST if request.method == "POST" else request.GET
        subject = said.get("subject", Subject.DELIVERY)
        try:
            chosen, of = Action(action), Subject(subject)
        except ValueError as error:
            raise Http404 from error
        if (of, chosen) not in _NEEDED:
            raise Http404
        if not may(request, of, chosen):
            raise PermissionDenied
        using = router.db_for_write(BulkAction)
        criteria = CriteriaForm(said)
        form = StartForm(request.POST if request.method == "POST" else None)
        if not criteria.is_valid():
            raise Http404
        selection = criteria.selection()
        if request.method == "POST" and form.is_valid():
            try:
                bulk = bulk_actions.start(
                    chosen,
                    selection,
                    subject=of,
                    reason=form.cleaned_data["reason"],
                    rate=form.cleaned_data["rate"],
                    by=actor(request),
                    using=using,
                )
            except (InvalidStateError, ValueError) as error:
                form.add_error(None, str(error))
            else:
                return HttpResponseRedirect(
                    self._page(bulk) if self._sees(request) else self._home()
                )
        try:
            number = bulk_actions.matching(of, selection, using=using).count()
        except ValueError as error:
            raise Http404(str(error)) from error
        context = self.page_context(request, str(_TITLES[of, chosen])) | {
            "form": form,
            "hidden": [("subject", of.value), *selection.criteria().items()],
            "criteria": selection.criteria(),
            "consequence": _CONSEQUENCES[of, chosen],
            "number": _number(of, number),
            "button": chosen.label.capitalize(),
            "home": self._home(),
        }
        return TemplateResponse(request, "folio_events/admin/start_bulk_action.html", context)

    def cancel(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Have a bulk action do no more."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not request.user.has_perm(_RUN):
            raise PermissionDenied
        using = router.db_for_write(BulkAction)
        bulk = BulkAction.objects.using(using).filter(pk=pk).first()
        if bulk is None:
            raise Http404
        form = CancelForm(request.POST)
        reason = form.cleaned_data["reason"] if form.is_valid() else ""
        try:
            bulk_actions.cancel(pk, reason=reason, by=actor(request), using=using)
        except InvalidStateError as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            self.message_user(request, _("It is cancelled."), messages.SUCCESS)
        return HttpResponseRedirect(self._page(bulk) if self._sees(request) else self._home())

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        bulk = self.get_object(request, object_id)
        extra: dict[str, Any] = {"bulk": bulk}
        if bulk is not None:
            is_running = bulk.state == State.RUNNING
            extra |= {
                "is_running": is_running,
                "may_cancel": is_running and request.user.has_perm(_RUN),
                "cancel_address": self.link(BulkAction, "cancel", bulk.pk),
                "outcome": [
                    (
                        badge(Delivery.State(state).label, _OUTCOMES[state]),
                        number,
                        self.list_link(Delivery, bulk_action=str(bulk.pk), state__exact=state),
                    )
                    for state, number in sorted(bulk_actions.outcome(bulk).items())
                ],
                "home": self._home(),
            }
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **extra})

    @admin.display(description=gettext_lazy("action"))
    def what(self, bulk: BulkAction) -> str:
        return f"{bulk.get_action_display()} {bulk.get_subject_display()}"

    @admin.display(description=gettext_lazy("state"))
    def state_shown(self, bulk: BulkAction) -> SafeString:
        return badge(bulk.get_state_display(), _TONES.get(bulk.state, "closed"))

    @admin.display(description=gettext_lazy("worked off"))
    def progress(self, bulk: BulkAction) -> str:
        return _("%(done)s of %(total)s") % {"done": f"{bulk.done:,}", "total": f"{bulk.total:,}"}

    @admin.display(description=gettext_lazy("reason"))
    def reason_whole(self, bulk: BulkAction) -> SafeString | None:
        return text_block(bulk.reason)

    @admin.display(description=gettext_lazy("started"))
    def created(self, bulk: BulkAction) -> SafeString | None:
        return moment(bulk.created_at)

    @admin.display(description=gettext_lazy("last worked on"))
    def worked_at(self, bulk: BulkAction) -> SafeString | None:
        return moment(bulk.updated_at)

    @admin.display(description=gettext_lazy("ended"))
    def finished(self, bulk: BulkAction) -> SafeString | None:
        return moment(bulk.finished_at)

    def _sees(self, request: HttpRequest) -> bool:
        return request.user.has_perm("folio_events.view_bulkaction")

    def _home(self) -> str:
        return self.link(DeadLetter, "changelist")

    def _page(self, bulk: BulkAction) -> str:
        return self.link(BulkAction, "change", bulk.pk)


def _number(subject: BulkAction.Subject, number: int) -> str:
    if subject == Subject.WITHHELD:
        words = ngettext("%s withheld message matches.", "%s withheld messages match.", number)
    else:
        words = ngettext("%s dead letter matches.", "%s dead letters match.", number)
    return words % f"{number:,}"


#: Dead letters there were when the admin listed its models last, up to one more than MOST_IN_NAME.
_listed: ContextVar[int] = ContextVar("folio_events_dead_letters", default=0)


def _name() -> str:
    if not (number := _listed.get()):
        return _("dead letters")
    return _("dead letters (%s)") % (number if number <= MOST_IN_NAME else f"{MOST_IN_NAME}+")


# Migrations do not see it: they take what ``Meta`` says.
DeadLetter._meta.verbose_name_plural = lazy(_name, str)()


@admin.register(DeadLetter)
class DeadLetterAdmin(LedgerAdmin):
    """Dead letters by cause, in the place of a list."""

    class Media:
        css = {"all": ["folio_events/dead_letters.css"]}

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm(_VIEW[Subject.DELIVERY])

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        # What a list of models asks of each before it takes the name.
        permissions = super().get_model_perms(request)
        if permissions["view"]:
            _listed.set(_count())
        return permissions

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.dead_letters)
        return [path("", view, name="folio_events_deadletter_changelist")]

    def dead_letters(self, request: HttpRequest) -> HttpResponse:
        """Dead letters by cause, and refused messages by topic."""
        if not request.user.has_perm(_VIEW[Subject.DELIVERY]):
            raise PermissionDenied
        using = router.db_for_read(Delivery)
        form = CriteriaForm(request.GET)
        context = self.page_context(request, _("Dead letters")) | {
            "form": form,
            "now": timezone.now(),
        }
        if form.is_valid():
            selection = form.selection()
            context |= self._groups(request, selection, using)
            context["number"] = selection.dead(using=using).count()
            context["actions"] = self._actions(request, Subject.DELIVERY, selection.criteria())
        if request.user.has_perm(_VIEW[Subject.WITHHELD]):
            context["refused"] = [
                {
                    "group": group,
                    "error": shortened(group.error),
                    "list": self.list_link(
                        WithheldMessage, topic=group.topic, state__exact="refused"
                    ),
                    "actions": self._actions(request, Subject.WITHHELD, {"topic": group.topic}),
                }
                for group in dead_letters.refused_groups(using=using, limit=MOST)
            ]
        if request.user.has_perm("folio_events.view_bulkaction"):
            running = BulkAction.objects.using(using).filter(state=State.RUNNING)
            context["running"] = [
                (bulk, self.link(BulkAction, "change", bulk.pk)) for bulk in running.order_by("-id")
            ]
        return TemplateResponse(request, "folio_events/admin/dead_letters.html", context)

    def _groups(self, request: HttpRequest, selection: Selection, using: str) -> dict[str, Any]:
        found = dead_letters.groups(selection, using=using, limit=MOST + 1)
        rows = []
        for group in found[:MOST]:
            criteria = {**selection.criteria(), "fingerprint": group.fingerprint}
            rows.append(
                {
                    "group": group,
                    "error": shortened(group.error),
                    "error_class": visible(group.error_class.rpartition(".")[2]),
                    "first": moment(group.first_at),
                    "last": moment(group.last_at),
                    "is_vanished": registry.get(group.receiver) is None,
                    "list": self.list_link(
                        Delivery, fingerprint=group.fingerprint, state__exact="dead"
                    ),
                    "retrying": self.list_link(
                        Delivery, fingerprint=group.fingerprint, state__exact="retrying"
                    ),
                    "sample": self.link(Delivery, "change", group.sample),
                    "actions": self._actions(request, Subject.DELIVERY, criteria)
                    if group.dead
                    else [],
                }
            )
        return {"groups": rows, "more": len(found) > MOST, "most": MOST}

    def _actions(
        self, request: HttpRequest, subject: BulkAction.Subject, criteria: Mapping[str, str]
    ) -> list[tuple[str, str]]:
        """Word and address of what the user may do to the rows."""
        query = urlencode({"subject": subject.value, **criteria})
        return [
            (action.label.capitalize(), f"{self.link(BulkAction, 'start', action.value)}?{query}")
            for of, action in _NEEDED
            if of == subject and may(request, subject, action)
        ]


def _count() -> int:
    using = router.db_for_read(Delivery)
    try:
        with transaction.atomic(using=using):
            return Selection().dead(using=using)[: MOST_IN_NAME + 1].count()
    except DatabaseError:  # other pages of the admin can do without
        return 0
