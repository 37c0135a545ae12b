"""An outage of the database in the midst of a batch is no fault of the event in it."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError

from folio_events import consumer as consumer_module
from folio_events import inbox
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import Delivery
from tests.note_topic import NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


def test_outages_in_the_midst_of_one_batch_do_not_take_it_for_deadly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often a batch is begun without an end: the process has outlived it."""

    def lost(*_: object, **__: object) -> Any:
        raise OperationalError("the connection is lost")

    notes = NoteTopic(MemoryBroker({}))
    note_receiver("writer")
    notes.put("a", 0)
    for _ in range(4):
        with monkeypatch.context() as away:
            away.setattr(consumer_module, "dispatch", lost)
            away.setattr(inbox, "end", lost)
            with pytest.raises(OperationalError):
                notes.consume()
    notes.consume()
    assert effects("writer") == [0]
    assert not Delivery.objects.exists()
