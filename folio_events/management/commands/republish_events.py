"""``republish_events``: have the relay publish outbox rows again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from folio_events.exceptions import FolioEventsError
from folio_events.management.moments import moment
from folio_events.operations.republishing import republish


class Command(BaseCommand):
    help = "Have the relay publish messages of a topic again, which the broker has lost."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--topic", required=True, help="logical topic")
        parser.add_argument(
            "--since", type=moment, required=True, help="published then or later, ISO 8601"
        )
        parser.add_argument("--reason", default="", help="why; goes to Django's log")
        parser.add_argument("--dry-run", action="store_true", help="only count")
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help="database alias",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        names = ("reason", "dry_run")
        try:
            count = republish(
                options["topic"],
                options["since"],
                using=options["database"],
                **{name: options[name] for name in names},
            )
        except (ValueError, FolioEventsError) as error:
            raise CommandError(str(error)) from error
        if options["dry_run"]:
            self.stdout.write(f"{count} messages would be published again")
        else:
            self.stdout.write(f"{count} messages are published again by the relay")
