"""Writes down whose notes came."""

from __future__ import annotations

from folio_events import Event, receiver
from tests.testapp.models import Effect


@receiver("library.note", name="library.whose")
def whose(event: Event) -> None:
    Effect.objects.create(
        receiver="library.whose", event_id=event.id, key=event.key or "", note=event.tenant or ""
    )
