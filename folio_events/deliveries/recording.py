"""What became of an event in a receiver: it failed, was held, began to run, took effect."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from folio_events import attempts, counts, signals
from folio_events.dialects import derived_id
from folio_events.event import Event
from folio_events.exceptions import DecodingError
from folio_events.fingerprints import fingerprint
from folio_events.logs import MessageRef, log_message, refer_to_record
from folio_events.message import Record, decode_headers, encode_headers, key_text, storable
from folio_events.models import Attempt, Delivery
from folio_events.receivers import Receiver

logger = logging.getLogger("folio_events.deliveries")

State = Delivery.State
Outcome = Attempt.Outcome
#: Longest error text and traceback that are kept, in characters.
MAX_ERROR, MAX_TRACEBACK = 10_000, 50_000


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


def fill_fingerprints(*, using: str, limit: int = 1000) -> int:
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


def _count(delivery: Delivery, using: str) -> None:
    """Count a failure, once it is committed."""

    def count() -> None:
        counts.add(counts.Outcome.FAILED, delivery.receiver, using=using)
        if delivery.state == State.DEAD:
            counts.add(counts.Outcome.DEAD, delivery.receiver, using=using)

    transaction.on_commit(count, using=using)
    _tell(delivery, using)
