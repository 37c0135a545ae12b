"""``reset_offsets``: move the offsets of a group that does not run."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandError, CommandParser

from folio_events.management.command import EventsCommand
from folio_events.management.moments import FORM, moment
from folio_events.operations.offsets import Move, Target, reset_offsets


class Command(EventsCommand):
    help = "Move the offsets of a group that does not run, in its databases and on the broker."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--group", required=True, help="whose offsets; its consumers have to be stopped"
        )
        to = parser.add_mutually_exclusive_group(required=True)
        to.add_argument(
            "--to-earliest",
            action="store_const",
            const="earliest",
            dest="end",
            help="the first message that the broker still has",
        )
        to.add_argument(
            "--to-latest",
            action="store_const",
            const="latest",
            dest="end",
            help="behind the last message: pass over what is unread",
        )
        to.add_argument(
            "--to-time",
            type=moment,
            metavar="MOMENT",
            help=f"the first message published then or later; {FORM}",
        )
        to.add_argument(
            "--to-offset", type=int, metavar="N", help="this offset is the next to be read"
        )
        parser.add_argument(
            "--topic",
            help="only this one, such as library.book or library.*, or its name on the broker",
        )
        parser.add_argument(
            "--partition",
            type=int,
            metavar="N",
            action="append",
            help="only this one; may be repeated",
        )
        parser.add_argument(
            "--unknown",
            action="store_true",
            help="only partitions of which no database has an offset, as after a restore",
        )
        parser.add_argument(
            "--again",
            action="store_true",
            help="have receivers run again what has taken effect in them before",
        )
        parser.add_argument(
            "--reason", default="", help="why; goes to Django's log; needed unless it is a dry run"
        )
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
        except ValueError as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps([self._as_json(move) for move in moves]))
            return
        for move in moves:
            self.stdout.write(self._line(move))
        count = sum(move.new != move.old for move in moves)
        said = "to move" if options["dry_run"] else "moved"
        rest = f", {len(moves) - count} stay" if count < len(moves) else ""
        self.stdout.write(f"{count} positions {said}{rest}")

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
        if move.new == move.old:
            return f"{where} ({lane}): stays at {move.new}"
        count = abs(move.between)
        what = "to read again" if move.between > 0 else "passed over"
        return f"{where} ({lane}): {move.old} -> {move.new}, {count} {what if count else 'between'}"
