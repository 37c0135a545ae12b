"""``backfill_events``: the rows that models have already, as events."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import nullcontext
from typing import Any

from django.core.management.base import CommandError, CommandParser

from folio_events.declarations import ModelEvents, events
from folio_events.exceptions import MissingTenantError
from folio_events.management.command import EventsCommand
from folio_events.management.database_option import add_database
from folio_events.management.progress import Progress
from folio_events.management.shutdown import stop_on_signals
from folio_events.models import Backfill
from folio_events.operations import backfill
from folio_events.tenants import tenant_context


class Command(EventsCommand):
    help = (
        "Record an event for each row that models have already. Ctrl-C stops after the chunk in "
        "hand; --resume goes on from there, after a kill too."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model", nargs="*", help="label of a model, such as library.Book")
        parser.add_argument("--all", action="store_true", help="all registered models")
        parser.add_argument(
            "--type", default="REINDEX", choices=backfill.TYPES, help="event type (default REINDEX)"
        )
        parser.add_argument(
            "--filter",
            action="append",
            default=[],
            metavar="LOOKUP=VALUE",
            help="only such rows, such as title__startswith=A; may be repeated",
        )
        parser.add_argument("--since", metavar="PK", help="only rows with a higher primary key")
        parser.add_argument("--tenant", help="whose rows; needed where tenancy is on")
        parser.add_argument(
            "--every-row",
            action="store_true",
            help="take all rows for the tenant's, whatever they say",
        )
        parser.add_argument(
            "--keys-only",
            action="store_true",
            help="events with keys only, without the row in 'new'",
        )
        parser.add_argument("--rate", type=float, metavar="N", help="most events a second")
        parser.add_argument("--dry-run", action="store_true", help="only count the rows")
        parser.add_argument("--exact", action="store_true", help="with --dry-run: do not estimate")
        parser.add_argument(
            "--resume",
            type=uuid.UUID,
            metavar="JOB",
            help="go on with a job that was stopped or killed",
        )
        parser.add_argument(
            "--cancel", type=uuid.UUID, metavar="JOB", help="stop a job, wherever it runs"
        )
        parser.add_argument("--list", action="store_true", help="show the newest 20 jobs")
        parser.add_argument("--json", action="store_true", help="jobs as JSON, one a line")
        add_database(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        if options["rate"] is not None and options["rate"] <= 0:
            raise CommandError("--rate must be above 0.")
        tenant = options["tenant"]
        try:
            with tenant_context(tenant) if tenant else nullcontext():
                self._handle(options)
        except MissingTenantError as error:
            raise CommandError("Tenancy is on: name the tenant with --tenant.") from error

    def _handle(self, options: dict[str, Any]) -> None:
        using = options["database"]
        if options["list"]:
            jobs = list(Backfill.objects.using(using).order_by("-created_at")[:20])
            for job in jobs:
                self._tell(job, as_json=options["json"])
            if not jobs and not options["json"]:
                self.stdout.write("No back-fills.")
        elif options["cancel"]:
            was_running = backfill.cancel(options["cancel"], using=using)
            self.stdout.write("cancelled" if was_running else "it was not running")
        elif options["resume"]:
            self._run(backfill.resume(options["resume"], using=using), options)
        else:
            for declaration in self._declarations(options):
                if options["dry_run"]:
                    self._count(declaration, options)
                elif not self._run(self._start(declaration, options), options):
                    return

    def _declarations(self, options: dict[str, Any]) -> list[ModelEvents]:
        if bool(options["model"]) == options["all"]:
            raise CommandError("Name models, or give --all; or --resume, --cancel or --list.")
        return list(events) if options["all"] else [backfill.declared(m) for m in options["model"]]

    def _filters(self, options: dict[str, Any]) -> dict[str, str]:
        pairs = [text.partition("=") for text in options["filter"]]
        if wrong := [name for name, sign, _ in pairs if not sign]:
            raise CommandError(
                f"--filter is LOOKUP=VALUE, such as title__startswith=A, not {wrong[0]!r}."
            )
        return {name: value for name, _, value in pairs}

    def _count(self, declaration: ModelEvents, options: dict[str, Any]) -> None:
        count = backfill.count(
            declaration,
            filters=self._filters(options),
            since=options["since"],
            every_row=options["every_row"],
            exact=options["exact"],
            using=options["database"],
        )
        label = declaration.model._meta.label
        if options["json"]:
            self.stdout.write(json.dumps({"model": label, "rows": count}))
        else:
            self.stdout.write(f"{label}: {count:,} rows to {declaration.topic}")

    def _start(self, declaration: ModelEvents, options: dict[str, Any]) -> Backfill:
        job = backfill.start(
            declaration,
            kind=options["type"],
            filters=self._filters(options),
            since=options["since"],
            every_row=options["every_row"],
            keys_only=options["keys_only"],
            using=options["database"],
        )
        self.stderr.write(f"{job.model}: about {job.total:,} rows, back-fill {job.pk}")
        return job

    def _run(self, job: Backfill, options: dict[str, Any]) -> bool:
        """Work on a job; returns whether it was done."""
        stop = threading.Event()
        with (
            stop_on_signals(stop),
            Progress(self.stderr, job.total, "rows", done=job.passed) as bar,
        ):
            job = backfill.run(
                job,
                rate=options["rate"],
                stop=stop,
                told=bar.advance,
                held_up=lambda reason: self.stderr.write(f"waiting: {reason}"),
                using=options["database"],
            )
        self._tell(job, as_json=options["json"])
        if job.state == Backfill.State.RUNNING:
            self.stderr.write(f"Stopped. Go on with: manage.py backfill_events --resume {job.pk}")
        return job.state == Backfill.State.DONE

    def _tell(self, job: Backfill, *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(backfill.as_dict(job)))
            return
        whose = f" of {job.tenant}" if job.tenant else ""
        self.stdout.write(
            f"{job.pk} {job.model}{whose} as {job.event_type}: {job.state}, "
            f"{job.passed:,} rows passed, {job.events:,} events"
        )
