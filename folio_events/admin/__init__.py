"""The Django admin: outbox, withheld messages, deliveries and orphans, to look at and to settle."""

from __future__ import annotations

from folio_events.admin.dashboard import DashboardAdmin, ProcessAdmin
from folio_events.admin.dead_letters import BulkActionAdmin, DeadLetterAdmin
from folio_events.admin.deliveries import DeliveryAdmin
from folio_events.admin.orphans import OrphanAdmin
from folio_events.admin.outbox import OutboxMessageAdmin
from folio_events.admin.positions import ConsumerOffsetAdmin, ReceiverStateAdmin, RelayCursorAdmin
from folio_events.admin.replays import ReplayAdmin
from folio_events.admin.withheld import WithheldMessageAdmin

__all__ = [
    "BulkActionAdmin",
    "ConsumerOffsetAdmin",
    "DashboardAdmin",
    "DeadLetterAdmin",
    "DeliveryAdmin",
    "OrphanAdmin",
    "OutboxMessageAdmin",
    "ProcessAdmin",
    "ReceiverStateAdmin",
    "RelayCursorAdmin",
    "ReplayAdmin",
    "WithheldMessageAdmin",
]
