"""The page of one event, and the search for events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import Model
from django.forms import Media
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from folio_events.admin.readable import (
    badge,
    code,
    headers_block,
    in_bytes,
    moment,
    note,
    on_broker,
    payload_block,
    short_key,
    stacked,
    text_block,
    visible,
)
from folio_events.exceptions import InvalidStateError
from folio_events.masking import is_json, private_members, without_private, without_tokens
from folio_events.models import Delivery, OutboxMessage, Replay, WithheldMessage
from folio_events.monitoring.history import (
    MISSING,
    MOST_COUNTED,
    Change,
    Handling,
    History,
    Result,
    Run,
    Step,
    changes,
    history,
)
from folio_events.monitoring.search import By, Caused, Hit, caused_by, search

#: Changed members that a page shows, and characters of a value.
MAX_CHANGES, MAX_VALUE = 200, 2000
_MEDIA = Media(css={"all": ["folio_events/admin.css", "folio_events/event.css"]})

_RESULTS: dict[Result, tuple[str, str | Promise]] = {
    Result.HANDLED: ("good", gettext_lazy("handled")),
    Result.RETRYING: ("going", gettext_lazy("retrying")),
    Result.HELD: ("held", gettext_lazy("held")),
    Result.DEAD: ("bad", gettext_lazy("dead")),
    Result.DISCARDED: ("closed", gettext_lazy("discarded")),
    Result.AHEAD: ("going", gettext_lazy("not read yet")),
    Result.PASSED: ("closed", gettext_lazy("read, no effect kept")),
    Result.UNKNOWN: ("closed", gettext_lazy("unknown")),
}
_STEPS: dict[str, tuple[str, str | Promise]] = {
    "written": ("closed", gettext_lazy("written")),
    "withheld": ("bad", gettext_lazy("withheld")),
    "published": ("good", gettext_lazy("published")),
    "held": ("held", gettext_lazy("kept for later")),
    "begun": ("going", gettext_lazy("running")),
    "failed": ("bad", gettext_lazy("failed")),
    "lost": ("bad", gettext_lazy("no end")),
    "dead": ("bad", gettext_lazy("dead")),
    "succeeded": ("good", gettext_lazy("succeeded")),
    "handled": ("good", gettext_lazy("handled")),
    "discarded": ("closed", gettext_lazy("discarded")),
}


def may_view(request: HttpRequest, model: type[Model]) -> bool:
    """Whether a user may view the rows of a model."""
    return request.user.has_perm(f"{model._meta.app_label}.view_{model._meta.model_name}")


def hidden_members(request: HttpRequest, topic: str) -> frozenset[str]:
    """Members of a logical topic's payloads that the user may not see."""
    if request.user.has_perm("folio_events.view_private"):
        return frozenset()
    return private_members(topic)


def event_link(site: AdminSite, event_id: object, word: object = None) -> SafeString:
    """A link to the page of an event."""
    url = reverse("admin:folio_events_event", args=[event_id], current_app=site.name)
    return format_html('<a href="{}">{}</a>', url, word or code(str(event_id)))


class SearchForm(forms.Form):
    """What to look for."""

    q = forms.CharField(required=False, strip=True, max_length=2500)
    by = forms.ChoiceField(
        required=False,
        choices=[
            (By.ID_OR_KEY.value, gettext_lazy("event id or key")),
            (By.REQUEST_ID.value, gettext_lazy("request id")),
            (By.TRACE_ID.value, gettext_lazy("trace id")),
            (By.TENANT.value, gettext_lazy("tenant")),
        ],
    )


