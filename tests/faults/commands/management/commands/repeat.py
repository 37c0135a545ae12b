"""``repeat``: another command again and again, as cron would run it."""

from __future__ import annotations

import threading
import traceback
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser
from django.db import connections

from folio_events.management.shutdown import stop_on_signals


class Command(BaseCommand):
    help = "Run a command every so many seconds, whatever becomes of it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("command")
        parser.add_argument("--every", type=float, default=0.3)

    def handle(self, *_args: Any, **options: Any) -> None:
        stop = threading.Event()
        with stop_on_signals(stop):
            while not stop.is_set():
                try:
                    call_command(options["command"])
                except Exception:  # noqa: BLE001 - the next run may do better
                    self.stderr.write(traceback.format_exc())
                    connections.close_all()
                stop.wait(options["every"])
