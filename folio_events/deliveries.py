"""Writer of deliveries: record, hold, claim, settle, retry, discard, edit, re-point, erase."""

from __future__ import annotations

import logging
import traceback
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import DEFAULT_DB_ALIAS, IntegrityError, connections, transaction
from django.db.models import Case, Count, Exists, F, OuterRef, Q, QuerySet, Subquery, When
from django.utils import timezone

from folio_events import attempts, counts, signals, topics
from folio_events.audit import Actor, log_action
from folio_events.dialects import derived_id
from folio_events.event import Event
from folio_events.exceptions import DecodingError, InvalidStateError
from folio_events.fingerprints import fingerprint
from folio_events.logs import MessageRef, log_message, refer_to_record
from folio_events.message import (
    Record,
    TopicPartition,
    decode_headers,
    encode_headers,
    key_text,
    storable,
)
from folio_events.models import Attempt, Delivery
from folio_events.receivers import Receiver, registry

logger = logging.getLogger("folio_events.deliveries")

State = Delivery.State
Outcome = Attempt.Outcome
#: Longest error text and traceback that are kept, in characters.
MAX_ERROR, MAX_TRACEBACK = 10_000, 50_000
#: Most deliveries of a cancelled replay that are closed in one transaction.
_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed, and what follows."""

    error: BaseException
    #: Which run it was, counted from 1.
    attempt: int
    #: Seconds until the next attempt; None: there is none.
    pause: float | None
    #: Seconds that the run took; None: nobody heard of its end.
    duration: float | None = None


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
    if not receivers:
        return found
    # Mostly there is none; raw, since each batch asks.
    listed = ", ".join(["%s"] * len(receivers))
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"SELECT EXISTS (SELECT 1 FROM {Delivery._meta.db_table} WHERE receiver IN ({listed}))",  # noqa: S608
            list(receivers),
        )
        if not cursor.fetchone()[0]:
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


def record_failure(
    receiver: Receiver,
    record: Record,
    event: Event | None,
    failure: Failure,
    *,
    replay: int = 0,
    using: str,
) -> None:
    """Keep an event that a receiver failed on, with all that is needed to run it again."""
    # Whose it is may be known of what is no event.
    tenant = failure.error.tenant if isinstance(failure.error, DecodingError) else None
    delivery = _new(receiver, record, event, replay, tenant)
    _note(delivery, failure)
    _save_new([delivery], using)
    # It has no id where it was there before; then its first run is not this one.
    kept = Delivery.objects.using(using).filter(
        receiver=delivery.receiver, event_id=delivery.event_id, replay=replay,
        last_attempt_at=delivery.last_attempt_at,
    )  # fmt: skip
    delivery.pk = kept.values_list("pk", flat=True).first()
    if delivery.pk is not None:
        started_at = delivery.created_at - timedelta(seconds=failure.duration or 0)
        attempts.record([_failed(delivery, failure, started_at)], using=using)
    _count(delivery, using)


def record_held(
    receiver: Receiver, record: Record, event: Event, *, replay: int = 0, using: str
) -> None:
    """Keep an event without an attempt: it waits behind another, or the breaker is open."""
    _save_new([_due_now(receiver, record, event, replay)], using)


def record_replayed(
    found: Collection[tuple[Receiver, Record, Event]], replay: int, *, using: str
) -> None:
    """Keep events that receivers are to run again, in the order in which they are to run.

    Args:
        found: What is to run; an event that stands in the log twice is kept once.
        replay: Number of the replay.
        using: Database alias.
    """
    _save_new([_due_now(*each, replay) for each in found], using)


def _due_now(receiver: Receiver, record: Record, event: Event, replay: int) -> Delivery:
    delivery = _new(receiver, record, event, replay)
    delivery.state, delivery.next_attempt_at = State.RETRYING, timezone.now()
    delivery.fingerprint = ""
    return delivery


def _new(
    receiver: Receiver,
    record: Record,
    event: Event | None,
    replay: int,
    tenant: str | None = None,
) -> Delivery:
    if event is not None:
        tenant = event.tenant
    return Delivery(
        replay=replay,
        receiver=receiver.name,
        group=receiver.group,
        event_id=event.id if event else derived_id(record),
        order=receiver.order,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        tenant=storable(tenant or "")[:255],
        event_type=storable(event.type)[:100] if event else "",
        key=key_text(record.key),
        raw_key=record.key,
        headers=encode_headers(record.headers),
        payload=record.value,
        published_at=record.published_at,
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
    delivery.fingerprint = _fingerprint(delivery)
    if failure.pause is None:
        delivery.state, delivery.next_attempt_at = State.DEAD, None
    else:
        delivery.state, delivery.next_attempt_at = (
            State.RETRYING,
            now + timedelta(seconds=failure.pause),
        )
    # The error's class only: its text may hold what was in the payload.
    log_message(
        logger,
        logging.ERROR if failure.pause is None else logging.WARNING,
        "dead" if failure.pause is None else "will retry",
        _ref(delivery),
        receiver=delivery.receiver,
        attempt=delivery.attempts,
        error=delivery.error_class,
    )


def _ref(delivery: Delivery) -> MessageRef:
    return refer_to_record(
        record_of(delivery), event_id=delivery.event_id, tenant=delivery.tenant or None
    )


def _tell(delivery: Delivery, using: str) -> None:
    facts = {
        "message": _ref(delivery),
        "receiver": delivery.receiver,
        "delivery_id": delivery.pk,
        "attempt": delivery.attempts,
        "error_class": delivery.error_class,
    }
    signals.delivery_failed.tell(using=using, retry_at=delivery.next_attempt_at, **facts)
    if delivery.state == State.DEAD:
        signals.delivery_dead.tell(using=using, **facts)


def _fingerprint(delivery: Delivery) -> str:
    return fingerprint(delivery.receiver, delivery.error_class, delivery.error, delivery.traceback)


def _failed(delivery: Delivery, failure: Failure, started_at: datetime) -> Attempt:
    return Attempt(
        delivery=delivery,
        receiver=delivery.receiver,
        number=failure.attempt,
        started_at=started_at,
        duration=failure.duration,
        outcome=Outcome.LOST if failure.duration is None else Outcome.FAILED,
        error_class=delivery.error_class,
        error=delivery.error,
        traceback=delivery.traceback,
    )


def _ended(delivery: Delivery, outcome: Attempt.Outcome, duration: float | None) -> Attempt:
    """The run that was begun last, without an error of its own."""
    return Attempt(
        delivery=delivery,
        receiver=delivery.receiver,
        number=delivery.attempts,
        started_at=delivery.last_attempt_at or timezone.now(),
        duration=duration,
        outcome=outcome,
    )


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


def begin(claimed: Collection[Delivery], *, lease: float, using: str) -> None:
    """Count runs before they start, so that one which ends the process counts too.

    Args:
        claimed: Locked by ``claim()`` or ``claim_followers()``.
        lease: Seconds after which they are due again if nothing is heard of the run.
        using: Database alias.
    """
    now = timezone.now()
    lost = [_ended(delivery, Outcome.LOST, None) for delivery in claimed if delivery.unfinished]
    if lost:
        attempts.record(lost, using=using)
    for delivery in claimed:
        delivery.attempts += 1
        delivery.unfinished = True
        delivery.last_attempt_at, delivery.next_attempt_at = now, now + timedelta(seconds=lease)
    Delivery.objects.using(using).filter(pk__in=[d.pk for d in claimed]).update(
        attempts=F("attempts") + 1,
        unfinished=True,
        last_attempt_at=now,
        next_attempt_at=now + timedelta(seconds=lease),
    )


def take_back(claimed: Collection[Delivery], *, using: str) -> None:
    """Undo a beginning of which nothing came."""
    rows = Delivery.objects.using(using).filter(pk__in=[d.pk for d in claimed], unfinished=True)
    rows.update(
        attempts=F("attempts") - 1,
        unfinished=False,
        last_attempt_at=None,
        next_attempt_at=timezone.now(),
    )


def still_running(begun: Collection[Delivery], *, using: str) -> bool:
    """Lock deliveries whose run was begun; False if somebody has settled one meanwhile."""
    rows = Delivery.objects.using(using).select_for_update().order_by("id")
    running = rows.filter(pk__in=[d.pk for d in begun], unfinished=True)
    return dict(running.values_list("pk", "attempts")) == {d.pk: d.attempts for d in begun}


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


def resolve(begun: Sequence[Delivery], durations: Sequence[float], *, using: str) -> None:
    """Note that deliveries took effect, in the receiver's transaction.

    Args:
        begun: As ``begin()`` left them.
        durations: Seconds that the run of each took.
        using: Database alias.
    """
    now = timezone.now()
    ended = zip(begun, durations, strict=True)
    attempts.record([_ended(one, Outcome.SUCCEEDED, took) for one, took in ended], using=using)
    Delivery.objects.using(using).filter(pk__in=[d.pk for d in begun]).update(
        state=State.RESOLVED, unfinished=False, resolved_at=now, next_attempt_at=None
    )
    if signals.delivery_resolved.receivers:
        for one in begun:
            signals.delivery_resolved.tell(
                using=using,
                message=_ref(one),
                receiver=one.receiver,
                delivery_id=one.pk,
                attempt=one.attempts,
            )


def fail_again(delivery: Delivery, failure: Failure, *, using: str) -> None:
    """Note that the run which was begun has failed."""
    started_at = delivery.last_attempt_at or timezone.now()
    _note(delivery, failure)
    attempts.record([_failed(delivery, failure, started_at)], using=using)
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
            "fingerprint",
        ],
    )
    _count(delivery, using)


def _count(delivery: Delivery, using: str) -> None:
    """Count a failure, once it is committed."""

    def count() -> None:
        counts.add(counts.Outcome.FAILED, delivery.receiver, using=using)
        if delivery.state == State.DEAD:
            counts.add(counts.Outcome.DEAD, delivery.receiver, using=using)

    transaction.on_commit(count, using=using)
    _tell(delivery, using)


def retry(
    ids: Collection[int],
    *,
    reason: str = "",
    at: datetime | None = None,
    bulk_action: int | None = None,
    by: Actor = None,
    using: str = DEFAULT_DB_ALIAS,
) -> int:
    """Have open deliveries run again at the next retry pass; one that runs now goes on.

    Args:
        ids: Of deliveries that are dead or retrying.
        reason: Kept in Django's log.
        at: When they are due; None: now.
        bulk_action: Number of the bulk action that it belongs to.
        by: The user who asks; written to Django's log.
        using: Database alias.

    Returns:
        How many will run again.

    Raises:
        InvalidStateError: One of them is resolved or discarded; none is touched.
    """
    with transaction.atomic(using=using):
        found = _lock_open(ids, "retried", using)
        rows = Delivery.objects.using(using).filter(pk__in=[delivery.pk for delivery in found])
        now = timezone.now()
        # Made due once more, it would run beside itself.
        running = rows.filter(unfinished=True, next_attempt_at__gt=now)
        rows.exclude(pk__in=list(running.values_list("pk", flat=True))).update(
            state=State.RETRYING,
            unfinished=False,
            reason="",
            next_attempt_at=now if at is None else at,
            resolved_at=None,
        )
        _log(rows, found, "retried", reason, bulk_action, by)
    return len(found)


def discard(
    ids: Collection[int],
    *,
    reason: str,
    bulk_action: int | None = None,
    by: Actor = None,
    using: str = DEFAULT_DB_ALIAS,
) -> int:
    """Close open deliveries without running them; those that waited behind them go on.

    Args:
        ids: Of deliveries that are dead or retrying.
        reason: Kept with the delivery and in Django's log.
        bulk_action: Number of the bulk action that it belongs to.
        by: The user who asks.
        using: Database alias.

    Returns:
        How many were discarded.

    Raises:
        InvalidStateError: One of them is resolved or discarded; none is touched.
    """
    with transaction.atomic(using=using):
        found = _lock_open(ids, "discarded", using)
        rows = Delivery.objects.using(using).filter(pk__in=[delivery.pk for delivery in found])
        rows.update(
            state=State.DISCARDED,
            unfinished=False,
            reason=reason,
            next_attempt_at=None,
            resolved_at=timezone.now(),
        )
        _log(rows, found, "discarded", reason, bulk_action, by)
        signals.deliveries_discarded.tell(
            using=using, delivery_ids=[delivery.pk for delivery in found], reason=reason
        )
    return len(found)


def lock(pk: int, verb: str, *, using: str) -> Delivery:
    """Lock an open delivery in the transaction of the caller.

    Args:
        pk: Its id.
        verb: What is to be done, as a past participle.
        using: Database alias.

    Raises:
        InvalidStateError: There is none, or it is settled.
    """
    rows = Delivery.objects.using(using).select_for_update()
    delivery = rows.filter(pk=pk).first()
    if delivery is None:
        raise InvalidStateError(f"There is no delivery {pk} in database {using!r}.")
    _refuse_settled(delivery, verb)
    return delivery


def overwrite(
    delivery: Delivery, record: Record, *, tenant: str, event_type: str, edited_at: datetime | None
) -> None:
    """Give a locked delivery another message; a run that was begun with the old one is void.

    Args:
        delivery: As ``lock()`` returned it.
        record: Its key, headers and value count.
        tenant: Of the event; "" where there is none or it cannot be read.
        event_type: Likewise.
        edited_at: None: it is the original again, of which no second copy is kept.
    """
    if edited_at is None:
        delivery.original_raw_key = delivery.original_headers = delivery.original_payload = None
    elif delivery.edited_at is None:
        delivery.original_raw_key = delivery.raw_key
        delivery.original_headers = delivery.headers
        delivery.original_payload = delivery.payload
    delivery.edited_at = edited_at
    delivery.raw_key, delivery.key = record.key, key_text(record.key)
    delivery.headers, delivery.payload = encode_headers(record.headers), record.value
    delivery.tenant, delivery.event_type = storable(tenant)[:255], storable(event_type)[:100]
    if delivery.unfinished:
        delivery.unfinished, delivery.next_attempt_at = False, timezone.now()
    delivery.save(
        using=delivery._state.db,
        update_fields=[
            "original_raw_key",
            "original_headers",
            "original_payload",
            "edited_at",
            "raw_key",
            "key",
            "headers",
            "payload",
            "tenant",
            "event_type",
            "unfinished",
            "next_attempt_at",
        ],
    )


def fill_fingerprints(*, using: str, limit: int = _BATCH) -> int:
    """Give open deliveries of an older version of this package their fingerprints.

    Returns:
        How many got one; at most the limit.
    """
    rows = Delivery.objects.using(using).filter(fingerprint=None, state__in=Delivery.OPEN)
    columns = ("receiver", "error_class", "error", "traceback")
    found = list(rows.only(*columns).order_by("id")[:limit])
    for delivery in found:
        # One that has failed again in the meantime has a newer one.
        rows.filter(pk=delivery.pk).update(fingerprint=_fingerprint(delivery))
    return len(found)


def discard_replayed(replay: int, receivers: Collection[str], *, reason: str, using: str) -> int:
    """Close what is open of a replay that was cancelled, a batch in each transaction.

    Returns:
        How many were discarded.
    """
    rows = Delivery.objects.using(using).filter(
        receiver__in=receivers, state__in=Delivery.OPEN, replay=replay
    )
    done = 0
    while ids := list(rows.order_by("id").values_list("id", flat=True)[:_BATCH]):
        done += rows.filter(pk__in=ids).update(
            state=State.DISCARDED,
            unfinished=False,
            reason=reason,
            next_attempt_at=None,
            resolved_at=timezone.now(),
        )
    return done


def vanished(*, using: str) -> set[str]:
    """Names of receivers that have open deliveries and are no longer registered."""
    rows = Delivery.objects.using(using).filter(state__in=Delivery.OPEN)
    names = rows.order_by().values_list("receiver", flat=True).distinct()
    return {name for name in names if registry.get(name) is None}


def repoint(
    ids: Collection[int], *, receiver: str, by: Actor = None, using: str = DEFAULT_DB_ALIAS
) -> int:
    """Hand open deliveries of receivers that are no more to a registered one, to run from anew.

    Within their key they take their place among the open deliveries of the new receiver, by
    offset. What that receiver has handled of the key in the meantime stays ahead of them.

    Args:
        ids: Of deliveries that are dead or retrying.
        receiver: Name of the receiver that takes them on.
        by: The user who asks; written to Django's log.
        using: Database alias.

    Returns:
        How many were re-pointed.

    Raises:
        InvalidStateError: One of them is settled or belongs to a registered receiver; or the
            new one is not registered, does not want the event, has a delivery of it, or has
            open ones of its key on the wrong side. None is touched.
    """
    target = registry.get(receiver)
    if target is None:
        raise InvalidStateError(f"No receiver is registered as {receiver!r}.")
    if target.using != using:
        raise InvalidStateError(
            f"Receiver {receiver!r} keeps its deliveries in database {target.using!r}, not {using!r}."
        )
    try:
        with transaction.atomic(using=using):
            return _repoint(ids, target, by, using)
    except IntegrityError as error:
        raise InvalidStateError(
            f"Receiver {receiver!r} has a delivery of one of these events already."
        ) from error


def _repoint(ids: Collection[int], target: Receiver, by: Actor, using: str) -> int:
    found = list(
        Delivery.objects.using(using)
        .only("receiver", "event_id", "replay", "event_type", "state", "topic")
        .select_for_update()
        .filter(pk__in=ids)
        .order_by("pk")
    )
    for delivery in found:
        if refusal := _not_repointable(delivery, target):
            raise InvalidStateError(f"Delivery {delivery.pk} {refusal}")
    rows = Delivery.objects.using(using).filter(pk__in=[delivery.pk for delivery in found])
    rows.update(
        receiver=target.name,
        group=target.group,
        order=target.order,
        state=State.RETRYING,
        attempts=0,
        unfinished=False,
        next_attempt_at=timezone.now(),
    )
    if target.order == "key" and (pair := _inverted(rows, using)):
        raise InvalidStateError(
            f"Delivery {pair[0]} would run before delivery {pair[1]}, an earlier event of its key. "
            f"Settle the open deliveries of {target.name!r} first."
        )
    for name in sorted({delivery.receiver for delivery in found}):
        old = [delivery for delivery in found if delivery.receiver == name]
        log_action(old, f"re-pointed from {name} to {target.name}", by=by)
    return len(found)


def _not_repointable(delivery: Delivery, target: Receiver) -> str:
    """Why a delivery cannot be handed to a receiver; "" if it can."""
    if delivery.state not in Delivery.OPEN:
        return f"is {delivery.get_state_display()}; only open ones can be re-pointed."
    if registry.get(delivery.receiver) is not None:
        return f"belongs to {delivery.receiver!r}, which is registered: retry or discard it."
    topic = topics.parse_wire_topic(delivery.topic).topic
    if not target.listens_to(topic):
        return f"is of topic {topic!r}; {target.name!r} listens to {target.topic!r}."
    kind = delivery.event_type
    if kind and target.types is not None and kind not in target.types:
        return f"is of type {kind!r}, which {target.name!r} does not take."
    return ""


def _inverted(rows: QuerySet[Delivery], using: str) -> tuple[int, int] | None:
    """Ids of two open deliveries of one key that stand against their offsets, one of the rows."""
    others = Delivery.objects.using(using).filter(
        state__in=Delivery.OPEN,
        order="key",
        receiver=OuterRef("receiver"),
        topic=OuterRef("topic"),
        key=OuterRef("key"),
        partition=OuterRef("partition"),
        replay=OuterRef("replay"),
    )
    before = others.filter(id__lt=OuterRef("id"), offset__gt=OuterRef("offset")).values("id")[:1]
    after = others.filter(id__gt=OuterRef("id"), offset__lt=OuterRef("offset")).values("id")[:1]
    found = rows.annotate(early=Subquery(before), late=Subquery(after))
    pair = found.exclude(early=None, late=None).values_list("pk", "early", "late").first()
    if pair is None:
        return None
    pk, early, late = pair
    return (early, pk) if early is not None else (pk, late)


class Erased(NamedTuple):
    """How many deliveries were blanked, and how many of them were discarded by it."""

    blanked: int
    discarded: int


def erase(ids: Collection[int], *, reason: str, discard_open: bool, using: str) -> Erased:
    """Blank what deliveries hold of their events and errors, in one transaction.

    The rows stay: without them an event that is read again would run again.

    Args:
        ids: In whatever state.
        reason: Kept with each delivery.
        discard_open: Whether open ones are discarded and blanked, or left as they are.
        using: Database alias.
    """
    with transaction.atomic(using=using):
        locked = Delivery.objects.using(using).select_for_update().filter(pk__in=ids)
        states = dict(locked.order_by("pk").values_list("pk", "state"))
        still_open = [pk for pk, state in states.items() if state in Delivery.OPEN]
        rows = Delivery.objects.using(using)
        if discard_open:
            rows.filter(pk__in=still_open).update(
                state=State.DISCARDED,
                unfinished=False,
                next_attempt_at=None,
                resolved_at=timezone.now(),
            )
        else:
            states = {pk: state for pk, state in states.items() if pk not in set(still_open)}
            still_open = []
        blanked = rows.filter(pk__in=list(states)).update(
            key=None,
            raw_key=None,
            payload=None,
            headers=b"",
            original_raw_key=None,
            original_payload=None,
            original_headers=None,
            error="",
            traceback="",
            reason=reason,
        )
        attempts.forget(list(states), using=using)
    return Erased(blanked, len(still_open))


def _lock_open(ids: Collection[int], verb: str, using: str) -> list[Delivery]:
    found = list(
        Delivery.objects.using(using)
        .only("receiver", "event_id", "state")  # thousands may be settled at once
        .select_for_update()
        .filter(pk__in=ids)
        .order_by("pk")
    )
    for delivery in found:
        _refuse_settled(delivery, verb)
    return found


def _refuse_settled(delivery: Delivery, verb: str) -> None:
    if delivery.state not in Delivery.OPEN:
        raise InvalidStateError(
            f"Delivery {delivery.pk} is {delivery.get_state_display()}; only open ones can be {verb}."
        )


def _log(
    rows: QuerySet[Delivery],
    settled: Sequence[Delivery],
    verb: str,
    reason: str,
    bulk_action: int | None,
    by: Actor,
) -> None:
    if bulk_action is not None:
        rows.update(bulk_action=bulk_action)
        verb = f"{verb} by bulk action {bulk_action}"
    log_action(settled, f"{verb}: {reason}" if reason else verb, by=by)
