"""Publish outbox rows again: records that the broker had acknowledged and lost."""

from __future__ import annotations

import logging
from datetime import datetime

from django.db import DEFAULT_DB_ALIAS

from folio_events.audit import Actor
from folio_events.cursor import OutboxCursor
from folio_events.models import Publication
from folio_events.operations.known_names import refuse_unknown
from folio_events.relay import paused

logger = logging.getLogger("folio_events.relay")

#: Most rows that one statement deletes.
_BATCH = 1000


def republish(
    topic: str,
    since: datetime,
    *,
    reason: str = "",
    dry_run: bool = False,
    by: Actor = None,
    using: str = DEFAULT_DB_ALIAS,
) -> int:
    """Have the relay publish rows of a topic again, under the event ids that they had.

    Receivers that took an event skip it by their inboxes; a reader without one sees it twice.
    Rows of one key keep their order, and come behind what was published of it meanwhile. What
    the outbox has purged is not there to be published.

    Args:
        topic: Logical topic.
        since: Published then or later; with a zone.
        reason: Kept in Django's log.
        dry_run: Only count.
        by: The user who asks.
        using: Database alias.

    Returns:
        How many rows the relay publishes again, or would.

    Raises:
        ValueError: There is no reason; or no declaration and no row names the topic.
        InvalidStateError: SQLite: a relay is at work and does not end.
    """
    rows = Publication.objects.using(using).filter(
        published_at__gte=since, outbox_message__topic=topic
    )
    if not rows.exists():
        refuse_unknown(topic=topic, using=using)
    if dry_run:
        return rows.count()
    if not reason.strip():
        raise ValueError("Say why: the reason is kept in Django's log.")
    with paused(using):
        ids = sorted(rows.values_list("outbox_message_id", flat=True))
        if not ids:
            return 0
        for start in range(0, len(ids), _BATCH):
            chunk = ids[start : start + _BATCH]
            Publication.objects.using(using).filter(outbox_message__in=chunk).delete()
        cursor = OutboxCursor(using)
        cursor.load()
        cursor.hold_back(ids)
        cursor.save()
    logger.warning(
        "%s messages of topic %s since %s are published again, by %s: %s",
        len(ids), topic, since, "a program" if by is None else f"user {by.pk}", reason,
    )  # fmt: skip
    return len(ids)
