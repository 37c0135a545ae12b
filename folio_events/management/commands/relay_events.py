"""``relay_events``: publish the outbox, as a daemon or once."""

from __future__ import annotations

import logging
import random
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError

from folio_events.conf import get_settings
from folio_events.management.shutdown import stop_on_signals
from folio_events.relay import drain

logger = logging.getLogger("folio_events.relay")

_MAX_PAUSE = 30.0


class Command(BaseCommand):
    help = "Publish what waits in the outbox. Runs until SIGTERM or Ctrl-C unless --once is given."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="drain until the outbox is empty, then stop"
        )
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="database alias")

    def handle(self, *_args: Any, **options: Any) -> None:
        using = options["database"]
        if options["once"]:
            self._once(using)
            return
        stop = threading.Event()
        with stop_on_signals(stop):
            self._serve(using, stop)

    def _once(self, using: str) -> None:
        published = withheld = 0
        while True:
            result = drain(using=using)
            published += result.published
            withheld += result.withheld
            if not result.more:
                break
        self.stdout.write(f"published {published}, withheld {withheld}")
        if result.standby:
            self.stdout.write("another relay is at work")
        if result.unavailable:
            self.stdout.write(
                self.style.WARNING(f"messages wait for the broker: {result.unavailable}")
            )

    def _serve(self, using: str, stop: threading.Event) -> None:
        settings = get_settings()
        faults = 0
        logger.info("relay of database %s started", using)
        while not stop.is_set():
            connections[using].close_if_unusable_or_obsolete()
            try:
                result = drain(using=using)
            except DatabaseError as error:
                logger.warning("relay of database %s: %s", using, type(error).__name__)
                connections[using].close()
                unavailable = True
            else:
                unavailable = bool(result.unavailable)
                if result.more:
                    continue
            faults = faults + 1 if unavailable else 0
            pause = settings.RELAY_POLL_INTERVAL
            if faults:
                grown = settings.POLL_FAILURE_SLEEP * 2 ** min(faults - 1, 10)
                pause = min(grown, _MAX_PAUSE) * random.uniform(0.5, 1)  # noqa: S311 - spreads load
            stop.wait(pause)
        logger.info("relay of database %s stopped", using)