class EventPages:
    """The pages, at one admin site.

    A user who may view the outbox but no deliveries, or the other way round, sees that part.
    """

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[Any]:
        pages: list[tuple[str, str, Callable[..., HttpResponse]]] = [
            ("event/", "events", self.find),
            ("event/<uuid:event_id>/", "event", self.show),
            ("event/<uuid:event_id>/payload/", "event_payload", self.payload),
        ]
        return [
            path(route, self.site.admin_view(view), name=f"folio_events_{name}")
            for route, name, view in pages
        ]

    def _seen(self, request: HttpRequest) -> tuple[bool, bool]:
        seen = may_view(request, OutboxMessage), may_view(request, Delivery)
        if not any(seen):
            raise PermissionDenied
        return seen

    def _context(self, request: HttpRequest, title: str, **more: Any) -> dict[str, Any]:
        return {
            **self.site.each_context(request),
            "title": title,
            "opts": OutboxMessage._meta,
            "media": _MEDIA,
            **more,
        }

    def _url(self, name: str, *args: object, **query: object) -> str:
        url = reverse(f"admin:folio_events_{name}", args=args, current_app=self.site.name)
        return f"{url}?{urlencode(query)}" if query else url

    # The search.

    def find(self, request: HttpRequest) -> HttpResponse:
        """Search for events; the one of an id is shown at once."""
        own, foreign = self._seen(request)
        form = SearchForm(request.GET or None)
        context = self._context(request, _("Find an event"), form=form, searched=False)
        if not request.GET or not form.is_valid() or not form.cleaned_data["q"]:
            return TemplateResponse(request, "folio_events/admin/find_event.html", context)
        term, by = form.cleaned_data["q"], By(form.cleaned_data["by"] or By.ID_OR_KEY)
        if by == By.ID_OR_KEY and (found := self._by_id(term)) is not None:
            return HttpResponseRedirect(self._url("event", found))
        try:
            hits = search(term, by, before=request.GET.get("before"), using=_database())
        except InvalidStateError as error:
            raise Http404(str(error)) from error
        context |= {
            "searched": True,
            "hits": [self._row(hit) for hit in hits.hits if (own if hit.is_own else foreign)],
            "is_partial": hits.is_partial,
            "back_to": moment(hits.back_to),
            "further": hits.next and self._url("events", q=term, by=by.value, before=hits.next),
        }
        return TemplateResponse(request, "folio_events/admin/find_event.html", context)

    def _by_id(self, term: str) -> uuid.UUID | None:
        try:
            event_id = uuid.UUID(term)
        except ValueError:
            return None
        # The id of an event may be the key of others.
        others = search(str(event_id), By.KEY, using=_database()).hits
        return None if others or history(event_id, using=_database()) is None else event_id

    def _row(self, hit: Hit) -> dict[str, Any]:
        return {
            "at": moment(hit.at),
            "kind": stacked(hit.topic, visible(hit.event_type), hit.tenant and note(hit.tenant)),
            "key": short_key(hit.key),
            "event": event_link(self.site, hit.event_id),
            "is_own": hit.is_own,
        }

    # The page.

    def show(self, request: HttpRequest, event_id: uuid.UUID) -> HttpResponse:
        """Everything that is known of one event."""
        found = self._history(request, event_id)
        hidden = hidden_members(request, found.topic)
        own, _foreign = self._seen(request)
        caused = self._caused(request, found) if own else None
        context = self._context(
            request,
            _("Event %s") % event_id,
            event_id=event_id,
            verdict=_verdict(found),
            facts=list(self._facts(found)),
            timeline=list(self._timeline(found)),
            handlings=[self._handling(handling, found) for handling in found.handlings],
            changes=_changes(found, hidden),
            undecodable=found.undecodable and visible(found.undecodable),
            has_body=found.payload is not None,
            body=payload_block(found.payload, hidden) if found.headers else None,
            headers=headers_block(found.headers),
            download=self._download(found, hidden),
            caused=caused and [self._row(hit) for hit in caused.hits],
            caused_up_to=caused and moment(caused.up_to),
            caused_further=caused
            and caused.next is not None
            and self._url("event", event_id, after=caused.next),
        )
        return TemplateResponse(request, "folio_events/admin/event.html", context)

    def _history(self, request: HttpRequest, event_id: uuid.UUID) -> History:
        own, foreign = self._seen(request)
        found = history(event_id, using=_database())
        if found is None:
            raise Http404(_("Neither outbox, deliveries nor the inbox know this event."))
        if not foreign:
            found = replace(found, handlings=())
        if not own:
            found = replace(found, written=None)
        has_delivery = any(handling.delivery for handling in found.handlings)
        if not (own and foreign) and found.written is None and not has_delivery:
            raise PermissionDenied
        return found

    def payload(self, request: HttpRequest, event_id: uuid.UUID) -> HttpResponse:
        """The whole body as a file."""
        found = self._history(request, event_id)
        hidden = hidden_members(request, found.topic)
        if found.payload is None or self._download(found, hidden) is None:
            raise Http404
        # One character a byte, so that whatever is no text stays as it is.
        body = without_tokens(found.payload.decode("latin-1")).encode("latin-1")
        if hidden:
            body = without_private(body.decode(), hidden).encode()
        kind = "json" if is_json(body) else "bin"
        return HttpResponse(
            body,
            content_type="application/octet-stream",
            headers={
                "Content-Disposition": f'attachment; filename="{event_id}.{kind}"',
                "X-Content-Type-Options": "nosniff",
            },
        )

    def _download(self, found: History, hidden: Collection[str]) -> str | None:
        if found.payload is None or (hidden and not is_json(found.payload)):
            return None
        return self._url("event_payload", found.event_id)

    def _caused(self, request: HttpRequest, found: History) -> Caused | None:
        steps = found.timeline()
        if not steps:
            return None
        try:
            after = int(request.GET["after"]) if "after" in request.GET else None
        except ValueError as error:
            raise Http404 from error
        return caused_by(found.event_id, steps[0].at, after=after, using=_database())

    def _facts(self, found: History) -> Iterator[tuple[str, object]]:
        yield _("topic"), found.topic
        yield _("type"), visible(found.event_type)
        if found.tenant:
            yield _("tenant"), visible(found.tenant)
        yield _("key"), note(_("none: no order")) if found.key is None else code(found.key)
        if found.source:
            yield _("producer"), visible(found.source)
        for place in found.places:
            yield _("on the broker"), on_broker(place.topic, place.partition, place.offset)
        if found.cause_id:
            yield _("caused by"), self._cause(found.cause_id)
        for by, word, term in (
            (By.REQUEST_ID, _("request id"), found.request_id),
            (By.TRACE_ID, _("trace id"), found.trace_id),
        ):
            if term:
                url = self._url("events", q=term, by=by.value)
                yield word, format_html('<a href="{}">{}</a>', url, code(term))
        if found.payload is not None:
            yield _("size"), in_bytes(found.payload)
        elif found.headers:
            yield _("size"), _("no body")
        if found.written is not None:
            url = self._url("outboxmessage_change", found.written.id)
            yield _("outbox message"), format_html('<a href="{}">{}</a>', url, found.written.id)

    def _cause(self, text: str) -> SafeString:
        try:
            return event_link(self.site, uuid.UUID(text))
        except ValueError:
            return code(text)

    def _timeline(self, found: History) -> Iterator[dict[str, Any]]:
        steps = found.timeline()
        newest = max((step.at for step in steps if step.run and step.run.traceback), default=None)
        for step in steps:
            tone, word = _STEPS[step.what]
            yield {
                "at": moment(step.at),
                "later": "" if step is steps[0] else _later(step.at - steps[0].at),
                "badge": badge(word, tone),
                "detail": self._detail(step, found),
                "run": step.run and _run(step.run),
                "is_open": step.at == newest,
            }

    def _detail(self, step: Step, found: History) -> SafeString | None:
        if (handling := step.handling) is not None:
            replay = handling.replay and note(_("replay %s") % handling.replay)
            return stacked(
                visible(step.run.receiver if step.run else step.receiver),
                replay,
                self._waited_for(handling) if step.what == "held" else None,
            )
        written = found.written
        if step.what == "published":
            places = (place for place in found.places if place.at == step.at)
            return stacked(*(on_broker(p.topic, p.partition, p.offset) for p in places))
        if written is None or written.withheld is None or step.what == "written":
            return None
        link = format_html(
            '<a href="{}">{}</a>',
            self._url("withheldmessage_change", written.id),
            capfirst(WithheldMessage._meta.verbose_name),
        )
        said = written.withheld.reason if step.what == "discarded" else written.withheld.error
        return stacked(link, note(visible(said)))

    def _waited_for(self, handling: Handling) -> SafeString | None:
        kept = handling.delivery
        if kept is None or kept.waited_for is None:
            return None
        url = self._url("delivery_change", kept.waited_for)
        return format_html('<a href="{}">{}</a>', url, _("behind delivery %s") % kept.waited_for)

    def _handling(self, handling: Handling, found: History) -> dict[str, Any]:
        tone, word = _RESULTS[handling.result]
        kept = handling.delivery
        shown: dict[str, Any] = {
            "receiver": visible(handling.receiver),
            "group": handling.group,
            "is_registered": handling.is_registered,
            "badge": badge(word, tone),
            "handled_at": moment(handling.handled_at),
            "replay": handling.replay
            and format_html(
                '<a href="{}">{}</a>',
                self._url(f"{Replay._meta.model_name}_change", handling.replay),
                _("replay %s") % handling.replay,
            ),
            "delivery": None,
        }
        if kept is None:
            return shown
        query = {"receiver": handling.receiver, "state__exact": Delivery.State.RETRYING.value}
        if found.key:
            query["q"] = found.key
        count = f"{kept.holds}+" if kept.holds == MOST_COUNTED else str(kept.holds)
        return shown | {
            "delivery": self._url("delivery_change", kept.id),
            "attempts": kept.attempts,
            "is_running": kept.is_running,
            "next_at": moment(kept.next_attempt_at) if kept.state == "retrying" else None,
            "resolved_at": moment(kept.resolved_at),
            "reason": visible(kept.reason),
            "error": kept.state != "resolved"
            and stacked(kept.error_class, text_block(kept.error[:MAX_VALUE])),
            "held_behind": kept.held_behind and self._url("delivery_change", kept.held_behind),
            "holds": kept.holds
            and format_html(
                '<a href="{}">{}</a>',
                self._url("delivery_changelist", **query),
                ngettext("%s waits behind it", "%s wait behind it", kept.holds) % count,
            ),
            # Of a delivery older than the table of attempts, only the last is known.
            "traceback": not kept.runs and text_block(kept.traceback),
        }


