"""The dashboard: how the delivery fares, on one page that counts no large table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils import timezone
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from folio_events import counts, topics, wakeup
from folio_events.admin.charts import Chart, chart
from folio_events.admin.ledger import LedgerAdmin
from folio_events.admin.readable import badge, visible
from folio_events.conf import get_settings
from folio_events.models import (
    ConsumerOffset,
    Dashboard,
    DeadLetter,
    Delivery,
    Orphan,
    OutboxMessage,
    Process,
    ReceiverState,
    RelayCursor,
    WithheldMessage,
)
from folio_events.monitoring.blockers import relay_state
from folio_events.monitoring.broker_report import BrokerReport, broker_report
from folio_events.monitoring.catalog import catalogue
from folio_events.monitoring.lag import TenantLag, outbox_lag
from folio_events.monitoring.overdue import overdue
from folio_events.monitoring.overview import Level, Overview, judge, vanished
from folio_events.monitoring.positions import stopped_partitions
from folio_events.monitoring.status import status
from folio_events.processes import is_vanished
from folio_events.receivers import registry

#: What the pages show; who may not view one of them sees none of it.
SHOWN: tuple[type[Model], ...] = (
    OutboxMessage,
    WithheldMessage,
    Delivery,
    Orphan,
    RelayCursor,
    ConsumerOffset,
    ReceiverState,
    Process,
)
#: Rows of a table.
MOST = 50
#: Messages above which what waits is not told by tenant, since that would read them all.
_MOST_BY_TENANT = 10_000
#: Characters of an error.
_MOST_OF_ERROR = 120

_TONES: dict[str, str] = {
    Process.State.LISTENING: "good",
    Process.State.POLLING: "held",
    Process.State.STANDBY: "closed",
    Process.State.STALLED: "bad",
    Process.State.WAITING: "good",
    Process.State.WORKING: "going",
}
_LEVELS = {Level.DEGRADED: "degraded", Level.FAILING: "failing"}


def may_look(request: HttpRequest) -> bool:
    """Whether a user may view all that the dashboard shows."""
    return request.user.has_perms(
        [f"{model._meta.app_label}.view_{model._meta.model_name}" for model in SHOWN]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A number at the top of the page.

    Attributes:
        tone: "good", "held" or "bad", as the badges.
        word: The tone in words.
    """

    title: str
    number: int
    note: str
    address: str
    tone: str
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverRow:
    """How a receiver fares."""

    name: str
    group: str
    topic: str
    is_registered: bool
    breaker: SafeString
    failures: int
    retrying: int
    dead: int
    failed_address: str
    retrying_address: str
    dead_address: str
    chart: Chart


