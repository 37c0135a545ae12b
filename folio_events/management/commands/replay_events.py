"""``replay_events``: have receivers run past events again."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser

from folio_events.management.command import EventsCommand
from folio_events.management.database_option import add_database
from folio_events.management.moments import FORM, moment
from folio_events.management.progress import Progress
from folio_events.management.shutdown import stop_on_signals
from folio_events.models import Replay
from folio_events.operations.criteria import Criteria
from folio_events.operations.replay import (
    Count,
    cancel_replay,
    count_events,
    replay_events,
    replayed_receivers,
    resume_replay,
    warnings_about,
)
from folio_events.receivers import registry


class Command(EventsCommand):
    help = (
        "Have receivers run past events again; others, and the group's offsets, stay as they are."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        whom = parser.add_argument_group("whom")
        whom.add_argument("--receiver", action="append", default=[], help="name; may be repeated")
        whom.add_argument(
            "--all-receivers", action="store_true", help="all that use the --database"
        )
        which = parser.add_argument_group("which events; all of it must hold")
        which.add_argument(
            "--since", type=moment, metavar="MOMENT", help=f"published then or later; {FORM}"
        )
        which.add_argument(
            "--until", type=moment, metavar="MOMENT", help="published before; the same form"
        )
        which.add_argument(
            "--topic", help="such as library.book or library.*, or its name on the broker"
        )
        which.add_argument("--partition", type=int, metavar="N", help="of one topic")
        which.add_argument(
            "--from-offset",
            type=int,
            metavar="N",
            help="the first one; needs --topic and --partition",
        )
        which.add_argument(
            "--to-offset", type=int, metavar="N", help="the one after the last; needs the same"
        )
        which.add_argument("--event-id", type=uuid.UUID, action="append", help="may be repeated")
        which.add_argument(
            "--ids-file", type=Path, metavar="FILE", help="file with an event id in each line"
        )
        which.add_argument("--tenant", help="whose events")
        which.add_argument(
            "--type", action="append", help="event type, such as UPDATE; may be repeated"
        )
        how = parser.add_argument_group("how")
        how.add_argument(
            "--source",
            choices=["broker", "outbox"],
            help="where they are read (default the broker, where it still has them)",
        )
        how.add_argument("--rate", type=float, help="most deliveries made in a second")
        how.add_argument(
            "--reason", default="", help="why; kept with the replay; needed to run one"
        )
        how.add_argument("--dry-run", action="store_true", help="only count")
        how.add_argument("--json", action="store_true", help="the result as JSON")
        add_database(how)
        earlier = parser.add_argument_group("an earlier replay").add_mutually_exclusive_group()
        earlier.add_argument("--resume", type=int, metavar="N", help="go on with it")
        earlier.add_argument("--cancel", type=int, metavar="N", help="end it, discard what is open")

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            if options["cancel"] is not None:
                self._cancel(options)
            elif options["dry_run"]:
                self._count(options)
            else:
                self._run(options)
        except ValueError as error:
            raise CommandError(str(error)) from error

    def _criteria(self, options: dict[str, Any]) -> Criteria:
        ids = set(options["event_id"] or ())
        if options["ids_file"] is not None:
            ids |= set(_ids(options["ids_file"]))
        plain = ("since", "until", "topic", "partition", "from_offset", "to_offset", "tenant")
        return Criteria(
            event_ids=frozenset(ids) if ids or options["ids_file"] else None,
            types=frozenset(options["type"]) if options["type"] else None,
            **{name: options[name] for name in plain},
        )

    def _names(self, options: dict[str, Any]) -> list[str]:
        if options["all_receivers"]:
            return [r.name for r in registry if r.using == options["database"]]
        names: list[str] = options["receiver"]
        return names

    def _count(self, options: dict[str, Any]) -> None:
        with Progress(self.stderr, None, "messages") as bar:
            count = count_events(
                self._criteria(options),
                self._names(options),
                source=options["source"],
                advance=bar.advance,
            )
        if options["json"]:
            self._write_json(count)
            return
        for (topic, name), number in sorted(count.events.items()):
            self.stdout.write(f"{topic} {name}: {number} to run again")
        self.stdout.write(
            f"{count.deliveries} to run again of {count.passed} messages, {count.unreadable} "
            f"unreadable, from {count.source.label}"
        )
        self._warn(self._names(options))

    def _write_json(self, count: Count) -> None:
        events = [
            {"topic": topic, "receiver": name, "events": number}
            for (topic, name), number in sorted(count.events.items())
        ]
        said = {"source": count.source.value, "events": events, "deliveries": count.deliveries}
        self.stdout.write(
            json.dumps({**said, "passed": count.passed, "unreadable": count.unreadable})
        )

    def _run(self, options: dict[str, Any]) -> None:
        stop = threading.Event()
        shared = {"rate": options["rate"], "stop": stop}
        with stop_on_signals(stop), Progress(self.stderr, None, "messages") as bar:
            if options["resume"] is not None:
                done = resume_replay(
                    options["resume"], using=options["database"], advance=bar.advance, **shared
                )
            else:
                names = self._names(options)
                self._warn(names)
                done = replay_events(
                    self._criteria(options),
                    names,
                    reason=options["reason"],
                    source=options["source"],
                    advance=bar.advance,
                    started=self._tell_number,
                    **shared,
                )
        self._tell(done, as_json=options["json"])

    def _warn(self, names: list[str]) -> None:
        for said in warnings_about(replayed_receivers(names)):
            self.stderr.write(f"Warning: {said}")

    def _tell_number(self, replay: Replay) -> None:
        self.stderr.write(f"Replay {replay.pk} begins; after a kill: --resume {replay.pk}")

    def _tell(self, replay: Replay, *, as_json: bool) -> None:
        names = ("state", "source", "passed", "deliveries", "unreadable")
        if as_json:
            said = {"replay": replay.pk, **{name: getattr(replay, name) for name in names}}
            self.stdout.write(json.dumps(said))
            return
        self.stdout.write(
            f"Replay {replay.pk} is {replay.get_state_display()}: {replay.deliveries} deliveries of "
            f"{replay.passed} messages, {replay.unreadable} unreadable, from "
            f"{replay.get_source_display()}. The retry pass runs them."
        )
        if replay.state == Replay.State.RUNNING:
            self.stdout.write(f"It was stopped; --resume {replay.pk} goes on with it.")

    def _cancel(self, options: dict[str, Any]) -> None:
        reason = options["reason"] or "cancelled"
        count = cancel_replay(options["cancel"], reason=reason, using=options["database"])
        self.stdout.write(
            f"Replay {options['cancel']} is cancelled; {count} deliveries were discarded."
        )


def _ids(file: Path) -> Iterator[uuid.UUID]:
    try:
        words = file.read_text().split()
    except OSError as error:
        raise CommandError(f"--ids-file {file} cannot be read: {error.strerror}.") from error
    for word in words:
        try:
            yield uuid.UUID(word)
        except ValueError as error:
            raise CommandError(f"--ids-file {file}: {word!r} is no event id.") from error
