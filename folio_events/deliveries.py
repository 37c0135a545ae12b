"""Writer of deliveries: record, hold, claim, settle, retry, discard."""

from __future__ import annotations

import logging
import traceback
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import Case, Count, Exists, OuterRef, Q, QuerySet, Subquery, When
from django.utils import timezone

from folio_events.audit import Actor, log_action
from folio_events.dialects import derived_id
from folio_events.event import Event
from folio_events.exceptions import InvalidStateError
from folio_events.message import (
    Record,
    TopicPartition,
    decode_headers,
    encode_headers,
    key_text,
    storable,
)
from folio_events.models import Delivery
from folio_events.receivers import Receiver, registry

logger = logging.getLogger("folio_events.deliveries")

State = Delivery.State
#: Longest error text and traceback that are kept, in characters.
MAX_ERROR, MAX_TRACEBACK = 10_000, 50_000
#: The last day of the year 9999; records may be stamped with any number.
_LATEST_TIMESTAMP = 253_402_214_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed, and what follows."""

    error: BaseException
    #: Which run it was, counted from 1.
    attempt: int
    #: Seconds until the next attempt; None: there is none.
    pause: float | None


@dataclass(slots=True)
class Standing:
    """What deliveries say about a batch of events."""

    #: Open deliveries of each (receiver, topic, key) that later events wait behind.
    of_keys: dict[tuple[str, str, str], int] = field(default_factory=dict)
    #: Open deliveries of each receiver and partition that later events wait behind.
    of_partitions: dict[tuple[str, TopicPartition], int] = field(default_factory=dict)
    #: (receiver, event id) of deliveries in whatever state: they alone run those events.
    kept: set[tuple[str, uuid.UUID]] = field(default_factory=set)

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
    using: str,
) -> Standing:
    """Ask what of a batch has deliveries already, or stands behind one."""
    found = Standing()
    if not receivers:
        return found
    rows = Delivery.objects.using(using).filter(receiver__in=receivers)
    if not rows.exists():
        return found
    found.kept = set(
        rows.filter(event_id__in=event_ids, replay=0).values_list("receiver", "event_id")
    )
    ahead = rows.filter(state__in=Delivery.OPEN)
    chains = ahead.filter(order="key", key__in=keys).values_list("receiver", "topic", "key")
    for receiver, topic, key, count in chains.annotate(count=Count("id")).order_by():
        if key is not None:
            found.of_keys[receiver, topic, key] = count
    if any(known.order == "partition" for known in registry if known.name in receivers):
        blocked = ahead.filter(order="partition", topic__in={place.topic for place in places})
        parts = blocked.values_list("receiver", "topic", "partition")
        for receiver, topic, partition, count in parts.annotate(count=Count("id")).order_by():
            found.of_partitions[receiver, TopicPartition(topic, partition)] = count
    return found


def count_open(receiver: str, limit: int, *, using: str) -> int:
    """How many open deliveries a receiver has, counted no further than a limit."""
    rows = Delivery.objects.using(using).filter(receiver=receiver, state__in=Delivery.OPEN)
    return rows[:limit].count()


def record_failure(
    receiver: Receiver, record: Record, event: Event | None, failure: Failure, *, using: str
) -> None:
    """Keep an event that a receiver failed on, with all that is needed to run it again."""
    delivery = _new(receiver, record, event)
    _note(delivery, failure)
    _save_new([delivery], using)


def record_held(receiver: Receiver, record: Record, event: Event, *, using: str) -> None:
    """Keep an event without an attempt: it waits behind another, or the breaker is open."""
    delivery = _new(receiver, record, event)
    delivery.state, delivery.next_attempt_at = State.RETRYING, timezone.now()
    _save_new([delivery], using)


def _new(receiver: Receiver, record: Record, event: Event | None) -> Delivery:
    return Delivery(
        receiver=receiver.name,
        group=receiver.group,
        event_id=event.id if event else derived_id(record),
        order=receiver.order,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        tenant=storable(event.tenant or "")[:255] if event else "",
        event_type=storable(event.type)[:100] if event else "",
        key=key_text(record.key),
        raw_key=record.key,
        headers=encode_headers(record.headers),
        payload=record.value,
        published_at=datetime.fromtimestamp(
            min(max(record.timestamp, 0), _LATEST_TIMESTAMP) / 1000, UTC
        ),
        created_at=timezone.now(),
    )


def _save_new(deliveries: list[Delivery], using: str) -> None:
    # A record that is read twice must not make two deliveries.
    Delivery.objects.using(using).bulk_create(deliveries, ignore_conflicts=True)


def _note(delivery: Delivery, failure: Failure) -> None:
    now = timezone.now()
    error = failure.error
    delivery.attempts = failure.attempt
    delivery.last_attempt_at = now
    delivery.error_class = f"{type(error).__module__}.{type(error).__qualname__}"[:255]
    delivery.error = storable(str(error))[:MAX_ERROR]
    delivery.traceback = storable("".join(traceback.format_exception(error)))[-MAX_TRACEBACK:]
    if failure.pause is None:
        delivery.state, delivery.next_attempt_at = State.DEAD, None
    else:
        delivery.state, delivery.next_attempt_at = (
            State.RETRYING,
            now + timedelta(seconds=failure.pause),
        )
    level = logging.ERROR if failure.pause is None else logging.WARNING
    # The error's class only: its text may hold what was in the payload.
    logger.log(
        level,
        "%s receiver=%s topic=%s partition=%s offset=%s key=%s event=%s tenant=%s attempt=%s error=%s",
        "dead" if failure.pause is None else "will retry",
        delivery.receiver,
        delivery.topic,
        delivery.partition,
        delivery.offset,
        delivery.key,
        delivery.event_id,
        delivery.tenant,
        delivery.attempts,
        delivery.error_class,
    )


def _older_open(using: str) -> QuerySet[Delivery]:
    return Delivery.objects.using(using).filter(
        state__in=Delivery.OPEN,
        order="key",
        receiver=OuterRef("receiver"),
        topic=OuterRef("topic"),
        key=OuterRef("key"),
        id__lt=OuterRef("id"),
    )


def with_held_behind(rows: QuerySet[Delivery]) -> QuerySet[Delivery]:
    """Add ``held_behind``: the id of the oldest delivery that one waits for, or None."""
    oldest = _older_open(rows.db).order_by("id").values("id")[:1]
    is_held = When(state=State.RETRYING, order="key", then=Subquery(oldest))
    return rows.annotate(held_behind=Case(is_held, default=None))


def due(receivers: Collection[str], *, using: str) -> QuerySet[Delivery]:
    """Deliveries whose time has come, oldest first; none that waits behind another of its key."""
    older = _older_open(using)
    return (
        Delivery.objects.using(using)
        .filter(state=State.RETRYING, next_attempt_at__lte=timezone.now(), receiver__in=receivers)
        .filter(~Q(order="key") | ~Exists(older))
        .order_by("next_attempt_at", "id")
    )


def claim(receivers: Collection[str], *, using: str) -> Delivery | None:
    """Lock the next due delivery in the transaction of the caller; None if there is none."""
    return due(receivers, using=using).select_for_update(skip_locked=True, of=("self",)).first()


def begin(delivery: Delivery, *, lease: float, using: str) -> None:
    """Count a run before it starts, so that one which ends the process counts too.

    Args:
        delivery: Locked by ``claim()``.
        lease: Seconds after which the delivery is due again if nothing is heard of the run.
        using: Database alias.
    """
    now = timezone.now()
    delivery.attempts += 1
    delivery.unfinished = True
    delivery.last_attempt_at, delivery.next_attempt_at = now, now + timedelta(seconds=lease)
    delivery.save(
        using=using,
        update_fields=["attempts", "unfinished", "last_attempt_at", "next_attempt_at"],
    )


def still_running(delivery: Delivery, *, using: str) -> bool:
    """Lock a delivery whose run was begun; False if somebody has settled it meanwhile."""
    rows = Delivery.objects.using(using).select_for_update().filter(pk=delivery.pk)
    return rows.filter(unfinished=True, attempts=delivery.attempts).exists()


def record_of(delivery: Delivery) -> Record:
    """The record as it was read, to be decoded again."""
    return Record(
        topic=delivery.topic,
        partition=delivery.partition,
        offset=delivery.offset,
        key=None if delivery.raw_key is None else bytes(delivery.raw_key),
        value=None if delivery.payload is None else bytes(delivery.payload),
        headers=decode_headers(bytes(delivery.headers)),
        timestamp=int(delivery.published_at.timestamp() * 1000),
    )


def resolve(delivery: Delivery, *, using: str) -> None:
    """Note that a delivery took effect, in the receiver's transaction."""
    now = timezone.now()
    Delivery.objects.using(using).filter(pk=delivery.pk).update(
        state=State.RESOLVED, unfinished=False, resolved_at=now, next_attempt_at=None
    )


