"""One retry pass: deliveries whose time has come run again, in the order of their key."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import DEFAULT_DB_ALIAS, transaction

from folio_events import deliveries, dispatch, inbox
from folio_events.conf import get_settings
from folio_events.deliveries import Failure
from folio_events.dialects import decode
from folio_events.inbox import Effect
from folio_events.models import Delivery
from folio_events.receivers import Receiver, registry
from folio_events.retry import is_transient


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPass:
    """What one retry pass did, in deliveries."""

    resolved: int = 0
    failed: int = 0


def retry_due(*, using: str = DEFAULT_DB_ALIAS, limit: int | None = None) -> RetryPass:
    """Run the deliveries of one database whose time has come.

    Safe when several run at once: each delivery is locked while it runs.

    Args:
        using: Database alias.
        limit: Most deliveries; defaults to RETRY_BATCH_SIZE.

    Returns:
        How many took effect and how many failed again.
    """
    names = {receiver.name for receiver in registry if receiver.using == using}
    resolved = failed = 0
    for _ in range(limit or get_settings().RETRY_BATCH_SIZE):
        with transaction.atomic(using=using):
            # Resolving one makes the next of its key due: a chain runs until one fails.
            delivery = deliveries.claim(names, using=using)
            if delivery is None:
                break
            receiver = registry.get(delivery.receiver)
            if receiver is not None and _redeliver(delivery, receiver, using):
                resolved += 1
            else:
                failed += 1
    return RetryPass(resolved=resolved, failed=failed)


def _redeliver(delivery: Delivery, receiver: Receiver, using: str) -> bool:
    attempt = delivery.attempts + 1
    try:
        with transaction.atomic(using=using):
            event = decode(deliveries.record_of(delivery))
            effect = Effect(receiver.name, event.id, delivery.replay)
            # What listens to the topic keeps what it cannot read; now the type is known.
            if receiver.wants(event) and inbox.record([effect], using=using):
                dispatch.run(receiver, event)
            deliveries.resolve(delivery, using=using)
    except Exception as error:
        if is_transient(error):
            raise
        failure = Failure(error=error, attempt=attempt, pause=receiver.retry.pause(error, attempt))
        deliveries.fail_again(delivery, failure, using=using)
        return False
    return True
