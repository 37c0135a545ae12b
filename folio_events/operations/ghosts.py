"""Ghosts: events on the broker whose outbox rows a restore of the database has taken back."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import DEFAULT_DB_ALIAS

from folio_events import outbox
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.conf import get_settings
from folio_events.dialects import decode
from folio_events.event import Event
from folio_events.exceptions import DecodingError
from folio_events.message import Record
from folio_events.models import OutboxMessage
from folio_events.operations.criteria import milliseconds
from folio_events.operations.past_events import listened_topics
from folio_events.provisioning import own_topics
from folio_events.reading import sequence_of

logger = logging.getLogger("folio_events.ghosts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ghost:
    """An event that others may have received, of a change that the database does not have."""

    topic: str
    partition: int
    offset: int
    event_id: uuid.UUID
    type: str
    tenant: str | None
    key: str | None
    #: Its id in the outbox that was lost.
    sequence: int
    published_at: datetime


def find_ghosts(
    since: datetime,
    *,
    using: str = DEFAULT_DB_ALIAS,
    broker: Broker | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> Iterator[Ghost]:
    """Find what this project has published and its outbox does not have.

    Args:
        since: With a zone; some minutes before the moment that the database was restored to,
            since clocks differ. Younger than OUTBOX_RETENTION, or purged rows are taken for lost.
        using: Alias of the database that was restored.
        broker: Defaults to the setting BROKER.
        advance: Told of each batch how many messages were looked at.

    Raises:
        BrokerError: The broker does not answer.
    """
    broker = broker or get_broker()
    states = broker.partition_states(listened_topics(broker, own_topics()))
    firsts = broker.offsets_at(list(states), milliseconds(since))
    for place, state in sorted(states.items()):
        first = max(firsts[place], state.low)
        for records in broker.read_range(place, first, state.high):
            yield from _unknown(records, using)
            advance(len(records))


def skip_ids(ghosts: Sequence[Ghost], *, using: str = DEFAULT_DB_ALIAS) -> int | None:
    """Have the outbox draw higher ids than those of ghosts.

    A reader of a compacted topic may ignore an event whose ``ce_sequence`` is below one it has.
    The ids that are passed over are a gap that the relay forgets at once.

    Returns:
        The id that is passed over last; None: there is no ghost.
    """
    if not ghosts:
        return None
    last = max(ghost.sequence for ghost in ghosts)
    outbox.skip_ids(last, using=using)
    logger.warning("outbox of database %s passes over the ids up to %s", using, last)
    return last


def _unknown(records: Sequence[Record], using: str) -> Iterator[Ghost]:
    source = get_settings().SOURCE or f"/{get_settings().GROUP}"
    own: list[tuple[Record, Event, int]] = []
    for record in records:
        try:
            event = decode(record)
        except DecodingError:
            continue
        sequence = sequence_of(event)
        if event.headers.get("ce_source") == source and sequence is not None:
            own.append((record, event, sequence))
    ids = [event.id for _, event, _ in own]
    rows = OutboxMessage.objects.using(using).filter(event_id__in=ids)
    known = set(rows.values_list("event_id", flat=True))
    for record, event, sequence in own:
        if event.id not in known:
            yield Ghost(
                **record.topic_partition._asdict(),
                offset=record.offset,
                event_id=event.id,
                type=event.type,
                tenant=event.tenant,
                key=event.key,
                sequence=sequence,
                published_at=record.published_at,
            )