def _database() -> str:
    return router.db_for_write(OutboxMessage)


def _verdict(found: History) -> SafeString:
    """How the event stands, by what is worst."""
    results = {handling.result: handling.receiver for handling in found.handlings}
    written = found.written
    if written is not None and written.withheld and written.withheld.state in WithheldMessage.OPEN:
        return badge(_("withheld"), "bad")
    for result in (Result.DEAD, Result.HELD, Result.RETRYING, Result.AHEAD):
        if result in results:
            tone, word = _RESULTS[result]
            return format_html("{} {}", badge(word, tone), visible(results[result]))
    if written is not None and written.withheld and written.withheld.state == "discarded":
        return badge(_("discarded"), "closed")
    if written is not None and written.published is None:
        return badge(_("waiting to be published"), "going")
    if Result.HANDLED in results:
        return badge(_("handled"), "good")
    return badge(_("published"), "good")


def _run(run: Run) -> dict[str, Any]:
    return {
        "number": run.number,
        "duration": None if run.duration is None else _seconds(run.duration),
        "error_class": run.error_class,
        "error": text_block(run.error),
        "traceback": text_block(run.traceback),
    }


def _seconds(seconds: float) -> str:
    if seconds < 0.001:
        return _("less than 1 ms")
    if seconds < 1:
        return _("%s ms") % f"{seconds * 1000:.0f}"
    return _("%s s") % (f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}")


