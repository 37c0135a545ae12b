"""``consume_events``: bring events to receivers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import connections

from folio_events.broadcast import Broadcast
from folio_events.consumer import Consumer
from folio_events.management.command import EventsCommand
from folio_events.management.health_file import HealthFile, health_file
from folio_events.management.heap import freeze_heap
from folio_events.management.metrics_port import add_metrics_port, metrics_port
from folio_events.management.shutdown import stop_on_signals
from folio_events.receivers import registry


class Command(EventsCommand):
    help = (
        "Bring events to the receivers of all groups, or of one, and to this process's broadcast "
        "receivers. Runs until SIGTERM or Ctrl-C, which finish the batch in hand."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--group", action="append", help="only this consumer group; may be repeated"
        )
        parser.add_argument(
            "--once", action="store_true", help="stop when nothing has come for --idle seconds"
        )
        parser.add_argument(
            "--idle",
            type=float,
            default=5.0,
            metavar="SECONDS",
            help="how long --once waits for more (default 5)",
        )

        parser.add_argument(
            "--health-file",
            metavar="FILE",
            help="file that is touched while all groups work; its age is health",
        )

        add_metrics_port(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        groups = options["group"] or registry.groups()
        # Of every process, whichever groups it runs.
        starts = [] if options["once"] else Broadcast.starts()
        if not groups and not starts:
            raise CommandError(
                "No receiver is registered: write one in the receivers.py of an app."
            )
        stop = threading.Event()
        consumers: list[Consumer | Broadcast] = [Consumer(group) for group in groups]
        consumers += [Broadcast(start) for start in starts]
        idle = options["idle"] if options["once"] else None
        if not options["once"]:
            freeze_heap()
        with (
            stop_on_signals(stop),
            metrics_port(options["metrics_port"]),
            health_file(options["health_file"], [c.name for c in consumers]) as health,
        ):
            self._run(consumers, stop, idle, health)

    def _run(
        self,
        consumers: list[Consumer | Broadcast],
        stop: threading.Event,
        idle: float | None,
        health: HealthFile,
    ) -> None:
        """Run each consumer in a thread of its own; if one fails, all stop."""
        handled: list[int] = []

        def serve(consumer: Consumer | Broadcast) -> None:
            try:
                if idle is None:
                    consumer.run(stop, alive=lambda: health.alive(consumer.name))
                    return
                consumer.start()
                until = time.monotonic() + idle
                while not stop.is_set() and (left := until - time.monotonic()) >= 0:
                    # Nothing may also mean that another member was quicker.
                    if count := consumer.step(timeout=left):
                        handled.append(count)
                        until = time.monotonic() + idle
            finally:
                consumer.close()
                connections.close_all()

        with ThreadPoolExecutor(len(consumers), thread_name_prefix="consumer") as pool:
            futures = [pool.submit(serve, consumer) for consumer in consumers]
            pending = set(futures)
            while pending:
                # In short waits, so that signals are seen.
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                if idle is None and done:
                    stop.set()
        for future in futures:
            future.result()
        if idle is not None:
            self.stdout.write(f"dispatched {sum(handled)}")
