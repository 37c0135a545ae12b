"""One retry pass: deliveries whose time has come run again, in the order of their key."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from django.db import DEFAULT_DB_ALIAS, transaction

from folio_events import breakers, counts, deliveries, inbox, signals
from folio_events.conf import get_settings
from folio_events.deliveries import Failure
from folio_events.dialects import decode
from folio_events.dispatch import ProcessEndedError, retrying_transients
from folio_events.event import Event
from folio_events.exceptions import ConfigurationError
from folio_events.inbox import Effect
from folio_events.models import Delivery
from folio_events.operations import bulk_actions
from folio_events.receivers import Receiver, registry
from folio_events.running import run
from folio_events.signals import HandledEvent

#: Seconds, beyond the receiver's own timeout, after which a run that is not heard of counts
#: as one that ended the process.
LEASE = 60.0


#: Most deliveries of a key that run in one transaction.
CHAIN_BATCH = 100


class _Ran(NamedTuple):
    """A delivery that was run."""

    delivery: Delivery
    receiver: Receiver
    succeeded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPass:
    """What one retry pass did, in deliveries."""

    resolved: int = 0
    failed: int = 0


def retry_due(
    *,
    receivers: Collection[str] | None = None,
    limit: int | None = None,
    told: Callable[[int], None] = lambda _count: None,
    using: str = DEFAULT_DB_ALIAS,
) -> RetryPass:
    """Work off bulk actions, then run the deliveries of one database whose time has come.

    Safe when several run at once: each delivery is locked while it runs. A run is counted
    before it starts, so that one which ends the process counts too.

    Args:
        receivers: Names of those that run; None: all that keep their state in the database.
        limit: Most deliveries; defaults to RETRY_BATCH_SIZE.
        told: Called, outside transactions, with how many more were run.
        using: Database alias.

    Returns:
        How many took effect and how many failed again.

    Raises:
        ConfigurationError: A receiver is none of the database.
    """
    names = _names(receivers, using)
    deliveries.fill_fingerprints(using=using)
    bulk_actions.work_off(using=using)
    left_alone = breakers.open_names(using=using) & names
    most = limit or get_settings().RETRY_BATCH_SIZE
    outcomes: list[bool] = []
    while len(outcomes) < most:
        # Resolving one makes the next of its key due: a chain runs until one fails.
        ran = _run_next(names - left_alone, using)
        if ran is None:
            break
        outcomes.append(ran.succeeded)
        told(1)
        while ran.succeeded and len(outcomes) < most:
            count = _run_followers(ran, min(most - len(outcomes), CHAIN_BATCH), using)
            if not count:
                break
            outcomes += [True] * count
            told(count)
    for name in sorted(left_alone):
        outcomes += _probe(name, using)
    counts.flush(using=using, at_once=True)
    return RetryPass(resolved=outcomes.count(True), failed=outcomes.count(False))


def _names(receivers: Collection[str] | None, using: str) -> set[str]:
    known = {receiver.name for receiver in registry if receiver.using == using}
    if receivers is None:
        return known
    if unknown := sorted(set(receivers) - known):
        raise ConfigurationError(
            f"No receiver with database {using!r} is registered as {', '.join(unknown)}."
        )
    return set(receivers)


def _probe(name: str, using: str) -> list[bool]:
    """Try one delivery of a receiver whose breaker is open, if its pause is over."""
    receiver = registry.get(name)
    if receiver is None or not deliveries.due([name], using=using).exists():
        return []
    if not breakers.take_probe(receiver, using=using):
        return []
    ran = _run_next({name}, using)
    if ran is not None and ran.succeeded:
        breakers.succeeded(receiver, using=using)
    return [] if ran is None else [ran.succeeded]


def _run_next(names: Collection[str], using: str) -> _Ran | None:
    claimed = _claim(names, using)
    if claimed is None:
        return None
    delivery, receiver, failure = claimed
    return _Ran(delivery, receiver, failure is None and _redeliver(delivery, receiver, using))


def _run_followers(ran: _Ran, limit: int, using: str) -> int:
    """Run what was held behind a delivery in one transaction, as a batch of the consumer's.

    One by one, a key that is written to all the time would never catch up.

    Returns:
        How many took effect; 0 leaves them to be run one by one.
    """
    head, receiver = ran.delivery, ran.receiver
    # A run counts before it starts: all count that a process takes along when it ends.
    if receiver.mode != "transaction" or receiver.retry.attempts < 2 or head.order != "key":
        return 0
    with transaction.atomic(using=using):
        followers = deliveries.claim_followers(head, limit, using=using)
        if len(followers) < 2:
            return 0
        lease = LEASE + (receiver.timeout or 0) * len(followers)
        deliveries.begin(followers, lease=lease, using=using)
    try:
        events = [_event(delivery) for delivery in followers]
        with transaction.atomic(using=using):
            if not deliveries.still_running(followers, using=using):
                deliveries.take_back(followers, using=using)
                return 0
            handled = _take_effects(followers, receiver, events, using)
    except Exception:  # noqa: BLE001 - it comes again when they run one by one
        with transaction.atomic(using=using):
            deliveries.take_back(followers, using=using)
        return 0
    _tell(receiver, handled, using)
    return len(followers)


def _claim(names: Collection[str], using: str) -> tuple[Delivery, Receiver, Failure | None] | None:
    """Take the next due delivery and count its run; one that used up its runs is dead."""
    with transaction.atomic(using=using):
        delivery = deliveries.claim(names, using=using)
        receiver = None if delivery is None else registry.get(delivery.receiver)
        if delivery is None or receiver is None:
            return None
        if delivery.unfinished and delivery.attempts >= receiver.retry.attempts:
            error = ProcessEndedError("The process ended during the last attempt.")
            failure = Failure(error=error, attempt=delivery.attempts, pause=None)
            deliveries.fail_again(delivery, failure, using=using)
            return delivery, receiver, failure
        deliveries.begin([delivery], lease=LEASE + (receiver.timeout or 0), using=using)
    return delivery, receiver, None


def _redeliver(delivery: Delivery, receiver: Receiver, using: str) -> bool:
    started = time.monotonic()
    handled: list[HandledEvent] = []

    def attempt() -> None:
        handled.clear()
        event = _event(delivery)
        if receiver.mode != "transaction":
            handled.extend(_work_outside(delivery, receiver, event, using))
            return
        with transaction.atomic(using=using):
            if deliveries.still_running([delivery], using=using):
                handled.extend(_take_effects([delivery], receiver, [event], using))

    try:
        retrying_transients(attempt, using=using)
    except Exception as error:  # noqa: BLE001 - it is kept with the delivery
        pause = receiver.retry.pause(error, delivery.attempts)
        failure = Failure(
            error=error,
            attempt=delivery.attempts,
            pause=pause,
            duration=time.monotonic() - started,
        )
        with transaction.atomic(using=using):
            if deliveries.still_running([delivery], using=using):
                deliveries.fail_again(delivery, failure, using=using)
        return False
    _tell(receiver, handled, using)
    return True


def _tell(receiver: Receiver, handled: Sequence[HandledEvent], using: str) -> None:
    if handled:
        counts.add(counts.Outcome.HANDLED, receiver.name, len(handled), using=using)
        signals.tell_handled(receiver.name, handled, using=using, retried=True)


def _event(delivery: Delivery) -> Event:
    # Of an orphan that was assigned, only the delivery knows whose it is. What could not be
    # read, and so has no type, says it itself.
    tenant = delivery.tenant if delivery.event_type else None
    return decode(deliveries.record_of(delivery), tenant=tenant or None)


def _take_effects(
    begun: Sequence[Delivery], receiver: Receiver, events: Sequence[Event], using: str
) -> list[HandledEvent]:
    effects = [
        Effect(receiver.name, event.id, delivery.replay)
        for delivery, event in zip(begun, events, strict=True)
    ]
    # What listens to the topic keeps what it cannot read; only now the type is known.
    wanted = {
        effect for effect, event in zip(effects, events, strict=True) if receiver.wants(event)
    }
    fresh = inbox.record(wanted, using=using)
    durations, handled = [], []
    for delivery, effect, event in zip(begun, effects, events, strict=True):
        started = time.monotonic()
        if effect in fresh:
            run(receiver, event, replay=effect.replay)
            handled.append(_handled(delivery, event, started))
        durations.append(time.monotonic() - started)
    deliveries.resolve(begun, durations, using=using)
    if handled:
        breakers.count_anew(receiver, using=using)
    return handled


def _handled(delivery: Delivery, event: Event, started: float) -> HandledEvent:
    return HandledEvent(event, delivery.published_at.timestamp(), time.monotonic() - started)


def _work_outside(
    delivery: Delivery, receiver: Receiver, event: Event, using: str
) -> list[HandledEvent]:
    effect = Effect(receiver.name, event.id, delivery.replay)
    started = time.monotonic()
    handled = []
    if receiver.wants(event) and not inbox.seen(effect, using=using):
        run(receiver, event, replay=delivery.replay)
        handled.append(_handled(delivery, event, started))
    duration = time.monotonic() - started
    with transaction.atomic(using=using):
        if receiver.mode == "after_commit":
            inbox.record([effect], using=using)
        if deliveries.still_running([delivery], using=using):
            deliveries.resolve([delivery], [duration], using=using)
        if handled:
            breakers.count_anew(receiver, using=using)
    return handled