def _later(time: timedelta) -> str:
    seconds = time.total_seconds()
    if seconds < 120:
        return f"+{_seconds(seconds)}"
    if seconds < 7200:
        return _("+%s min") % f"{seconds / 60:.0f}"
    if seconds < 172_800:
        return _("+%s h") % f"{seconds / 3600:.0f}"
    return _("+%s d") % f"{seconds / 86_400:.0f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changes:
    """What differs between ``old`` and ``new``, as the page shows it."""

    rows: list[tuple[str, object, object]]
    #: How many more there are.
    left_out: int
    is_creation: bool
    is_deletion: bool


def _changes(found: History, hidden: Collection[str]) -> _Changes | None:
    """None where the event has neither ``old`` nor ``new``."""
    if found.event is None:
        return None
    old, new = found.event.payload.get("old"), found.event.payload.get("new")
    if not isinstance(old, Mapping | None) or not isinstance(new, Mapping | None):
        return None
    if old is None and new is None:
        return None
    all_changes = changes(old, new)
    return _Changes(
        rows=list(_change_rows(all_changes[:MAX_CHANGES], hidden)),
        left_out=max(len(all_changes) - MAX_CHANGES, 0),
        is_creation=old is None,
        is_deletion=new is None,
    )


def _change_rows(
    shown: Iterable[Change], hidden: Collection[str]
) -> Iterator[tuple[str, object, object]]:
    for change in shown:
        name = visible(change.name[:MAX_VALUE])
        if change.name in hidden:
            yield name, note(_("masked")), note(_("masked"))
        else:
            yield name, _value(change.old, hidden), _value(change.new, hidden)


def _value(value: Any, hidden: Collection[str]) -> str | SafeString:
    if value is MISSING:
        return ""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        return note(_("nested too deeply to be shown here"))
    text = without_private(text[: MAX_VALUE + 1], hidden)
    return visible(text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…")
