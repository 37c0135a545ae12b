"""The receivers of the fault runs: each writes down every change that took effect in it."""

from __future__ import annotations

import random

from folio_events import Event, RetryPolicy, receiver
from tests.testapp.models import Effect

#: Of a thousand runs of the shaky receiver, so many fail.
SHAKY_PER_MILLE = 6


def _write_down(name: str, event: Event) -> None:
    number = (event.new or {})["copies"]
    Effect.objects.create(receiver=name, event_id=event.id, key=event.key or "", note=str(number))


@receiver("library.book", name="steady")
def steady(event: Event) -> None:
    _write_down("steady", event)


@receiver("library.book", name="shaky", retry=RetryPolicy(attempts=1000, backoff=0.05))
def shaky(event: Event) -> None:
    _write_down("shaky", event)
    if random.randrange(1000) < SHAKY_PER_MILLE:
        raise ConnectionError("shaky")
