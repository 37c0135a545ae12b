"""What people do with deliveries: retry, discard, edit, re-point, erase."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import DEFAULT_DB_ALIAS, IntegrityError, transaction
from django.db.models import OuterRef, QuerySet, Subquery
from django.utils import timezone

from folio_events import attempts, signals, topics
from folio_events.audit import Actor, log_action
from folio_events.exceptions import InvalidStateError
from folio_events.message import Record, encode_headers, key_text, storable
from folio_events.models import Delivery
from folio_events.receivers import Receiver, registry

State = Delivery.State
#: Most deliveries of a cancelled replay that are closed in one transaction.
_BATCH = 1000


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
