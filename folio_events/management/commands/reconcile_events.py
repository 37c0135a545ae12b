"""``reconcile_events``: compare projections with their sources, and repair what differs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser

from folio_events.exceptions import MissingTenantError
from folio_events.management.command import EventsCommand
from folio_events.management.progress import Progress
from folio_events.operations.reconcile import (
    Difference,
    Outcome,
    Reconciliation,
    reconcile,
    reconciliations,
)
from folio_events.tenants import tenant_context


class Command(EventsCommand):
    help = (
        "Compare rows with what was made of their events, and list each difference. Ends with "
        "exit code 1 while any is left."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", nargs="*", help="of a reconciliation (default all)")
        parser.add_argument(
            "--repair",
            action="store_true",
            help="mend what differs: publish the source rows again, or do what is declared",
        )
        parser.add_argument(
            "--grace",
            type=float,
            default=60.0,
            metavar="SECONDS",
            help="for which an event counts as on its way (default 60)",
        )
        parser.add_argument("--tenant", help="whose rows; needed where tenancy is on")
        parser.add_argument("--json", action="store_true", help="differences as JSON, one a line")

    def handle(self, *_args: Any, **options: Any) -> None:
        tenant = options["tenant"]
        try:
            with tenant_context(tenant) if tenant else nullcontext():
                declared = [reconciliations.get(name) for name in options["name"]]
                left = sum(self._run(one, options) for one in declared or reconciliations)
        except MissingTenantError as error:
            raise CommandError("Tenancy is on: name the tenant with --tenant.") from error
        if left:
            raise CommandError(f"{left} differences.", returncode=1)

    def _run(self, declared: Reconciliation, options: dict[str, Any]) -> int:
        name = declared.label()
        with Progress(self.stderr, None, "keys") as bar:
            outcome = reconcile(
                declared,
                repair=options["repair"],
                grace=options["grace"],
                found=lambda found: self._tell(name, found, as_json=options["json"]),
                told=bar.advance,
            )
        self._sum_up(name, outcome, as_json=options["json"])
        return outcome.left

    def _tell(self, name: str, found: Difference, *, as_json: bool) -> None:
        if as_json:
            fields = {
                column: {"expected": expected, "found": there}
                for column, (expected, there) in found.fields.items()
            }
            line = {"reconciliation": name, **asdict(found), "fields": fields}
            self.stdout.write(json.dumps(line, default=str))
            return
        what = ", ".join(
            f"{column} is {there!r}, not {expected!r}"
            for column, (expected, there) in found.fields.items()
        )
        row = "" if found.row is None or found.row == found.key else f" row {found.row}"
        moving = " (in flight)" if found.in_flight else ""
        self.stdout.write(
            f"{name}: {found.kind} {found.key}{row}{moving}{': ' if what else ''}{what}"
        )

    def _sum_up(self, name: str, outcome: Outcome, *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps({"reconciliation": name, "summary": asdict(outcome)}))
            return
        self.stdout.write(
            f"{name}: {outcome.compared:,} keys, {outcome.missing:,} missing, "
            f"{outcome.stale:,} stale, {outcome.extra:,} extra, {outcome.in_flight:,} in flight, "
            f"{outcome.repaired:,} repaired"
        )