def fail_again(delivery: Delivery, failure: Failure, *, using: str) -> None:
    """Note that the run which was begun has failed."""
    _note(delivery, failure)
    delivery.unfinished = False
    delivery.save(
        using=using,
        update_fields=[
            "state",
            "attempts",
            "unfinished",
            "next_attempt_at",
            "last_attempt_at",
            "error_class",
            "error",
            "traceback",
        ],
    )


def retry(ids: Collection[int], *, by: Actor = None, using: str = DEFAULT_DB_ALIAS) -> int:
    """Have open deliveries run again at the next retry pass.

    Args:
        ids: Of deliveries that are dead or retrying.
        by: The user who asks; written to Django's log.
        using: Database alias.

    Returns:
        How many will run again.

    Raises:
        InvalidStateError: One of them is resolved or discarded; none is touched.
    """
    return _settle(ids, State.RETRYING, "retried", "", by=by, using=using)


def discard(
    ids: Collection[int], *, reason: str, by: Actor = None, using: str = DEFAULT_DB_ALIAS
) -> int:
    """Close open deliveries without running them; those that waited behind them go on.

    Args:
        ids: Of deliveries that are dead or retrying.
        reason: Kept with the delivery and in Django's log.
        by: The user who asks.
        using: Database alias.

    Returns:
        How many were discarded.

    Raises:
        InvalidStateError: One of them is resolved or discarded; none is touched.
    """
    return _settle(ids, State.DISCARDED, "discarded", reason, by=by, using=using)


def _settle(
    ids: Collection[int], state: Delivery.State, verb: str, reason: str, *, by: Actor, using: str
) -> int:
    now = timezone.now()
    with transaction.atomic(using=using):
        found = list(
            Delivery.objects.using(using)
            .only("receiver", "event_id", "state")  # thousands may be settled at once
            .select_for_update()
            .filter(pk__in=ids)
            .order_by("pk")
        )
        for delivery in found:
            if delivery.state not in Delivery.OPEN:
                raise InvalidStateError(
                    f"Delivery {delivery.pk} is {delivery.get_state_display()}; only open ones can be {verb}."
                )
        retrying = state == State.RETRYING
        Delivery.objects.using(using).filter(pk__in=[delivery.pk for delivery in found]).update(
            state=state,
            unfinished=False,
            reason=reason,
            next_attempt_at=now if retrying else None,
            resolved_at=None if retrying else now,
        )
        log_action(found, f"{verb}: {reason}" if reason else verb, by=by)
    return len(found)
