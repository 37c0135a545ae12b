"""``republish_events``: have the relay publish outbox rows again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from folio_events.management.command import EventsCommand
from folio_events.management.database_option import add_database
from folio_events.management.moments import FORM, moment
from folio_events.operations.republishing import republish


class Command(EventsCommand):
    help = "Have the relay publish messages of a topic again, which the broker has lost."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--topic", required=True, help="such as library.book")
        parser.add_argument(
            "--since",
            type=moment,
            required=True,
            metavar="MOMENT",
            help=f"published then or later; {FORM}",
        )
        parser.add_argument(
            "--reason", default="", help="why; goes to Django's log; needed unless it is a dry run"
        )
        parser.add_argument("--dry-run", action="store_true", help="only count")
        add_database(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        names = ("reason", "dry_run")
        try:
            count = republish(
                options["topic"],
                options["since"],
                using=options["database"],
                **{name: options[name] for name in names},
            )
        except ValueError as error:
            raise CommandError(str(error)) from error
        if options["dry_run"]:
            self.stdout.write(f"{count} messages would be published again")
        else:
            self.stdout.write(f"{count} messages are published again by the relay")
