"""``purge_events``: delete what is settled and past its retention."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import DEFAULT_DB_ALIAS

from folio_events.retention import purge


class Command(BaseCommand):
    help = "Delete published messages, inbox entries and settled deliveries past their retention."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="database alias")

    def handle(self, *_args: Any, **options: Any) -> None:
        done = purge(using=options["database"])
        for table, count in asdict(done).items():
            self.stdout.write(f"{table.replace('_', ' ')}: {count} deleted")
