"""What came, in the order in which it took effect."""

from __future__ import annotations

from folio_events import Event, receiver
from tests.testapp.models import Effect


@receiver("library.note", name="ledger")
def record(event: Event) -> None:
    Effect.objects.create(
        receiver="ledger",
        event_id=event.id,
        key=f"{event.tenant}/{event.key}",
        note=f"{event.wire_topic} {event.payload['number']}",
    )
