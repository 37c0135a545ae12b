"""``events_status``: how the delivery fares, on one screen or as JSON."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, Error, connections
from django.utils import timezone

from folio_events.management.command import EventsCommand
from folio_events.monitoring.blockers import Session
from folio_events.monitoring.overview import Finding, Level, Overview, Thresholds, judge, overview

#: Lines of one section.
_MOST = 10
_CLEAR = "\x1b[H\x1b[2J"
_OPTIONS = {
    "degraded_age": "seconds that the oldest unpublished message may wait",
    "failing_age": "the same, for exit code 2",
    "degraded_lag": "records that a group may be behind in a partition",
    "failing_lag": "the same, for exit code 2",
    "degraded_overdue": "overdue events",
    "failing_overdue": "the same, for exit code 2",
}


class Command(EventsCommand):
    help = (
        "Show what waits, what failed, who is behind and who holds the relay back. "
        "Exit code: 0 all is well, 1 degraded, 2 failing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="for machines")
        parser.add_argument(
            "--watch", type=float, nargs="?", const=2.0, metavar="SECONDS", help="until Ctrl-C"
        )
        parser.add_argument(
            "--no-broker", action="store_true", help="ask the database only: quick, without lags"
        )
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help="database alias",
        )
        defaults = asdict(Thresholds())
        for name, text in _OPTIONS.items():
            default = defaults[name]
            said = "never" if default is None else f"{default:g}"
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=float,
                default=default,
                metavar="N",
                help=f"{text} (default {said})",
            )

    def handle(self, *_args: Any, **options: Any) -> None:
        limits = Thresholds(**{name: options[name] for name in _OPTIONS})
        if options["watch"]:
            with contextlib.suppress(KeyboardInterrupt):
                self._watch(limits, options)
            return
        screen, level = self._look(limits, options)
        self.stdout.write(screen)
        if level:
            raise CommandError(level.name.lower(), returncode=int(level))

    def _watch(self, limits: Thresholds, options: dict[str, Any]) -> None:
        clear = _CLEAR if self.stdout.isatty() and not options["json"] else ""
        while True:
            screen, _level = self._look(limits, options)
            self.stdout.write(clear + screen)
            time.sleep(options["watch"])

    def _look(self, limits: Thresholds, options: dict[str, Any]) -> tuple[str, Level]:
        using = options["database"]
        try:
            seen = overview(ask_broker=not options["no_broker"], using=using)
        except Error as error:
            # A lost connection is opened again by the next look.
            connections[using].close_if_unusable_or_obsolete()
            text = f"database {using!r} cannot be read: {str(error).strip()}"
            lost = Finding(level=Level.FAILING, text=text)
            if options["json"]:
                state = {"level": "failing", "findings": [text], "database": using}
                return json.dumps(state), lost.level
            return "\n".join(self._verdict([lost])), lost.level
        findings = judge(seen, limits)
        screen = _as_json(seen, findings) if options["json"] else self._screen(seen, findings)
        return screen, max((finding.level for finding in findings), default=Level.OK)

    def _screen(self, seen: Overview, findings: Iterable[Finding]) -> str:
        # Each section is a title and its lines; one without lines is left out.
        sections = [
            ("", self._verdict(findings)),
            ("Outbox", _outbox(seen)),
            ("Relay", _relay(seen)),
            ("Groups", _groups(seen)),
            ("Stopped", _stopped(seen)),
            ("Receivers", _receivers(seen)),
            ("Overdue", _overdue(seen)),
        ]
        shown = []
        for title, lines in sections:
            listed = list(lines)
            if listed:
                heading = [self.style.MIGRATE_HEADING(title)] if title else []
                shown.append("\n".join([*heading, *listed]))
        return "\n\n".join(shown)

    def _verdict(self, findings: Iterable[Finding]) -> Iterator[str]:
        colours = {Level.DEGRADED: self.style.WARNING, Level.FAILING: self.style.ERROR}
        listed = list(findings)
        if not listed:
            yield self.style.SUCCESS("ok")
        for finding in listed:
            yield colours[finding.level](f"{finding.level.name.lower()}: {finding.text}")


def _outbox(seen: Overview) -> Iterator[str]:
    now = seen.status
    yield f"  waiting     {now.waiting:,}"
    if now.waiting:
        yield f"  oldest      {_duration(now.oldest_age)}"
    for state, count in sorted(now.withheld.items()):
        yield f"  withheld    {count:,} {state}"
    for fault, count in sorted(now.orphans.items()):
        yield f"  orphans     {count:,} {fault}"


def _relay(seen: Overview) -> Iterator[str]:
    relay = seen.relay
    at = "has not run yet" if relay.position is None else f"at {relay.position} of {relay.last_id}"
    yield f"  position    {at}"
    if relay.relay:
        yield f"  publishing  {_session(relay.relay)}"
    if relay.oldest_gap:
        first, last = relay.oldest_gap
        yield f"  gaps        {relay.gaps:,}, the lowest {first}-{last}"
    if relay.holder:
        yield f"  held back   by {_session(relay.holder)}"
    for session in relay.writers[1 if relay.holder else 0 :][:_MOST]:
        yield f"  writing     {_session(session)}"


def _session(session: Session) -> str:
    who = f"pid {session.pid}" if session.pid else "prepared transaction"
    parts = [
        f"{who} {session.name}".rstrip(),
        session.user,
        f"{session.state} for {_duration(session.age)}",
        f"waits for {session.waits_for}" if session.waits_for else "",
        f"blocked by {', '.join(map(str, session.blocked_by))}" if session.blocked_by else "",
        session.statement,
    ]
    return ", ".join(filter(None, parts))


def _groups(seen: Overview) -> Iterator[str]:
    if seen.broker_error:
        yield f"  the broker does not answer: {seen.broker_error}"
    places = sorted(seen.positions, key=lambda place: -(place.lag or 0))
    for place in places[:_MOST]:
        lag = "?" if place.lag is None else f"{place.lag:,}"
        at = "not begun" if place.offset is None else f"at {place.offset}"
        yield f"  {place.group}  {place.topic}/{place.partition}  {at}  lag {lag}"
    if len(places) > _MOST:
        yield f"  and {len(places) - _MOST} partitions with no more lag than these"


def _stopped(seen: Overview) -> Iterator[str]:
    now = timezone.now()
    for place in seen.stopped[:_MOST]:
        age = _duration((now - place.since).total_seconds())
        yield (
            f"  {age}  {place.group}  {place.topic}/{place.partition}  {place.receiver} waits for "
            f"delivery {place.delivery}, {', '.join(filter(None, (place.state, place.error)))}"
        )
    if len(seen.stopped) > _MOST:
        yield f"  and {len(seen.stopped) - _MOST} stopped later"


def _receivers(seen: Overview) -> Iterator[str]:
    now = seen.status
    names = {name for name, _ in now.deliveries} | now.open_breakers
    names |= {name for name, failures in now.failures.items() if failures}
    for name in sorted(names):
        parts = [
            f"{now.deliveries[name, state]:,} {state}"
            for state in ("retrying", "dead")
            if (name, state) in now.deliveries
        ]
        if name in now.open_breakers:
            parts.append(f"breaker open after {now.failures.get(name, 0)} failures")
        elif now.failures.get(name):
            parts.append(f"failed on {now.failures[name]} in a row")
        yield f"  {name}  {', '.join(parts)}"


def _overdue(seen: Overview) -> Iterator[str]:
    now = timezone.now()
    for event in seen.overdue[:_MOST]:
        parts = [
            event.tenant,
            f"{event.topic} {event.type}".rstrip(),
            "" if event.key is None else f"key {event.key}",
            event.receiver,
            event.error,
        ]
        age = _duration((now - event.since).total_seconds())
        yield f"  {age}  {event.stage}  {', '.join(filter(None, parts))}"
    if len(seen.overdue) > _MOST:
        yield f"  and {len(seen.overdue) - _MOST} younger ones"


def _as_json(seen: Overview, findings: Iterable[Finding]) -> str:
    listed = list(findings)
    state = {
        "level": max((finding.level for finding in listed), default=Level.OK).name.lower(),
        "findings": [finding.text for finding in listed],
        **asdict(seen),
    }
    status = state["status"]
    status["open_breakers"] = sorted(status["open_breakers"])
    status["deliveries"] = [
        {"receiver": receiver, "state": word, "count": count}
        for (receiver, word), count in status["deliveries"].items()
    ]
    return json.dumps(state, default=str)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.0f} h"
