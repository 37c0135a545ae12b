"""``purge_events``: delete what is settled and past its retention."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS, connections
from django.template.defaultfilters import filesizeformat

from folio_events.management.command import EventsCommand
from folio_events.management.progress import Progress
from folio_events.operations.retention import purge, table_sizes


class Command(EventsCommand):
    help = "Delete published messages, inbox entries and settled deliveries past their retention."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only count")
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help="database alias",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        using, dry_run = options["database"], options["dry_run"]
        for table, size in sorted(table_sizes(using=using).items()):
            self.stdout.write(f"{table}: {filesizeformat(size)}")
        with Progress(self.stderr, None, "rows") as bar:
            done = purge(dry_run=dry_run, told=bar.advance, using=using)
        said = "to delete" if dry_run else "deleted"
        for table, count in asdict(done).items():
            self.stdout.write(f"{table.replace('_', ' ')}: {count} {said}")
