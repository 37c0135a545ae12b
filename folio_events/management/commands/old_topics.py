"""``old_topics``: list the topics that a change of topology left, and delete the drained ones."""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser

from folio_events.management.command import EventsCommand
from folio_events.operations.old_topics import DEFAULT_IDLE, OldTopic, delete_drained, old_topics


class Command(EventsCommand):
    help = (
        "List the topics of this environment that this project no longer publishes to, with what "
        "each group has not read. Deletes those that are drained, and only with --delete."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--left",
            action="append",
            default=[],
            metavar="TENANT",
            help="a tenant or tenant collection whose topics were left; may be repeated",
        )
        parser.add_argument(
            "--idle",
            type=_seconds,
            default=DEFAULT_IDLE,
            metavar="SECONDS",
            help="how long nothing may have come to a drained topic (default one day)",
        )
        parser.add_argument(
            "--delete", action="store_true", help="delete those that are drained, for good"
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        given = {"left": options["left"], "idle": options["idle"]}
        found = old_topics(**given)
        for topic in found:
            self.stdout.write(f"{topic.name}: {_state(topic)}")
        drained = [topic for topic in found if topic.drained]
        deleted = delete_drained(**given) if options["delete"] and drained else set()
        for name in sorted(deleted):
            self.stdout.write(f"deleted {name}")
        self.stdout.write(
            f"{len(found)} old topics, {len(drained)} drained, {len(deleted)} deleted"
        )


def _seconds(text: str) -> timedelta:
    try:
        found = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        found = timedelta(-1)
    if found < timedelta(0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return found


def _state(topic: OldTopic) -> str:
    if topic.drained:
        return "drained"
    reasons = []
    if not topic.idle and topic.newest is not None:
        reasons.append(f"newest record of {topic.newest:%Y-%m-%d %H:%M:%S} UTC")
    reasons += [
        f"group {group} has {count} to read"
        for group, count in sorted(topic.unread.items())
        if count
    ]
    return ", ".join(reasons)
