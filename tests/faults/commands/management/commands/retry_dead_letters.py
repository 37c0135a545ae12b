"""``retry_dead_letters``: what a person does in the admin, to be repeated."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from folio_events import deliveries
from folio_events.exceptions import InvalidStateError
from folio_events.models import Delivery


class Command(BaseCommand):
    help = "Have every dead letter tried again."

    def handle(self, *_args: Any, **_options: Any) -> None:
        for pk in Delivery.objects.filter(state=Delivery.State.DEAD).values_list("pk", flat=True):
            try:
                deliveries.retry([pk])
            except InvalidStateError:
                self.stdout.write(f"somebody else retries {pk}")
