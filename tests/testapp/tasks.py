"""Celery tasks as a project has them: they know nothing of tenants."""

from __future__ import annotations

from functools import partial

from celery import shared_task
from django.db import transaction

from folio_events import publish


@shared_task(ignore_result=True)
def publish_note(number: int, further: int = 0) -> None:
    """Record an event, and have another task record the next."""
    with transaction.atomic():
        publish("library.note", key=number, payload={"number": number})
        if further:
            transaction.on_commit(partial(publish_note.delay, number + 1, further - 1))


@shared_task(bind=True, ignore_result=True, max_retries=1)
def publish_note_at_the_second_try(self, number: int) -> None:
    if not self.request.retries:
        raise self.retry(countdown=0)
    publish("library.note", key=number, payload={"number": number})
