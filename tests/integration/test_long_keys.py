"""Keys that no index of PostgreSQL holds: letters in a row compress, random ones do not."""

from __future__ import annotations

import random
import string
from contextlib import suppress

import pytest
from django.db import transaction

from folio_events import RetryPolicy, publish
from folio_events.exceptions import EncodingError
from folio_events.models import Delivery, OutboxMessage
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

LONG = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=8000))


@pytest.mark.django_db
def test_a_long_key_is_recorded_or_refused_in_plain_words() -> None:
    """The write does not fail with a message about an index row."""
    with suppress(EncodingError), transaction.atomic():
        publish("library.lent", key=LONG, payload={})
        assert OutboxMessage.objects.get().key == LONG


@pytest.mark.django_db(transaction=True)
def test_a_failed_event_with_a_long_key_does_not_stop_its_partition(notes: NoteTopic) -> None:
    """It is kept like any other, and what comes after it is handled."""
    note_receiver("one", Mood(1), retry=RetryPolicy(attempts=1))
    notes.put("before", 0)
    notes.put(LONG, 1)
    notes.put("after", 2)
    notes.consume()
    assert effects("one") == [0, 2]
    assert Delivery.objects.get().state == "dead"