@dataclass(slots=True, kw_only=True)
class LagRow:
    """How far a group is in a topic; partitions are (number, offset, lag)."""

    group: str
    topic: str
    tenant: str
    lag: int | None
    moved_at: datetime | None
    partitions: list[tuple[int, int | None, int | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRow:
    """A process, and how it is shown."""

    process: Process
    state: SafeString
    is_vanished: bool
    age: float
    busy: float | None
    uptime: float
    partitions: int


@admin.register(Process)
class ProcessAdmin(LedgerAdmin):
    """Relays and consumers at work."""

    list_display = ("kind", "name", "host", "pid", "state_shown", "started_at", "heartbeat_at")
    list_display_links = None
    list_filter = ("kind", "state")
    ordering = ["kind", "name", "-heartbeat_at"]
    fields = (
        "kind", "name", "host", "pid", "state", "detail", "partitions", "records", "busy_since",
        "started_at", "heartbeat_at",
    )  # fmt: skip

    @admin.display(description=gettext_lazy("state"))
    def state_shown(self, process: Process) -> SafeString:
        return _state(process, timezone.now())


@admin.register(Dashboard)
class DashboardAdmin(LedgerAdmin):
    """The dashboard in the place of a list, and beside it the catalogue."""

    class Media:
        css = {"all": ["folio_events/dashboard.css"]}
        js = ["folio_events/dashboard.js"]

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return may_look(request)

    def get_urls(self) -> list[Any]:
        pages: list[tuple[str, Callable[..., HttpResponse], str]] = [
            ("", self.dashboard, "folio_events_dashboard_changelist"),
            ("catalogue/", self.catalogue, "folio_events_catalogue"),
        ]
        return [
            path(route, self.admin_site.admin_view(view), name=name) for route, view, name in pages
        ]

    def dashboard(self, request: HttpRequest) -> HttpResponse:
        """The page; with ``?part=1`` only what changes of it."""
        if not may_look(request):
            raise PermissionDenied
        using = router.db_for_read(OutboxMessage)
        context = self.page_context(request, _("Dashboard"))
        context |= _contents(using, self.list_link)
        name = "dashboard_part" if "part" in request.GET else "dashboard"
        response = TemplateResponse(request, f"folio_events/admin/{name}.html", context)
        response["Cache-Control"] = "no-store"
        return response

    def catalogue(self, request: HttpRequest) -> HttpResponse:
        """Which topics there are, who sends to them and who receives."""
        if not may_look(request):
            raise PermissionDenied
        context = self.page_context(request, _("Topics and receivers"))
        seen = catalogue(using=router.db_for_read(OutboxMessage))
        context["sampled"] = seen.sampled
        context["topics"] = [
            (topic, self.list_link(OutboxMessage, topic=topic.name)) for topic in seen.topics
        ]
        return TemplateResponse(request, "folio_events/admin/catalogue.html", context)


def _contents(using: str, address: Callable[..., str]) -> dict[str, Any]:
    report = broker_report(using=using)
    seen = Overview(
        database=using,
        status=status(using=using),
        relay=relay_state(using=using),
        positions=report.positions,
        overdue=overdue(unread=report.unread, using=using),
        stopped=stopped_partitions(using=using),
        broker_error=report.error,
        vanished=vanished(using=using),
    )
    now = timezone.now()
    hour = counts.last_hour(using=using)
    processes = list(_processes(using, now))
    rows = sorted(_lag_rows(report), key=lambda row: (-(row.lag or 0), row.group, row.topic))
    return {
        "now": now,
        "seen": seen,
        "relay": seen.relay,
        "findings": [(_LEVELS[finding.level], finding.text) for finding in judge(seen)],
        "tiles": list(_tiles(seen, processes, address)),
        "hour": chart(hour),
        "day": chart(counts.last_day(using=using)),
        "overdue": [
            (
                event,
                (now - event.since).total_seconds(),
                visible(event.key or ""),
                visible(event.error)[:_MOST_OF_ERROR],
            )
            for event in seen.overdue[:MOST]
        ],
        "overdue_more": max(len(seen.overdue) - MOST, 0),
        "receivers": list(_receivers(seen, hour, address)),
        "lag_rows": rows[:MOST],
        "lag_more": max(len(rows) - MOST, 0),
        "report": report,
        "report_age": (now - report.at).total_seconds() if report.at else None,
        "tenants": _tenants(report, using, seen.status.waiting),
        "processes": processes,
        "relays": [row for row in processes if row.process.kind != Process.Kind.CONSUMER],
    }


def _tiles(
    seen: Overview, processes: list[ProcessRow], address: Callable[..., str]
) -> Iterator[Tile]:
    now = seen.status
    alive = sum(not row.is_vanished for row in processes)
    vanished = len(processes) - alive
    by_state: defaultdict[str, int] = defaultdict(int)
    for (_receiver, state), count in now.deliveries.items():
        by_state[state] += count
    behind = sum(place.lag or 0 for place in seen.positions)
    oldest = _("oldest %.0f s") % now.oldest_age if now.waiting else _("nothing waits")
    lag_note = _("broker does not answer") if seen.broker_error else _("all groups")
    late = now.oldest_age >= 60
    yield _tile(_("Waiting"), now.waiting, oldest, address(OutboxMessage, progress="waiting"),
                "bad" if late else "good")  # fmt: skip
    yield _tile(_("Consumer lag"), behind, lag_note, "#lag",
                "held" if seen.broker_error or behind >= 10_000 else "good")  # fmt: skip
    yield _tile(_("Overdue"), len(seen.overdue), _("late events"), "#overdue",
                "bad" if seen.overdue else "good")  # fmt: skip
    yield _tile(_("Dead letters"), by_state["dead"], _("wait for a person"),
                address(DeadLetter), "bad" if by_state["dead"] else "good")  # fmt: skip
    yield _tile(_("Retrying"), by_state["retrying"], _("deliveries"),
                address(Delivery, state__exact="retrying"),
                "held" if by_state["retrying"] else "good")  # fmt: skip
    refused = now.withheld.get("refused", 0)
    following = now.withheld.get("waiting", 0)
    yield _tile(_("Withheld"), refused, _("refused, and %d behind") % following,
                address(WithheldMessage, state__exact="refused"),
                "bad" if refused else "good")  # fmt: skip
    orphans = sum(now.orphans.values())
    yield _tile(_("Orphans"), orphans, _("without an owner"),
                address(Orphan, state__exact="open"), "bad" if orphans else "good")  # fmt: skip
    yield _tile(_("Processes"), alive,
                _("%d vanished") % vanished if vanished else _("alive"), "#processes",
                "held" if vanished or not alive else "good")  # fmt: skip


def _tile(title: str, number: int, note: str, address: str, tone: str) -> Tile:
    words = {"good": _("fine"), "held": _("look at it"), "bad": _("act on it")}
    return Tile(title=title, number=number, note=note, address=address, tone=tone, word=words[tone])


def _receivers(
    seen: Overview, hour: counts.Series, address: Callable[..., str]
) -> Iterator[ReceiverRow]:
    now = seen.status
    known = {receiver.name: receiver for receiver in registry}
    names = {*known, *(name for name, _state in now.deliveries), *now.failures}
    names |= {name for outcome, name in hour.counts if outcome != "published"}
    open_ = now.deliveries

    def trouble(name: str) -> tuple[bool, int, int, str]:
        dead, retrying = open_.get((name, "dead"), 0), open_.get((name, "retrying"), 0)
        return name not in now.open_breakers, -dead, -retrying, name

    for name in sorted(names, key=trouble):
        receiver = known.get(name)
        failures = now.failures.get(name, 0)
        if name in now.open_breakers:
            breaker = badge(_("open"), "bad")
        elif failures:
            breaker = badge(_("closed, failing"), "held")
        else:
            breaker = badge(_("closed"), "good")
        yield ReceiverRow(
            name=name,
            group=receiver.group if receiver else "",
            topic=receiver.topic if receiver else "",
            is_registered=receiver is not None,
            breaker=breaker,
            failures=failures,
            retrying=open_.get((name, "retrying"), 0),
            dead=open_.get((name, "dead"), 0),
            failed_address=address(Delivery, receiver=name),
            retrying_address=address(Delivery, receiver=name, state__exact="retrying"),
            dead_address=address(Delivery, receiver=name, state__exact="dead"),
            chart=chart(hour, name),
        )


def _lag_rows(report: BrokerReport) -> Iterable[LagRow]:
    found: dict[tuple[str, str], LagRow] = {}
    for place in report.positions:
        parts = topics.parse_wire_topic(place.topic)
        row = found.setdefault(
            (place.group, place.topic),
            LagRow(
                group=place.group,
                topic=parts.topic,
                tenant=parts.tenant or "",
                lag=None,
                moved_at=None,
                partitions=[],
            ),
        )
        row.partitions.append((place.partition, place.offset, place.lag))
        if place.lag is not None:
            row.lag = (row.lag or 0) + place.lag
        if place.moved_at is not None:
            row.moved_at = max(row.moved_at or place.moved_at, place.moved_at)
    return found.values()


def _tenants(report: BrokerReport, using: str, waiting: int) -> list[tuple[str, int | None, int]]:
    """Tenant, how many of its messages wait in the outbox, and behind all groups; the most first."""
    if get_settings().TENANCY is None:
        return []
    is_exact = waiting < _MOST_BY_TENANT
    in_outbox: dict[str, TenantLag] = outbox_lag(using=using) if is_exact else {}
    behind: defaultdict[str, int] = defaultdict(int)
    for tenants in report.tenants.values():
        for tenant, count in tenants.items():
            behind[tenant] += count
    rows = [
        (
            tenant or _("(none)"),
            (in_outbox[tenant].messages if tenant in in_outbox else 0) if is_exact else None,
            behind.get(tenant, 0),
        )
        for tenant in {*in_outbox, *behind}
    ]
    return sorted(rows, key=lambda row: (-(row[1] or 0) - row[2], row[0]))[:MOST]


def _processes(using: str, now: datetime) -> Iterator[ProcessRow]:
    for process in Process.objects.using(using).order_by("kind", "name", "-heartbeat_at")[:MOST]:
        yield ProcessRow(
            process=process,
            state=_state(process, now),
            is_vanished=is_vanished(process, now),
            age=(now - process.heartbeat_at).total_seconds(),
            busy=(now - process.busy_since).total_seconds() if process.busy_since else None,
            uptime=(now - process.started_at).total_seconds(),
            partitions=sum(map(len, process.partitions.values())),
        )


def _state(process: Process, now: datetime) -> SafeString:
    if is_vanished(process, now):
        return badge(_("vanished"), "bad")
    tone = _TONES[process.state]
    if process.state == Process.State.POLLING and not _may_listen(process):
        tone = "good"
    return badge(process.get_state_display(), tone)


def _may_listen(process: Process) -> bool:
    # A relay tells of itself in the database whose outbox it reads.
    return wakeup.is_wanted(connections[process._state.db or DEFAULT_DB_ALIAS])
