"""``retry_deliveries``: run deliveries whose time has come."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS

from folio_events import deliveries
from folio_events.exceptions import InvalidStateError
from folio_events.models import Delivery
from folio_events.redelivery import retry_due


class Command(BaseCommand):
    help = "Run the deliveries whose time has come; with --id, first have those run now."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--id", type=int, action="append", help="of a delivery, dead or retrying"
        )
        parser.add_argument("--limit", type=int, help="most deliveries")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="database alias")

    def handle(self, *_args: Any, **options: Any) -> None:
        using = options["database"]
        if options["id"]:
            self._make_due(set(options["id"]), using)
        result = retry_due(using=using, limit=options["limit"])
        self.stdout.write(f"resolved {result.resolved}, failed {result.failed}")

    def _make_due(self, ids: set[int], using: str) -> None:
        known = Delivery.objects.using(using).filter(pk__in=ids).values_list("pk", flat=True)
        if unknown := sorted(ids - set(known)):
            raise CommandError(
                f"No such delivery: {', '.join(map(str, unknown))}. Nothing was run."
            )
        try:
            deliveries.retry(ids, using=using)
        except InvalidStateError as error:
            raise CommandError(str(error)) from error
