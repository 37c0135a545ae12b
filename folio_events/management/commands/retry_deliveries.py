"""``retry_deliveries``: run deliveries whose time has come."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import CommandError, CommandParser

from folio_events import deliveries
from folio_events.management.command import EventsCommand
from folio_events.management.database_option import add_database
from folio_events.management.progress import Progress
from folio_events.models import Delivery
from folio_events.redelivery import retry_due


class Command(EventsCommand):
    help = "Run the deliveries whose time has come; with --id, first have those run now."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--id",
            type=int,
            action="append",
            help="of a delivery, dead or retrying: run it now; may be repeated",
        )
        parser.add_argument(
            "--receiver",
            action="append",
            help="name of a receiver: only its deliveries; may be repeated",
        )
        parser.add_argument(
            "--limit", type=int, metavar="N", help="most deliveries (default RETRY_BATCH_SIZE)"
        )
        parser.add_argument(
            "--rate", type=float, metavar="N", help="most deliveries a second, on the average"
        )
        add_database(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        using, rate = options["database"], options["rate"]
        if rate is not None and not rate > 0:
            raise CommandError(f"--rate must be above 0, not {rate}.")
        if options["id"]:
            self._make_due(set(options["id"]), using)
        began, run = time.monotonic(), 0
        with Progress(self.stderr, options["limit"], "deliveries") as bar:

            def tell(count: int) -> None:
                nonlocal run
                run += count
                bar.advance(count)
                if rate is not None:
                    time.sleep(max(run / rate - (time.monotonic() - began), 0))

            result = retry_due(
                receivers=options["receiver"], limit=options["limit"], told=tell, using=using
            )
        self.stdout.write(f"resolved {result.resolved}, failed {result.failed}")

    def _make_due(self, ids: set[int], using: str) -> None:
        known = Delivery.objects.using(using).filter(pk__in=ids).values_list("pk", flat=True)
        if unknown := sorted(ids - set(known)):
            raise CommandError(
                f"No such delivery: {', '.join(map(str, unknown))}. Nothing was run."
            )
        deliveries.retry(ids, using=using)
