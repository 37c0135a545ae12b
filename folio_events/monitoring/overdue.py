"""Overdue events: those that no consumer has finished within OVERDUE_AFTER seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Literal
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS
from django.db.models import F, OuterRef, Subquery
from django.utils import timezone

from folio_events import topics
from folio_events.conf import get_settings
from folio_events.models import Delivery, OutboxMessage, RelayCursor, RelayGap, WithheldMessage
from folio_events.monitoring.positions import UnreadEvent

Stage = Literal["unpublished", "withheld", "unread", "failing"]
#: Most gaps that are looked into; the lowest have the oldest rows.
_MOST_GAPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """An event that is late, and where it stands.

    Attributes:
        stage: "unpublished": in the outbox; "withheld": refused by the broker, or behind such a
            one; "unread": the first of its partition that the group has not handled, others may
            stand behind it; "failing": a receiver has failed on it.
        receiver: Name of the receiver, of "failing"; of "unread" the group.
        topic: Logical topic.
        since: When it was recorded or published.
        error: The last error, where there is one.
        event_id: None: of "unread", where the record could not be decoded.
    """

    stage: Stage
    receiver: str
    topic: str
    type: str
    tenant: str
    key: str | None
    since: datetime
    error: str
    event_id: UUID | None


def overdue(
    *,
    unread: Iterable[UnreadEvent] = (),
    after: float | None = None,
    limit: int = 100,
    using: str = DEFAULT_DB_ALIAS,
) -> list[Overdue]:
    """List events that are late, the oldest first.

    Args:
        unread: As ``positions.first_unread()`` returned them, where the broker was asked.
        after: Seconds from which on an event is late; None: the setting OVERDUE_AFTER.
        limit: Most events of each stage.
        using: Database alias.
    """
    seconds = get_settings().OVERDUE_AFTER if after is None else after
    cutoff = timezone.now() - timedelta(seconds=seconds)
    found = [
        *_unpublished(cutoff, limit, using),
        *_withheld(cutoff, limit, using),
        *islice(_unread(unread, cutoff), limit),
        *_failing(cutoff, limit, using),
    ]
    return sorted(found, key=lambda event: event.since)


def _unpublished(cutoff: datetime, limit: int, using: str) -> Iterator[Overdue]:
    position = RelayCursor.objects.using(using).values_list("position", flat=True).first() or 0
    rows = OutboxMessage.objects.using(using)
    ahead = rows.filter(id__gt=position).order_by("id").values_list("id", flat=True)[:limit]
    first = [*_held_back(limit, using), *ahead][:limit]
    late = rows.filter(id__in=first, occurred_at__lt=cutoff)
    for topic, kind, tenant, key, at, event_id in late.values_list(
        "topic", "event_type", "tenant", "key", "occurred_at", "event_id"
    ):
        yield Overdue(
            stage="unpublished", receiver="", topic=topic, type=kind, tenant=tenant, key=key,
            since=at, error="", event_id=event_id,
        )  # fmt: skip


def _held_back(limit: int, using: str) -> list[int]:
    """Ids of rows that the relay has passed and still has to publish, ascending."""
    rows = OutboxMessage.objects.using(using).order_by("id").values_list("id", flat=True)
    inside = rows.filter(id__gte=OuterRef("first_id"), id__lte=OuterRef("last_id"))
    # One look into the index for each gap: a join with many gaps reads the whole table.
    gaps = RelayGap.objects.using(using).annotate(first=Subquery(inside[:1]))
    found: list[int] = []
    for first, last in gaps.order_by("first_id").values_list("first", "last_id")[:_MOST_GAPS]:
        if first is not None and len(found) < limit:
            found += rows.filter(id__gte=first, id__lte=last)[: limit - len(found)]
    return found


def _withheld(cutoff: datetime, limit: int, using: str) -> Iterator[Overdue]:
    rows = WithheldMessage.objects.using(using).filter(
        state__in=WithheldMessage.OPEN, outbox_message__occurred_at__lt=cutoff
    )
    for topic, kind, tenant, key, at, error, event_id in (
        rows.order_by("pk")
        .annotate(
            kind=F("outbox_message__event_type"),
            at=F("outbox_message__occurred_at"),
            event_id=F("outbox_message__event_id"),
        )
        .values_list("topic", "kind", "tenant", "key", "at", "error", "event_id")[:limit]
    ):
        yield Overdue(
            stage="withheld", receiver="", topic=topic, type=kind, tenant=tenant, key=key,
            since=at, error=_first_line(error), event_id=event_id,
        )  # fmt: skip


def _unread(unread: Iterable[UnreadEvent], cutoff: datetime) -> Iterator[Overdue]:
    for event in unread:
        if event.published_at < cutoff:
            yield Overdue(
                stage="unread", receiver=event.group, type=event.type, tenant=event.tenant,
                topic=topics.parse_wire_topic(event.topic).topic, key=None,
                since=event.published_at, error="", event_id=event.event_id,
            )  # fmt: skip


def _failing(cutoff: datetime, limit: int, using: str) -> Iterator[Overdue]:
    rows = Delivery.objects.using(using).filter(state__in=Delivery.OPEN, published_at__lt=cutoff)
    # In the order of the index of open ones: settled ones may be millions.
    for receiver, topic, kind, tenant, key, at, event_id, name, error in rows.order_by(
        "receiver", "topic", "key", "id"
    ).values_list(
        "receiver",
        "topic",
        "event_type",
        "tenant",
        "key",
        "published_at",
        "event_id",
        "error_class",
        "error",
    )[:limit]:
        yield Overdue(
            stage="failing", receiver=receiver, type=kind, tenant=tenant, key=key, since=at,
            topic=topics.parse_wire_topic(topic).topic,
            error=": ".join(filter(None, (name, _first_line(error)))), event_id=event_id,
        )  # fmt: skip


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
