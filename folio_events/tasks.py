"""Celery tasks, to be put on beat."""

from __future__ import annotations

import time

from celery import shared_task
from django.db import DEFAULT_DB_ALIAS

from folio_events.conf import get_settings
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from folio_events.retention import purge


@shared_task(name="folio_events.tasks.relay_events", ignore_result=True)
def relay_events(using: str = DEFAULT_DB_ALIAS) -> int:
    """Publish what waits in the outbox, for at most RELAY_SLOT seconds.

    Returns:
        How many messages were published.
    """
    end = time.monotonic() + get_settings().RELAY_SLOT
    published = 0
    while True:
        result = drain(using=using)
        published += result.published
        if not result.more or time.monotonic() >= end:
            return published


@shared_task(name="folio_events.tasks.retry_deliveries", ignore_result=True)
def retry_deliveries(using: str = DEFAULT_DB_ALIAS) -> int:
    """Run the deliveries whose time has come.

    Returns:
        How many took effect.
    """
    return retry_due(using=using).resolved


@shared_task(name="folio_events.tasks.purge_events", ignore_result=True)
def purge_events(using: str = DEFAULT_DB_ALIAS) -> int:
    """Delete what is settled and past its retention.

    Returns:
        How many outbox messages were deleted.
    """
    return purge(using=using).outbox_messages
