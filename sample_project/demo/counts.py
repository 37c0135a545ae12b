"""What the tables say: how far events are, whether both sides are equal, what it took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from statistics import median, quantiles
from typing import Any
from uuid import UUID

from django.db.models import Count

from folio_events.models import Delivery, InboxEntry, OutboxMessage, Publication
from folio_events.receivers import registry
from sample_project.contracts import PIECE_ITEM
from sample_project.inventory.models import Item
from sample_project.orders.models import Piece


def expected_by_receiver() -> dict[str, int]:
    """How many of the recorded events each receiver has to get."""
    recorded = {
        (row["topic"], row["event_type"]): row["events"]
        for row in OutboxMessage.objects.values("topic", "event_type").annotate(events=Count("id"))
    }
    return {
        receiver.name: sum(
            events
            for (topic, kind), events in recorded.items()
            if receiver.listens_to(topic) and (receiver.types is None or kind in receiver.types)
        )
        for receiver in registry
    }


def handled_by_receiver() -> dict[str, int]:
    """How many events took effect in each receiver."""
    rows = InboxEntry.objects.order_by().values("receiver").annotate(events=Count("event_id"))
    return {row["receiver"]: row["events"] for row in rows}


def settled() -> tuple[int, int]:
    """How many effects there are, and how many there have to be.

    An event's effects commit together with the events that they cause. What was handled
    is read first: if it is all that is expected later, nothing was under way in between.
    """
    done = sum(handled_by_receiver().values())
    waiting = Delivery.objects.filter(state__in=Delivery.OPEN).count()
    return done, sum(expected_by_receiver().values()) - waiting


def published() -> tuple[int, int]:
    """How many messages were published, of how many recorded."""
    return Publication.objects.count(), OutboxMessage.objects.count()


def differences() -> list[str]:
    """Describe every linked piece that differs from its item in a synced field, of any tenant."""
    items: dict[UUID, Item] = {item.pk: item for item in Item.all_tenants.all()}
    found: list[str] = []
    for piece in Piece.all_tenants.filter(item_id__isnull=False):
        for field in PIECE_ITEM.fields:
            on_piece = piece.version(field.spoke).value
            on_item = items[piece.item_id].version(field.hub).value
            if on_piece != on_item:
                found.append(
                    f"{field.spoke} of piece {piece.pk} is {on_piece!r}, "
                    f"{field.hub} of item {piece.item_id} is {on_item!r}"
                )
    return found


@dataclass(frozen=True, kw_only=True)
class Delays:
    """Seconds from one moment of an event's life to a later one."""

    name: str
    median: float
    p99: float


def delays(*, without: Iterable[UUID]) -> list[Delays]:
    """Measure how long events took.

    Args:
        without: Ids of events that had to wait for a person.
    """
    recorded: dict[UUID, datetime] = dict(
        OutboxMessage.objects.values_list("event_id", "occurred_at")
    )
    acknowledged: dict[UUID, datetime] = dict(
        Publication.objects.values_list("outbox_message__event_id", "published_at")
    )
    leave_out = set(without)
    entries: list[tuple[UUID, datetime]] = [
        (event_id, at)
        for event_id, at in InboxEntry.objects.values_list("event_id", "handled_at")
        if event_id not in leave_out
    ]
    return [
        _delays("from commit to published", [acknowledged[e] - recorded[e] for e, _ in entries]),
        _delays("from published to handled", [at - acknowledged[e] for e, at in entries]),
        _delays("from commit to handled", [at - recorded[e] for e, at in entries]),
    ]


def _delays(name: str, spans: list[Any]) -> Delays:
    seconds = [span.total_seconds() for span in spans]
    return Delays(name=name, median=median(seconds), p99=quantiles(seconds, n=100)[98])
