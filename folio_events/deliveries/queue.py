"""Deliveries in their order: what waits behind what, and which one is to run next."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, field

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import Case, Count, Exists, OuterRef, Q, QuerySet, Subquery, When
from django.utils import timezone

from folio_events.message import Record, TopicPartition, key_text
from folio_events.models import Delivery
from folio_events.receivers import Receiver, registry

State = Delivery.State
# In the order of the index: by EXISTS the planner would read the table from its beginning, to find
# a receiver's first row soon, which it does not where they came late.
_ANY = f"""
SELECT 1 FROM (
  SELECT receiver FROM {Delivery._meta.db_table} WHERE receiver = %s ORDER BY event_id LIMIT 1
) AS found
"""  # noqa: S608 - fixed names
#: Parts of one UNION; SQLite takes 500.
_MOST_PARTS = 100


@dataclass(slots=True)
class Standing:
    """What deliveries say about a batch of events."""

    #: By (receiver, topic, key) that later events wait behind: how many open deliveries the
    #: group itself has made.
    of_keys: dict[tuple[str, str, str], int] = field(default_factory=dict)
    #: Open deliveries of each receiver and partition that later events wait behind.
    of_partitions: dict[tuple[str, TopicPartition], int] = field(default_factory=dict)
    #: (receiver, event id, replay) of deliveries in whatever state: they alone run those events.
    kept: set[tuple[str, uuid.UUID, int]] = field(default_factory=set)

    def waiting(self, receiver: Receiver, record: Record) -> int | None:
        """How many open deliveries a record has to wait behind; None: none."""
        key = key_text(record.key)
        if receiver.order == "partition":
            return self.of_partitions.get((receiver.name, record.topic_partition))
        if receiver.order == "key" and key is not None:
            return self.of_keys.get((receiver.name, record.topic, key))
        return None

    def block(self, receiver: Receiver, record: Record) -> None:
        """Count a delivery that has just been made of a record."""
        key = key_text(record.key)
        if receiver.order == "key" and key is not None:
            chain = (receiver.name, record.topic, key)
            self.of_keys[chain] = self.of_keys.get(chain, 0) + 1


def standing(
    receivers: Collection[str],
    keys: Collection[str],
    event_ids: Collection[uuid.UUID],
    places: Collection[TopicPartition],
    *,
    replays: Collection[int] = (0,),
    using: str,
) -> Standing:
    """Ask what of a batch has deliveries already, or stands behind one."""
    found = Standing()
    if not _has_any(list(receivers), using):
        return found
    rows = Delivery.objects.using(using).filter(receiver__in=receivers)
    found.kept = set(
        rows.filter(event_id__in=event_ids, replay__in=replays).values_list(
            "receiver", "event_id", "replay"
        )
    )
    ahead = rows.filter(state__in=Delivery.OPEN)
    chains = ahead.filter(order="key", key__in=keys).values_list("receiver", "topic", "key")
    # Those of a replay beside the group are no backlog of it: the partition does not pause.
    own = Count("id", filter=Q(replay__in={0, *replays}))
    for receiver, topic, key, count in chains.annotate(count=own).order_by():
        if key is not None:
            found.of_keys[receiver, topic, key] = count
    if any(known.order == "partition" for known in registry if known.name in receivers):
        blocked = ahead.filter(order="partition", topic__in={place.topic for place in places})
        parts = blocked.values_list("receiver", "topic", "partition")
        for receiver, topic, partition, count in parts.annotate(count=Count("id")).order_by():
            found.of_partitions[receiver, TopicPartition(topic, partition)] = count
    return found


def _has_any(receivers: list[str], using: str) -> bool:
    # Mostly there is none; raw, since each batch asks.
    with connections[using].cursor() as cursor:
        for start in range(0, len(receivers), _MOST_PARTS):
            part = receivers[start : start + _MOST_PARTS]
            cursor.execute(" UNION ALL ".join([_ANY] * len(part)), part)
            if cursor.fetchone() is not None:
                return True
    return False


def count_open(receiver: str, limit: int, *, replays: Collection[int] = (0,), using: str) -> int:
    """How many open deliveries a receiver has, counted no further than a limit.

    Args:
        receiver: Its name.
        limit: Where counting ends.
        replays: Numbers of the replays that count; 0: those of no replay.
        using: Database alias.
    """
    rows = Delivery.objects.using(using).filter(
        receiver=receiver, state__in=Delivery.OPEN, replay__in=replays
    )
    return rows[:limit].count()


def _older_open(order: str, using: str) -> QuerySet[Delivery]:
    return Delivery.objects.using(using).filter(
        state__in=Delivery.OPEN,
        order=order,
        receiver=OuterRef("receiver"),
        topic=OuterRef("topic"),
        id__lt=OuterRef("id"),
        **{order: OuterRef(order)},  # "key" and "partition" are columns too
    )


def with_held_behind(rows: QuerySet[Delivery]) -> QuerySet[Delivery]:
    """Add ``held_behind``: the id of the oldest delivery that one waits for, or None."""
    cases = [
        When(
            state=State.RETRYING,
            order=order,
            then=Subquery(_older_open(order, rows.db).order_by("id").values("id")[:1]),
        )
        for order in ("key", "partition")
    ]
    return rows.annotate(held_behind=Case(*cases, default=None))


def waited_for(delivery: Delivery) -> int | None:
    """The oldest delivery of its key that was open when a delivery was recorded.

    Returns:
        Its id; None: of those that are kept none was, or the order is not that of keys.
    """
    if delivery.order != "key" or delivery.key is None:
        return None
    rows = Delivery.objects.using(delivery._state.db or DEFAULT_DB_ALIAS).filter(
        Q(resolved_at=None) | Q(resolved_at__gt=delivery.created_at),
        order="key",
        receiver=delivery.receiver,
        topic=delivery.topic,
        key=delivery.key,
        id__lt=delivery.pk,
    )
    return rows.order_by("id").values_list("id", flat=True).first()


def due(receivers: Collection[str], *, using: str) -> QuerySet[Delivery]:
    """Deliveries whose time has come, oldest first; none that has to wait behind another."""
    in_turn = Q(order="none")
    for order in ("key", "partition"):
        in_turn |= Q(~Exists(_older_open(order, using)), order=order)
    return (
        Delivery.objects.using(using)
        .filter(state=State.RETRYING, next_attempt_at__lte=timezone.now(), receiver__in=receivers)
        .filter(in_turn)
        .order_by("next_attempt_at", "id")
    )


def claim(receivers: Collection[str], *, using: str) -> Delivery | None:
    """Lock the next due delivery in the transaction of the caller; None if there is none.

    Those of a replay come when no other is due.
    """
    rows = due(receivers, using=using).select_for_update(skip_locked=True, of=("self",))
    return rows.filter(replay=0).first() or rows.filter(replay__gt=0).first()


def claim_followers(head: Delivery, limit: int, *, using: str) -> list[Delivery]:
    """Lock, in the transaction of the caller, what was held right behind a delivery.

    Args:
        head: One of a key, that has just been resolved.
        limit: Most deliveries.
        using: Database alias.

    Returns:
        In the order of the key, up to the first that has been run before or is not due.
    """
    chain = Delivery.objects.using(using).filter(
        state__in=Delivery.OPEN,
        order="key",
        receiver=head.receiver,
        topic=head.topic,
        key=head.key,
    )
    first = chain.order_by("id")[:limit]
    found = list(first.select_for_update(skip_locked=True))
    # Another pass has what is missing, and what comes after it has to wait.
    known = list(first.values_list("id", flat=True))
    now = timezone.now()
    held = [
        delivery.id == number
        and delivery.state == State.RETRYING
        and delivery.attempts == 0
        and delivery.next_attempt_at is not None
        and delivery.next_attempt_at <= now
        for delivery, number in zip(found, known, strict=False)
    ]
    return found[: held.index(False) if False in held else len(held)]


def vanished(*, using: str) -> set[str]:
    """Names of receivers that have open deliveries and are no longer registered."""
    rows = Delivery.objects.using(using).filter(state__in=Delivery.OPEN)
    names = rows.order_by().values_list("receiver", flat=True).distinct()
    return {name for name in names if registry.get(name) is None}
