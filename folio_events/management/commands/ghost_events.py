"""``ghost_events``: what is on the broker and not in the outbox, after a restore."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from folio_events.management.command import EventsCommand
from folio_events.management.database_option import add_database
from folio_events.management.moments import FORM, moment
from folio_events.management.progress import Progress
from folio_events.operations.ghosts import find_ghosts, skip_ids


class Command(EventsCommand):
    help = (
        "List events that this project has published and its outbox does not have, as after a "
        "restore of the database."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--since",
            type=moment,
            required=True,
            metavar="MOMENT",
            help=f"some minutes before the moment that the database was restored to; {FORM}",
        )
        parser.add_argument(
            "--skip-ids",
            action="store_true",
            help="have the outbox go on behind their ids, so that none is used twice",
        )
        parser.add_argument("--json", action="store_true", help="the result as JSON")
        add_database(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        using = options["database"]
        with Progress(self.stderr, None, "messages") as bar:
            found = list(find_ghosts(options["since"], using=using, advance=bar.advance))
        passed = skip_ids(found, using=using) if options["skip_ids"] else None
        if options["json"]:
            listed = [asdict(ghost) for ghost in found]
            self.stdout.write(json.dumps({"ghosts": listed, "passed_over": passed}, default=str))
            return
        for ghost in sorted(found, key=lambda one: one.sequence):
            tenant = f" tenant={ghost.tenant}" if ghost.tenant else ""
            self.stdout.write(
                f"{ghost.topic}/{ghost.partition} offset={ghost.offset} {ghost.type} "
                f"key={ghost.key}{tenant} sequence={ghost.sequence} event={ghost.event_id}"
            )
        self.stdout.write(f"{len(found)} events are on the broker and not in the outbox")
        if passed is not None:
            self.stdout.write(f"The outbox goes on behind id {passed}.")
