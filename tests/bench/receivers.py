"""The receiver that the latency is measured to."""

from __future__ import annotations

from django.db import connection

from folio_events import Event, receiver

LATENCY_GROUP = "latency"


@receiver("bench.item", name="bench.store", group=LATENCY_GROUP)
def store(event: Event) -> None:
    """Write one row, by hand: Django's own share is not what is measured."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO bench_effect (event_id, key) VALUES (%s, %s)", [event.id, event.key or ""]
        )
