"""``erase_events``: erase what is kept of a tenant or a key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser

from folio_events.management.command import EventsCommand
from folio_events.management.database_option import add_database
from folio_events.operations.erasure import erase_events


class Command(EventsCommand):
    help = "Erase the events of a tenant, or of a topic and key, from all tables; for good."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--tenant", help="whose events: all of them, or those of --topic and --key"
        )
        parser.add_argument("--topic", help="such as library.book; needs --key or --tenant")
        parser.add_argument("--key", help="key of the events in --topic")
        parser.add_argument(
            "--reason", default="", help="why; goes to Django's log; needed unless it is a dry run"
        )
        parser.add_argument("--dry-run", action="store_true", help="only count")
        parser.add_argument(
            "--discard-open",
            action="store_true",
            help="erase what is unpublished, open or unread too: no receiver gets it",
        )
        add_database(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        names = ("tenant", "topic", "key", "reason", "dry_run", "discard_open")
        try:
            done = erase_events(
                **{name: options[name] for name in names}, using=options["database"]
            )
        except ValueError as error:
            raise CommandError(str(error)) from error
        said = "to erase" if options["dry_run"] else "erased"
        for name, count in asdict(done).items():
            self.stdout.write(f"{name.replace('_', ' ')}: {count} {said}")
        if options["dry_run"] and done.is_open and not options["discard_open"]:
            text = "Refused without --discard-open: some are unpublished, open or unread."
            self.stderr.write(self.style.WARNING(text))
