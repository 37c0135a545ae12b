"""Celery tasks, to be put on beat."""

from __future__ import annotations

from celery import shared_task
from django.db import DEFAULT_DB_ALIAS

from folio_events import task_context
from folio_events.operations.retention import purge
from folio_events.redelivery import retry_due
from folio_events.relay_daemon import serve_slot

# A project that imports Celery only after its apps are ready imports this with its tasks.
task_context.install()


@shared_task(name="folio_events.tasks.relay_events", ignore_result=True)
def relay_events(using: str = DEFAULT_DB_ALIAS, *, wait: bool = False) -> int:
    """Publish what waits in the outbox, for at most RELAY_SLOT seconds.

    Args:
        using: Database alias.
        wait: Whether to stay until the slot is over, and publish what comes meanwhile.

    Returns:
        How many messages were published.
    """
    return serve_slot(using=using, wait=wait)


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
