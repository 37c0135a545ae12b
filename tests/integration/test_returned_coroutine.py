"""A plain function that returns a coroutine has done nothing, and is not taken for done."""

from __future__ import annotations

import pytest

from folio_events import Event, receiver
from folio_events.models import Delivery, InboxEntry
from tests.note_topic import NoteTopic

pytestmark = pytest.mark.django_db


def test_a_receiver_that_returns_a_coroutine_fails_by_name(notes: NoteTopic) -> None:
    """The event becomes a delivery, and Python has no coroutine to warn of."""
    ran: list[Event] = []

    async def work(event: Event) -> None:
        ran.append(event)

    receiver("library.note", name="around")(lambda event: work(event))
    notes.put("a", 1)
    notes.consume()

    delivery = Delivery.objects.get()
    assert delivery.error_class.endswith("UnawaitedCoroutineError")
    assert "around returned a coroutine" in delivery.error
    assert not InboxEntry.objects.exists()
    assert ran == []
