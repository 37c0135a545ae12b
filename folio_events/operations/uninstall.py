"""Refuse to drop tables that hold what somebody has not had yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.management.base import CommandError
from django.db.migrations import Migration

from folio_events.models import BrokerPartition, BrokerRecord, Delivery, OutboxMessage
from folio_events.operations.retention import first_unread, unpublished


def refuse_to_drop(
    *, using: str, plan: Sequence[tuple[Migration, bool]] = (), **_kwargs: Any
) -> None:
    """Stop ``migrate folio_events zero`` before it begins, where events would be lost by it.

    Receives ``pre_migrate``.

    Raises:
        CommandError: Messages are not published, deliveries open, or records unread.
    """
    first = ("folio_events", "0001_initial")
    if not any(back and (step.app_label, step.name) == first for step, back in plan):
        return
    messages = unpublished(OutboxMessage.objects.using(using)).count()
    deliveries = Delivery.objects.using(using).filter(state__in=Delivery.OPEN).count()
    records = _unread(using)
    if messages or deliveries or records:
        raise CommandError(
            f"Database {using!r}: {messages} outbox messages are not published, {deliveries} "
            f"deliveries are open and {records} records of the database broker are unread. They "
            "would be lost. Let relay, consumer and retries end their work and settle the dead "
            "letters first, or delete what may be lost."
        )


def _unread(using: str) -> int:
    places = BrokerPartition.objects.using(using).values_list("topic", "partition")
    count = 0
    for topic, partition in list(places):
        start = first_unread(topic, partition, using=using)
        if start is not None:
            rows = BrokerRecord.objects.using(using).filter(topic=topic, partition=partition)
            count += rows.filter(offset__gte=start).count()
    return count
