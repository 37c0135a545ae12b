"""``dead_letters``: look at what failed for good, and settle it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.core.serializers.json import DjangoJSONEncoder

from folio_events import deliveries, withheld
from folio_events.management.command import EventsCommand
from folio_events.management.database_option import add_database
from folio_events.management.moments import FORM, moment
from folio_events.management.progress import Progress
from folio_events.management.shutdown import stop_on_signals
from folio_events.masking import private_members, without_private, without_secrets, without_tokens
from folio_events.models import BulkAction, Delivery, WithheldMessage
from folio_events.operations import bulk_actions, dead_letters, editing
from folio_events.operations.dead_letters import Selection
from folio_events.schemas import Comparison
from folio_events.topics import parse_wire_topic

Action, Subject, State = BulkAction.Action, BulkAction.Subject, BulkAction.State
#: Seconds between two looks at a bulk action that may not go on yet.
_PAUSE = 0.5
_FILTERS = ("receiver", "topic", "tenant", "event_type", "error", "fingerprint", "since", "until")
_COLUMNS = (
    "id", "state", "receiver", "topic", "partition", "offset", "tenant", "event_type", "event_id",
    "key", "attempts", "error_class", "fingerprint", "created_at", "last_attempt_at", "edited_at",
)  # fmt: skip


def _filters(parser: CommandParser, *, deliveries_only: bool = True) -> None:
    which = parser.add_argument_group("which; all of it must hold")
    which.add_argument("--topic", help="such as library.book, or its name on the broker")
    which.add_argument("--tenant", help="whose events")
    which.add_argument(
        "--since", type=moment, metavar="MOMENT", help=f"failed then or later; {FORM}"
    )
    which.add_argument(
        "--until", type=moment, metavar="MOMENT", help="failed before; the same form"
    )
    if deliveries_only:
        which.add_argument("--receiver", help="name of a receiver")
        which.add_argument("--type", dest="event_type", help="event type, such as UPDATE")
        which.add_argument("--error", help="class of the error, such as builtins.ValueError")
        which.add_argument("--fingerprint", help="first word of a line of the part groups")


def _shared(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    add_database(parser)


class Command(EventsCommand):
    help = "Look at dead letters and at messages that the broker refused, and settle them."

    def add_arguments(self, parser: CommandParser) -> None:
        parts = parser.add_subparsers(
            dest="part", required=True, metavar="PART", help="PART --help tells its options"
        )
        groups = parts.add_parser("groups", help="what failed, by cause")
        _filters(groups)
        groups.add_argument("--limit", type=int, default=100, help="most groups")
        listed = parts.add_parser("list", help="dead letters, the newest first")
        _filters(listed)
        listed.add_argument("--limit", type=int, default=100, help="most dead letters")
        show = parts.add_parser("show", help="one delivery, and what waits behind it")
        show.add_argument("id", type=int, help="of the delivery, as list shows it")
        show.add_argument(
            "--write-payload", type=Path, metavar="FILE", help="write the payload there, unmasked"
        )
        for name, said in (
            ("retry", "have dead letters run again"),
            ("discard", "close dead letters, or with --withheld refused messages"),
            ("release", "have refused messages tried again"),
        ):
            part = parts.add_parser(name, help=said)
            part.add_argument(
                "id", type=int, nargs="*", help="settle these; without an id all that match"
            )
            _filters(part, deliveries_only=name != "release")
            if name == "discard":
                part.add_argument(
                    "--withheld", action="store_true", help="refused messages, no dead letters"
                )
            part.add_argument(
                "--all", action="store_true", help="needed where neither ids nor filters are given"
            )
            part.add_argument("--reason", default="", help="why; goes to Django's log")
            part.add_argument("--rate", type=float, help="most rows a second")
            part.add_argument(
                "--background",
                action="store_true",
                help="only start it; the retry passes settle the rows",
            )
            part.add_argument("--dry-run", action="store_true", help="only count")
            _shared(part)
        edit = parts.add_parser("edit", help="give a delivery another message")
        edit.add_argument("id", type=int, help="of the delivery")
        edit.add_argument("--payload", type=Path, metavar="FILE", help="file with the new payload")
        edit.add_argument("--key", help="the new key")
        edit.add_argument(
            "--header",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="new value of a header; may be repeated",
        )
        edit.add_argument("--retry", action="store_true", help="and have it run again")
        edit.add_argument(
            "--dry-run", action="store_true", help="only say what would change, and whether it fits"
        )
        restore = parts.add_parser("restore", help="give a delivery its original message back")
        restore.add_argument("id", type=int, help="of the delivery")
        for part in (edit, restore):
            part.add_argument("--reason", default="", help="why; goes to Django's log")
        cancel = parts.add_parser("cancel", help="end a bulk action")
        cancel.add_argument("id", type=int, help="of the bulk action")
        cancel.add_argument("--reason", default="", help="why; goes to Django's log")
        for part in (groups, listed, show, edit, restore, cancel):
            _shared(part)

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['part']}")(options)
        except (ValueError, OSError) as error:
            raise CommandError(str(error)) from error

    def _groups(self, options: dict[str, Any]) -> None:
        using, selection = options["database"], _selection(options)
        found = dead_letters.groups(selection, using=using, limit=options["limit"])
        refused = dead_letters.refused_groups(using=using, limit=options["limit"])
        if options["json"]:
            causes = [{**asdict(one), "error": without_tokens(one.error)} for one in found]
            self._write_json({"groups": causes, "refused": [asdict(one) for one in refused]})
            return
        for group in found:
            first_line = without_tokens(group.error).strip().partition("\n")[0]
            self.stdout.write(
                f"{group.fingerprint} {group.receiver}: {group.dead} dead, {group.retrying} "
                f"retrying, {group.behind} behind; last {group.last_at:%Y-%m-%d %H:%M:%S}\n"
                f"    {group.error_class}: {first_line[:200]}"
            )
        for one in refused:
            self.stdout.write(
                f"{one.topic}: {one.refused} refused by the broker, {one.waiting} behind; "
                f"last {one.last_at:%Y-%m-%d %H:%M:%S}\n    {one.error[:200]}"
            )
        if not found and not refused:
            self.stdout.write("No failed delivery is open.")

    def _list(self, options: dict[str, Any]) -> None:
        rows = _selection(options).dead(using=options["database"]).order_by("-id")
        found: list[dict[str, Any]] = list(rows.values(*_COLUMNS)[: options["limit"]])
        if options["json"]:
            self._write_json(found)
            return
        for row in found:
            self.stdout.write(
                "{id} {receiver} {topic}/{partition}@{offset} {event_id} {error_class} "
                "{fingerprint}".format_map(row)
            )
        if not found:
            self.stdout.write("No dead letters.")

    def _show(self, options: dict[str, Any]) -> None:
        row = _delivery(options)
        record = deliveries.record_of(row)
        if options["write_payload"] is not None:
            options["write_payload"].write_bytes(record.value or b"")
        form, text = editing.as_text(record.value)
        names = private_members(parse_wire_topic(row.topic).topic)
        said: dict[str, Any] = {
            **{name: getattr(row, name) for name in _COLUMNS},
            "error": without_tokens(row.error),
            "traceback": without_tokens(row.traceback),
            "waiting": dead_letters.followers(row)[: dead_letters.MOST_COUNTED].count(),
            "headers": [
                [name, None if value is None else value.decode("utf-8", "backslashreplace")]
                for name, value in without_secrets(record.headers)
            ],
            "payload_form": form,
            "payload": without_tokens(without_private(text, names)),
        }
        comparison = editing.compare(row, hidden=names)
        if options["json"]:
            told = None if comparison is None else asdict(comparison)
            self._write_json({**said, "comparison": told})
            return
        for name, value in said.items():
            if name == "headers":
                for header, content in value:
                    self.stdout.write(f"header {header}: {'' if content is None else content}")
            elif value not in (None, "") and (name, value) != ("waiting", 0):
                self.stdout.write(f"{name.replace('_', ' ')}: {value}")
        self._tell_comparison(comparison)

    def _tell_comparison(self, comparison: Comparison | None) -> None:
        if comparison is None:
            return
        origin = f", as {comparison.origin} says" if comparison.origin else ""
        said = comparison.obstacle or ("the payload fits" if comparison.fits else "it differs")
        self.stdout.write(f"against the schema{origin}: {said}")
        for one in comparison.differences:
            self.stdout.write(f"    {one.path or 'the whole payload'}: {one.reason}")
        if comparison.is_partial:
            self.stdout.write("    and more")

    def _retry(self, options: dict[str, Any]) -> None:
        settle = partial(deliveries.retry, reason=options["reason"])
        self._settle(options, Subject.DELIVERY, Action.RETRY, settle)

    def _discard(self, options: dict[str, Any]) -> None:
        module = withheld if options["withheld"] else deliveries
        subject = Subject.WITHHELD if options["withheld"] else Subject.DELIVERY
        settle = partial(module.discard, reason=options["reason"])
        self._settle(options, subject, Action.DISCARD, settle)

    def _release(self, options: dict[str, Any]) -> None:
        self._settle(options, Subject.WITHHELD, Action.RELEASE, withheld.release)

    def _settle(
        self,
        options: dict[str, Any],
        subject: BulkAction.Subject,
        action: BulkAction.Action,
        settle: Any,
    ) -> None:
        using, selection, ids = options["database"], _selection(options), set(options["id"])
        if ids and (selection != Selection() or options["all"]):
            raise ValueError("Name ids, or what they have in common; not both.")
        if not options["reason"] and not options["dry_run"] and action == Action.DISCARD:
            raise ValueError("Say why: --reason is kept in Django's log.")
        if ids:
            _refuse_unknown(ids, subject, using)
            count = len(ids) if options["dry_run"] else settle(ids, using=using)
            self._tell(options, action, count)
            return
        if selection == Selection() and not options["all"]:
            raise ValueError("Name ids, say which, or say --all.")
        if options["dry_run"]:
            found = bulk_actions.matching(subject, selection, using=using)
            self._tell(options, action, found.count())
            return
        bulk = bulk_actions.start(
            action,
            selection,
            subject=subject,
            reason=options["reason"] or f"by command: {action.label}",
            rate=options["rate"],
            using=using,
        )
        if not options["background"]:
            self._work_off(bulk, using)
        self._tell(options, action, bulk.done, bulk)

    def _work_off(self, bulk: BulkAction, using: str) -> None:
        stop = threading.Event()
        with (
            stop_on_signals(stop),
            Progress(self.stderr, bulk.total, "rows", done=bulk.done) as bar,
        ):
            while bulk.state == State.RUNNING and not stop.is_set():
                before = bulk.done
                bulk_actions.work_off(using=using, seconds=_PAUSE)
                bulk.refresh_from_db(using=using)
                bar.advance(bulk.done - before)
                if bulk.done == before and bulk.state == State.RUNNING:
                    stop.wait(_PAUSE)

    def _tell(
        self,
        options: dict[str, Any],
        action: BulkAction.Action,
        count: int,
        bulk: BulkAction | None = None,
    ) -> None:
        if options["json"]:
            said: dict[str, Any] = {"action": action.value, "rows": count}
            if bulk is not None:
                said |= {"bulk_action": bulk.pk, "state": bulk.state, "total": bulk.total}
            self._write_json({**said, "dry_run": options["dry_run"]})
            return
        if options["dry_run"]:
            self.stdout.write(f"{count} to {action.label}; nothing was done.")
            return
        done = {
            "retry": "due for the next retry pass",
            "discard": "discarded",
            "release": "released",
        }[action.value]
        if bulk is None:
            self.stdout.write(f"{count} {done}.")
            return
        self.stdout.write(f"{count} of {bulk.total} {done}, by bulk action {bulk.pk}.")
        if bulk.state == State.RUNNING:
            self.stdout.write("It is running: the retry passes go on with it.")

    def _edit(self, options: dict[str, Any]) -> None:
        row, using = _delivery(options), options["database"]
        content = _edited(editing.content_of(row), options)
        parts = content.changed(editing.content_of(row))
        comparison = None
        if options["dry_run"]:
            editing.check(row, content)
            names = private_members(parse_wire_topic(row.topic).topic)
            comparison = editing.compare(row, content, hidden=names)
        else:
            parts = editing.edit(
                row.pk, content,
                reason=options["reason"], seen=editing.version_of(row), retry=options["retry"],
                using=using,
            )  # fmt: skip
        if options["json"]:
            told = {} if comparison is None else {"comparison": asdict(comparison)}
            self._write_json(
                {"id": row.pk, "changed": parts, "dry_run": options["dry_run"], **told}
            )
            return
        said = "would change" if options["dry_run"] else "changed"
        self.stdout.write(f"{said}: {', '.join(parts) or 'nothing'}")
        if comparison is not None and comparison.origin:
            self._tell_comparison(comparison)

    def _restore(self, options: dict[str, Any]) -> None:
        editing.restore(options["id"], reason=options["reason"], using=options["database"])
        if options["json"]:
            self._write_json({"id": options["id"]})
            return
        self.stdout.write("It has its original message again.")

    def _cancel(self, options: dict[str, Any]) -> None:
        bulk = bulk_actions.cancel(
            options["id"], reason=options["reason"], using=options["database"]
        )
        if options["json"]:
            self._write_json({"bulk_action": bulk.pk, "rows": bulk.done})
            return
        self.stdout.write(f"Cancelled; {bulk.done} of {bulk.total} were settled before.")

    def _write_json(self, said: object) -> None:
        self.stdout.write(json.dumps(said, cls=DjangoJSONEncoder))


def _selection(options: Mapping[str, Any]) -> Selection:
    return Selection(**{name: options.get(name) for name in _FILTERS})


def _delivery(options: Mapping[str, Any]) -> Delivery:
    row = Delivery.objects.using(options["database"]).filter(pk=options["id"]).first()
    if row is None:
        raise ValueError(f"There is no delivery {options['id']}.")
    return row


def _refuse_unknown(ids: Iterable[int], subject: BulkAction.Subject, using: str) -> None:
    rows: Any = (WithheldMessage if subject == Subject.WITHHELD else Delivery).objects
    known = rows.using(using).filter(pk__in=ids).values_list("pk", flat=True)
    if unknown := sorted(set(ids) - set(known)):
        raise ValueError(f"There is no {', '.join(map(str, unknown))}. Nothing was done.")


def _edited(content: editing.Content, options: Mapping[str, Any]) -> editing.Content:
    key = content.key if options["key"] is None else options["key"].encode()
    payload = content.payload if options["payload"] is None else options["payload"].read_bytes()
    headers = list(content.headers)
    for said in options["header"]:
        name, equals, value = said.partition("=")
        if not equals:
            raise ValueError(f"Write --header as NAME=VALUE, not {said!r}.")
        headers = [pair for pair in headers if pair[0] != name] + [(name, value.encode())]
    return editing.Content(key=key, headers=headers, payload=payload)
