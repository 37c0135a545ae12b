"""``relay_events``: publish the outbox, as a daemon or once."""

from __future__ import annotations

import threading
from typing import Any

from django.core.management.base import CommandParser

from folio_events import counts
from folio_events.management.command import EventsCommand
from folio_events.management.database_option import add_database
from folio_events.management.health_file import health_file
from folio_events.management.heap import freeze_heap
from folio_events.management.metrics_port import add_metrics_port, metrics_port
from folio_events.management.progress import Progress
from folio_events.management.shutdown import stop_on_signals
from folio_events.relay import drain
from folio_events.relay_daemon import serve


class Command(EventsCommand):
    help = "Publish what waits in the outbox. Runs until SIGTERM or Ctrl-C unless --once is given."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="drain until the outbox is empty, then stop"
        )
        parser.add_argument(
            "--health-file",
            metavar="FILE",
            help="file that is touched while the relay works; its age is health",
        )
        add_metrics_port(parser)
        add_database(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        using = options["database"]
        if options["once"]:
            self._once(using)
            return
        freeze_heap()
        stop = threading.Event()
        with (
            stop_on_signals(stop),
            metrics_port(options["metrics_port"]),
            health_file(options["health_file"], [using]) as health,
        ):
            serve(stop, using=using, alive=lambda: health.alive(using))

    def _once(self, using: str) -> None:
        published = withheld = 0
        with Progress(self.stderr, None, "messages") as bar:
            while True:
                result = drain(using=using)
                published += result.published
                withheld += result.withheld
                bar.advance(result.published + result.withheld)
                if not result.more:
                    break
        counts.flush(using=using, at_once=True)
        self.stdout.write(f"published {published}, withheld {withheld}")
        if result.standby:
            self.stdout.write("another relay is at work")
        if result.unavailable:
            self.stdout.write(
                self.style.WARNING(f"messages wait for the broker: {result.unavailable}")
            )
