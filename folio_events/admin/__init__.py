"""The Django admin: outbox, withheld messages and deliveries, to look at and to settle."""

from __future__ import annotations

from folio_events.admin.deliveries import DeliveryAdmin
from folio_events.admin.outbox import OutboxMessageAdmin
from folio_events.admin.positions import ConsumerOffsetAdmin, ReceiverStateAdmin, RelayCursorAdmin
from folio_events.admin.withheld import WithheldMessageAdmin

__all__ = [
    "ConsumerOffsetAdmin",
    "DeliveryAdmin",
    "OutboxMessageAdmin",
    "ReceiverStateAdmin",
    "RelayCursorAdmin",
    "WithheldMessageAdmin",
]
