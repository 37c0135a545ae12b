"""``reset_offsets``: move the offsets of a group that does not run."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from folio_events.exceptions import FolioEventsError
from folio_events.management.moments import moment
from folio_events.operations.offsets import Move, Target, reset_offsets


class Command(BaseCommand):
    help = "Move the offsets of a group that does not run, in its databases and on the broker."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--group", required=True, help="a group with receivers")
        to = parser.add_mutually_exclusive_group(required=True)
        to.add_argument("--to-earliest", action="store_const", const="earliest", dest="end")
        to.add_argument("--to-latest", action="store_const", const="latest", dest="end")
        to.add_argument("--to-time", type=moment, help="published then or later, ISO 8601")
        to.add_argument("--to-offset", type=int, help="the next one to be read")
        parser.add_argument(
            "--topic", help="logical, with * for any characters; or as on the broker"
        )
        parser.add_argument("--partition", type=int, action="append", help="may be repeated")
        parser.add_argument(
            "--unknown",
            action="store_true",
            help="only partitions of which no database has an offset, as after a restore",
        )
        parser.add_argument(
            "--again", action="store_true", help="run what has taken effect before again, too"
        )
        parser.add_argument("--reason", default="", help="why; goes to Django's log")
        parser.add_argument("--dry-run", action="store_true", help="only say what would move")
        parser.add_argument("--json", action="store_true", help="the result as JSON")

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            moves = reset_offsets(
                options["group"],
                Target(end=options["end"], time=options["to_time"], offset=options["to_offset"]),
                topic=options["topic"],
                partitions=options["partition"],
                unknown=options["unknown"],
                again=options["again"],
                reason=options["reason"],
                dry_run=options["dry_run"],
            )
        except (ValueError, FolioEventsError) as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps([self._as_json(move) for move in moves]))
            return
        for move in moves:
            self.stdout.write(self._line(move))
        said = "to move" if options["dry_run"] else "moved"
        self.stdout.write(f"{len(moves)} positions {said}")

    @staticmethod
    def _as_json(move: Move) -> dict[str, object]:
        names = ("database", "old", "new", "low", "high", "between")
        return {**move.place._asdict(), **{name: getattr(move, name) for name in names}}

    @staticmethod
    def _line(move: Move) -> str:
        where = f"{move.place.topic}/{move.place.partition}"
        lane = f"database {move.database}" if move.database else "no transaction"
        if move.old is None:
            return f"{where} ({lane}): nowhere -> {move.new}, {move.high - move.new} to read"
        count = abs(move.between)
        what = "to read again" if move.between > 0 else "passed over"
        return f"{where} ({lane}): {move.old} -> {move.new}, {count} {what if count else 'between'}"
