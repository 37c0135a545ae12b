"""Writer of bulk actions: start, work off, cancel what is done to all rows that match."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.db import DEFAULT_DB_ALIAS, IntegrityError, transaction
from django.db.models import Count, Max, QuerySet
from django.utils import timezone

from folio_events import deliveries, withheld
from folio_events.audit import Actor, log_action
from folio_events.exceptions import FolioEventsError, InvalidStateError
from folio_events.models import BulkAction, Delivery
from folio_events.operations.dead_letters import Selection

logger = logging.getLogger("folio_events.bulk_actions")

Action, Subject, State = BulkAction.Action, BulkAction.Subject, BulkAction.State
#: Most rows that are settled in one transaction.
BATCH = 500
#: Seconds that a retry pass spends on bulk actions before it runs deliveries.
_MOST_SECONDS = 5.0
#: How far ahead rows are made due, and how much of a standstill is made up for, in seconds.
_AHEAD, _MADE_UP = 10.0, 60.0
_FITTING = {
    Subject.DELIVERY: (Action.RETRY, Action.DISCARD),
    Subject.WITHHELD: (Action.RELEASE, Action.DISCARD),
}


def matching(
    subject: BulkAction.Subject, selection: Selection, *, using: str = DEFAULT_DB_ALIAS
) -> QuerySet[Any]:
    """What a bulk action would settle: dead letters, or refused messages.

    Raises:
        ValueError: The selection names what such rows do not have.
    """
    if subject == Subject.WITHHELD:
        return selection.refused(using=using)
    return selection.dead(using=using)


def start(
    action: BulkAction.Action,
    selection: Selection,
    *,
    reason: str,
    subject: BulkAction.Subject = Subject.DELIVERY,
    rate: float | None = None,
    by: Actor = None,
    using: str = DEFAULT_DB_ALIAS,
) -> BulkAction:
    """Have all dead letters, or refused messages, that match settled in the background.

    The retry passes work it off, so it goes on after a process was killed. Rows that come
    later are left alone. Of two people who start the same one, the second gets the first one's.

    Args:
        action: Deliveries are retried or discarded, withheld messages released or discarded.
        selection: Which rows.
        reason: Kept with it, with what is discarded and in Django's log.
        subject: Of which table.
        rate: Most rows a second, on the average of a minute; None: as many as go.
        by: The user who asks.
        using: Database alias.

    Raises:
        ValueError: There is no reason, the rate is not above 0, or the action or selection
            does not fit the subject.
        InvalidStateError: Nothing matches, or another action on the same rows is running.
    """
    if not reason.strip():
        raise ValueError("Say why: the reason is kept with the bulk action and in Django's log.")
    if rate is not None and not rate > 0:
        raise ValueError(f"The rate must be above 0, not {rate}.")
    if action not in _FITTING[subject]:
        fitting = " or ".join(_FITTING[subject])
        raise ValueError(f"No {action} of {subject.label}: {fitting} them.")
    criteria = selection.criteria()
    rows = matching(subject, selection, using=using)
    last, total = rows.aggregate(last=Max("pk"))["last"], rows.count()
    if not total:
        raise InvalidStateError("Nothing matches: there is nothing to do.")
    now = timezone.now()
    bulk = BulkAction(
        subject=subject,
        action=action,
        criteria=criteria,
        digest=hashlib.sha256(json.dumps(criteria, sort_keys=True).encode()).hexdigest(),
        last_id=last,
        total=total,
        rate=rate,
        next_at=now,
        reason=reason,
        created_by="" if by is None else str(by)[:255],
        user="" if by is None else str(by.pk)[:255],
        created_at=now,
        updated_at=now,
    )
    try:
        with transaction.atomic(using=using):
            bulk.save(using=using, force_insert=True)
            log_action([bulk], f"started, {total} {subject.label} at first: {reason}", by=by)
    except IntegrityError:
        return _running_one(bulk, using)
    return bulk


def _running_one(bulk: BulkAction, using: str) -> BulkAction:
    running = BulkAction.objects.using(using).filter(
        subject=bulk.subject, digest=bulk.digest, state=State.RUNNING
    )
    other = running.first()
    if other is not None and other.action == bulk.action:
        return other
    what = (
        "Another one" if other is None else f"Bulk action {other.pk} ({other.get_action_display()})"
    )
    raise InvalidStateError(f"{what} works on the same rows. Wait for its end, or cancel it.")


def cancel(
    pk: int, *, reason: str = "", by: Actor = None, using: str = DEFAULT_DB_ALIAS
) -> BulkAction:
    """Have a bulk action settle no more; what it has settled stays so.

    Raises:
        InvalidStateError: There is none, or it has ended.
    """
    with transaction.atomic(using=using):
        bulk = BulkAction.objects.using(using).select_for_update().filter(pk=pk).first()
        if bulk is None:
            raise InvalidStateError(f"There is no bulk action {pk} in database {using!r}.")
        if bulk.state != State.RUNNING:
            raise InvalidStateError(f"Bulk action {pk} is {bulk.get_state_display()} already.")
        _end(bulk, State.CANCELLED)
        log_action([bulk], f"cancelled: {reason}" if reason else "cancelled", by=by)
    return bulk


def work_off(*, using: str = DEFAULT_DB_ALIAS, seconds: float = _MOST_SECONDS) -> int:
    """Go on with the bulk actions that are running, batch by batch.

    Safe when several do so at once, and after one was killed: each batch, and how far it came,
    is one transaction.

    Args:
        using: Database alias.
        seconds: After which no other batch is begun.

    Returns:
        How many rows were settled.
    """
    until = time.monotonic() + seconds
    settled = 0
    for pk in _running(using):
        try:
            while (count := _step(pk, using)) is not None:
                settled += count
                if time.monotonic() >= until:
                    return settled
        except (FolioEventsError, ValueError) as error:
            # One that another version has started must not keep deliveries from their runs.
            logger.error("bulk action %s does not go on: %s", pk, error)  # noqa: TRY400
    return settled


def _running(using: str) -> Sequence[int]:
    rows = BulkAction.objects.using(using).filter(state=State.RUNNING)
    # The one that waited longest first, so that none starves the others.
    return list(rows.order_by("updated_at").values_list("pk", flat=True))


def _step(pk: int, using: str) -> int | None:
    """Settle one batch; None: it has ended, may not go on yet, or somebody else is at it."""
    with transaction.atomic(using=using):
        rows = BulkAction.objects.using(using).select_for_update(skip_locked=True)
        bulk = rows.filter(pk=pk, state=State.RUNNING).first()
        if bulk is None:
            return None
        now = timezone.now()
        most = _allowed(bulk, now)
        if not most:
            return None
        wanted = matching(Subject(bulk.subject), Selection.of(bulk.criteria), using=using)
        ahead = wanted.filter(pk__gt=bulk.position, pk__lte=bulk.last_id).order_by("pk")
        ids = list(ahead.values_list("pk", flat=True)[:most])
        if not ids:
            _end(bulk, State.DONE)
            return None
        # Somebody may settle one by hand meanwhile; who comes second leaves it.
        still = list(
            ahead.filter(pk__in=ids).select_for_update(of=("self",)).values_list("pk", flat=True)
        )
        _settle(bulk, still, using)
        bulk.position, bulk.updated_at = ids[-1], now
        bulk.done += len(still)
        if bulk.rate:
            bulk.next_at += timedelta(seconds=len(still) / bulk.rate)
        bulk.save(using=using, update_fields=["position", "done", "next_at", "updated_at"])
    return len(still)


def _allowed(bulk: BulkAction, now: datetime) -> int:
    """How many rows may be settled now; moves a time that is long past forward."""
    if bulk.rate is None:
        return BATCH
    bulk.next_at = max(bulk.next_at, now - timedelta(seconds=_MADE_UP))
    free = (now + timedelta(seconds=_AHEAD) - bulk.next_at).total_seconds()
    return min(max(int(free * bulk.rate), 1 if bulk.next_at <= now else 0), BATCH)


def _settle(bulk: BulkAction, ids: list[int], using: str) -> None:
    by, said = _user(bulk), bulk.reason
    if bulk.subject == Subject.WITHHELD:
        if bulk.action == Action.RELEASE:
            withheld.release(ids, by=by, using=using)
        else:
            withheld.discard(ids, reason=said, by=by, using=using)
    elif bulk.action == Action.DISCARD:
        deliveries.discard(ids, reason=said, bulk_action=bulk.pk, by=by, using=using)
    else:
        for at, part in _spread(bulk, ids):
            deliveries.retry(part, reason=said, at=at, bulk_action=bulk.pk, by=by, using=using)


def _spread(bulk: BulkAction, ids: list[int]) -> Iterator[tuple[datetime | None, list[int]]]:
    """Ids with the time when they are due: second by second as the rate allows."""
    if bulk.rate is None:
        yield None, ids
        return
    size = max(int(bulk.rate), 1)
    for first in range(0, len(ids), size):
        yield bulk.next_at + timedelta(seconds=first / bulk.rate), ids[first : first + size]


def _user(bulk: BulkAction) -> Actor:
    if not bulk.user:
        return None
    users = get_user_model()._default_manager  # noqa: SLF001 - the one that any user model has
    user: Actor = users.filter(pk=bulk.user).first()
    return user


def _end(bulk: BulkAction, state: BulkAction.State) -> None:
    bulk.state = state
    bulk.updated_at = bulk.finished_at = timezone.now()
    bulk.save(using=bulk._state.db, update_fields=["state", "updated_at", "finished_at"])


def outcome(bulk: BulkAction) -> dict[str, int]:
    """What became of the deliveries that a bulk action settled last: state to number."""
    rows = Delivery.objects.using(bulk._state.db or DEFAULT_DB_ALIAS).filter(bulk_action=bulk.pk)
    return dict(rows.order_by().values_list("state").annotate(Count("id")))
