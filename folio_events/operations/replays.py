"""Writer of replays: start, take over, advance, finish, cancel."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from folio_events.audit import Actor, log_action
from folio_events.exceptions import InvalidStateError
from folio_events.models import Replay

State = Replay.State
Source = Replay.Source


def start(
    receivers: Collection[str],
    criteria: Mapping[str, Any],
    source: Replay.Source,
    *,
    reason: str,
    by: Actor,
    using: str,
) -> Replay:
    """Draw the number of a new replay and write down what it is.

    Args:
        receivers: Names of those that run events again.
        criteria: Which events, in values that JSON has.
        source: Where they are read.
        reason: Kept with it and in Django's log.
        by: The user who asks.
        using: Database alias of the receivers.

    Raises:
        ValueError: There is no reason.
    """
    if not reason.strip():
        raise ValueError("Say why: the reason is kept with the replay and in Django's log.")
    now = timezone.now()
    # A reset begins it and leaves the rest to the group.
    state = State.DONE if source == Source.RESET else State.RUNNING
    replay = Replay(
        state=state,
        source=source,
        receivers=sorted(receivers),
        criteria=dict(criteria),
        worker=uuid.uuid4(),
        reason=reason,
        created_by="" if by is None else str(by)[:255],
        created_at=now,
        updated_at=now,
        finished_at=now if state == State.DONE else None,
    )
    replay.save(using=using, force_insert=True)
    log_action([replay], f"replay {replay.pk} for {', '.join(replay.receivers)}: {reason}", by=by)
    return replay


def take_over(number: int, *, using: str) -> Replay:
    """Make this process the one that works on a replay; another one ends with its next batch.

    Raises:
        InvalidStateError: There is no such replay, or it has ended.
    """
    with transaction.atomic(using=using):
        replay = _lock(number, using)
        if replay.state != State.RUNNING:
            raise InvalidStateError(
                f"Replay {number} is {replay.get_state_display()}; only running ones go on."
            )
        replay.worker = uuid.uuid4()
        replay.save(using=using, update_fields=["worker"])
    return replay


def advance(
    replay: Replay, position: Mapping[str, Any], *, passed: int, unreadable: int, made: int
) -> None:
    """Write how far a replay is, in the transaction that made its deliveries.

    Raises:
        InvalidStateError: It was cancelled, or another process works on it.
    """
    _update(
        replay,
        position=dict(position),
        passed=F("passed") + passed,
        unreadable=F("unreadable") + unreadable,
        deliveries=F("deliveries") + made,
    )


def finish(replay: Replay) -> None:
    """Note that all deliveries of a replay are made.

    Raises:
        InvalidStateError: It was cancelled, or another process works on it.
    """
    _update(replay, state=State.DONE, finished_at=timezone.now())


def cancel(number: int, *, reason: str, by: Actor, using: str) -> Replay:
    """Have a replay make no more deliveries.

    Raises:
        InvalidStateError: There is no such replay, or the group's own reading is what goes on.
    """
    with transaction.atomic(using=using):
        replay = _lock(number, using)
        if replay.source == Source.RESET:
            raise InvalidStateError(
                f"Replay {number} is a reset of offsets, which has been made. Reset them anew."
            )
        now = timezone.now()
        replay.state, replay.updated_at, replay.finished_at = State.CANCELLED, now, now
        replay.save(using=using, update_fields=["state", "updated_at", "finished_at"])
        log_action([replay], f"replay {number} cancelled: {reason}", by=by)
    return replay


def _update(replay: Replay, **values: Any) -> None:
    rows = Replay.objects.using(replay._state.db)
    own = rows.filter(pk=replay.pk, state=State.RUNNING, worker=replay.worker)
    if not own.update(updated_at=timezone.now(), **values):
        state = State(rows.values_list("state", flat=True).get(pk=replay.pk))
        why = "another process works on it" if state == State.RUNNING else f"it is {state.label}"
        raise InvalidStateError(f"Replay {replay.pk} does not go on here: {why}.")


def _lock(number: int, using: str) -> Replay:
    replay = Replay.objects.using(using).select_for_update().filter(pk=number).first()
    if replay is None:
        raise InvalidStateError(f"There is no replay {number} in database {using!r}.")
    return replay
