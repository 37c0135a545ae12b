"""Records that are read outside any group: which of them count."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import NamedTuple

from folio_events import entitlement
from folio_events.dialects import decode
from folio_events.event import Event
from folio_events.exceptions import DecodingError, TenantDisabledError
from folio_events.logs import log_message, refer_to_record
from folio_events.message import Record

logger = logging.getLogger("folio_events.reading")

#: Largest id that the outbox can draw.
_LAST_ID = 2**63 - 1


def readable(record: Record) -> Event | None:
    """The event of a record; None where it has none, no owner, or one that is not served."""
    try:
        event = decode(record)
        return event if entitlement.takes(event.tenant) else None
    except TenantDisabledError:
        return None
    except DecodingError as error:
        # The groups of the topic keep it; here it is only passed over.
        log_message(logger, logging.WARNING, "passed over", refer_to_record(record), error)
        return None


def sequence_of(event: Event) -> int | None:
    """The outbox id that a message carries; None where no outbox can have drawn it."""
    text = event.headers.get("ce_sequence", "")
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_LAST_ID))):
        return None
    sequence = int(text)
    return sequence if sequence <= _LAST_ID else None


class _Newest(NamedTuple):
    sequence: int
    occurred_at: datetime


class NewestOfKeys:
    """Tells events from late repeats of older ones; remembers each key.

    A relay that was taken for dead may repeat what it had in hand, behind newer events. Who
    keeps the last event of a key would fall back to an older one.
    """

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str | None, str, str], _Newest] = {}

    def takes(self, event: Event) -> bool:
        """Whether an event is no repeat; if so, older ones of its key are from now on."""
        sequence = sequence_of(event)
        if event.key is None or sequence is None:
            return True
        # Sequences of different outboxes say nothing of each other.
        chain = (event.topic, event.tenant, event.key, event.headers.get("ce_source", ""))
        found = _Newest(sequence, event.occurred_at)
        known = self._newest.get(chain)
        # A database that was set up anew counts from 1 again, but what it records is younger.
        if known and found.sequence < known.sequence and found.occurred_at <= known.occurred_at:
            return False
        self._newest[chain] = found
        return True
