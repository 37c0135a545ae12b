"""``erase_events``: erase what is kept of a tenant or a key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from folio_events.exceptions import InvalidStateError
from folio_events.operations.erasure import erase_events


class Command(BaseCommand):
    help = "Erase the events of a tenant, or of a topic and key, from all tables; for good."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", help="all of this tenant")
        parser.add_argument("--topic", help="logical topic; with --key, or with --tenant")
        parser.add_argument("--key", help="key of the events in that topic")
        parser.add_argument("--reason", default="", help="why; goes to Django's log")
        parser.add_argument("--dry-run", action="store_true", help="only count")
        parser.add_argument(
            "--discard-open",
            action="store_true",
            help="erase what is unpublished, open or unread too: no receiver gets it",
        )
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help="database alias",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        names = ("tenant", "topic", "key", "reason", "dry_run", "discard_open")
        try:
            done = erase_events(
                **{name: options[name] for name in names}, using=options["database"]
            )
        except (ValueError, InvalidStateError) as error:
            raise CommandError(str(error)) from error
        said = "to erase" if options["dry_run"] else "erased"
        for name, count in asdict(done).items():
            self.stdout.write(f"{name.replace('_', ' ')}: {count} {said}")
        if options["dry_run"] and done.is_open and not options["discard_open"]:
            text = "Refused without --discard-open: some are unpublished, open or unread."
            self.stderr.write(self.style.WARNING(text))
