"""A step again and again, with a pause after errors that pass."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from django.db import Error as DatabaseError
from django.db import ProgrammingError, connections

from folio_events.conf import get_settings
from folio_events.exceptions import BrokerError

logger = logging.getLogger("folio_events.consumer")

#: Longest pause after errors, in seconds.
_MAX_PAUSE = 30.0


def repeat(
    step: Callable[[], object],
    stop: threading.Event,
    *,
    name: str,
    close: Callable[[], object],
    alive: Callable[[], None] = lambda: None,
    for_ever: bool = False,
) -> None:
    """Go on until told to stop.

    Args:
        step: One round.
        stop: Says so.
        name: Whose rounds, for the log.
        close: Called after an error, so that the next round begins anew.
        alive: Called after each round without an error.
        for_ever: Whether no error ends it.

    Raises:
        BrokerError: The broker refuses for good, or CONSECUTIVE_ERRORS_LIMIT was met.
        django.db.Error: CONSECUTIVE_ERRORS_LIMIT was met, or a table is missing.
    """
    errors = 0
    while not stop.is_set():
        try:
            step()
        except (BrokerError, DatabaseError) as error:
            errors += 1
            settings = get_settings()
            fatal = isinstance(error, ProgrammingError) or (
                isinstance(error, BrokerError) and not error.retryable
            )
            if not for_ever and (fatal or errors >= settings.CONSECUTIVE_ERRORS_LIMIT):
                raise
            pause = min(settings.POLL_FAILURE_SLEEP * 2 ** min(errors - 1, 30), _MAX_PAUSE)
            pause *= random.uniform(0.5, 1)  # noqa: S311 - spreads load
            # A database's words may repeat what was in a row, a broker's do not.
            said = f": {error}" if isinstance(error, BrokerError) else ""
            logger.warning(
                "%s: %s%s, error %s in a row; next try in %.1f s",
                name, type(error).__name__, said, errors, pause,
            )  # fmt: skip
            close()
            connections.close_all()
            stop.wait(pause)
        else:
            errors = 0
            alive()
