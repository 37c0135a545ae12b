"""What happens, as Django signals: sent after the commit, and never in the way of a delivery."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.dispatch import Signal

from folio_events.event import Event


class HandledEvent(NamedTuple):
    """An event that took effect in a receiver."""

    event: Event
    #: When the broker or the producer stamped it, in seconds since 1970; None where its
    #: receiver is told by another way than a group.
    published_at: float | None
    #: Seconds that the receiver ran.
    seconds: float


class Happening(Signal):
    """A signal with named facts; its sender is always None, and ``using`` a fact of each.

    Args:
        facts: Names of the keyword arguments that a handler gets beside ``using``.
    """

    def __init__(self, *facts: str) -> None:
        super().__init__()
        self.facts = facts

    def tell(self, *, using: str, **facts: Any) -> None:
        """Tell those who listen, once the running transaction has committed.

        A handler that fails is logged by Django and stops nothing. Where nobody listens this
        costs nothing.

        Args:
            using: Database alias of the transaction.
            facts: As declared.
        """
        if not self.receivers:
            return
        told = partial(self.send_robust, None, using=using, **facts)
        if connections[using].in_atomic_block:
            transaction.on_commit(told, using=using, robust=True)
        else:
            told()


#: Events were written to the outbox: ``rows``, each with event_id, topic, event_type, tenant, key
#: and occurred_at. Not of capture by trigger, which the database does alone.
events_recorded = Happening("rows")
#: A batch was acknowledged by the broker: ``batch``, a ``sending.PublishedBatch``.
events_published = Happening("batch")
#: The broker refused a message for good, or it follows one of its key that was refused.
message_withheld = Happening("outbox_id", "message", "reason")
#: The broker does not answer a relay that runs as a daemon; told once, until it does again.
relay_stalled = Happening("reason")
relay_resumed = Happening()
#: Events took effect in a receiver: ``handled``, a sequence of ``HandledEvent``.
events_handled = Happening("receiver", "handled", "retried")
#: A receiver failed on an event; ``retry_at`` is None where it is dead now.
delivery_failed = Happening(
    "message", "receiver", "delivery_id", "attempt", "error_class", "retry_at"
)
#: The same, and no retry will follow.
delivery_dead = Happening("message", "receiver", "delivery_id", "attempt", "error_class")
#: A delivery took effect at last.
delivery_resolved = Happening("message", "receiver", "delivery_id", "attempt")
#: People gave deliveries up.
deliveries_discarded = Happening("delivery_ids", "reason")
#: A broadcast receiver failed on an event; it is not tried again.
broadcast_failed = Happening("message", "receiver", "error_class")
#: A message without an owner was kept.
orphan_kept = Happening("message", "fault")
#: A receiver failed so often that it is left alone.
breaker_opened = Happening("receiver", "failures")
breaker_closed = Happening("receiver")
#: A group does not read a partition on until ``reset_offsets`` says where.
partition_stopped = Happening("group", "topic", "partition", "offset", "reason")


def tell_handled(
    receiver: str, handled: Sequence[HandledEvent], *, using: str, retried: bool = False
) -> None:
    """Tell that events took effect in a receiver."""
    if handled:
        events_handled.tell(using=using, receiver=receiver, handled=handled, retried=retried)
