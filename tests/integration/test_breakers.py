"""A receiver that fails across keys is left alone, probed, and taken back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone

from folio_events import CircuitBreaker, RetryPolicy
from folio_events.models import ConsumerOffset, Delivery, InboxEntry, ReceiverState
from folio_events.monitoring.status import status
from folio_events.redelivery import retry_due
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)

THREE = CircuitBreaker(failures=3, pause=60)


def let_the_pause_pass() -> None:
    ReceiverState.objects.update(probe_at=timezone.now() - timedelta(seconds=1))


def is_open(name: str) -> bool:
    return ReceiverState.objects.filter(receiver=name, probe_at__isnull=False).exists()


def test_enough_failures_in_a_row_open_the_breaker(notes: NoteTopic) -> None:
    """From then on events are kept without an attempt, and none of them is dead."""
    started = note_receiver("caller", Mood(*range(9)), breaker=THREE)
    notes.put_all("abcdefg")
    notes.consume()
    assert is_open("caller")
    # The batch began with the first; then each ran by itself until the third failure.
    assert started == [0, 0, 1, 2]
    assert (
        list(Delivery.objects.order_by("id").values_list("attempts", flat=True))
        == [1] * 3 + [0] * 4
    )
    assert not Delivery.objects.filter(state="dead").exists()


def test_a_success_in_between_begins_the_count_anew(notes: NoteTopic) -> None:
    """Single bad events do not open a breaker."""
    note_receiver("caller", Mood(0, 1, 3, 4), breaker=THREE)
    notes.put_all("abcdef")
    notes.consume()
    assert not is_open("caller")
    assert effects("caller") == [2, 5]


@pytest.mark.parametrize("mode", ["transaction", "after_commit"])
def test_a_success_of_the_retry_pass_begins_the_count_anew(notes: NoteTopic, mode: str) -> None:
    """The last run was fine; where nothing is counted, nothing is written."""
    mood = Mood(*range(9))
    note_receiver("caller", mood, breaker=THREE, mode=mode, retry=RetryPolicy(backoff=0))
    notes.put_all("ab")
    notes.consume()
    assert status().failures["caller"] == 2
    mood.bad = {1}

    assert retry_due(limit=1).resolved == 1
    assert status().failures["caller"] == 0
    written = ReceiverState.objects.get().updated_at
    mood.bad.clear()
    assert retry_due().resolved == 1

    assert ReceiverState.objects.get().updated_at == written


def test_an_effect_of_before_does_not_begin_the_count_anew(notes: NoteTopic) -> None:
    """A delivery whose event the inbox has is settled without a run."""
    note_receiver("caller", Mood(0), breaker=THREE, retry=RetryPolicy(backoff=0))
    event_id = notes.put("a", 0)
    notes.consume()
    InboxEntry.objects.create(receiver="caller", event_id=event_id, handled_at=timezone.now())

    assert retry_due().resolved == 1

    assert status().failures["caller"] == 1


def test_an_event_that_only_waits_is_no_success(notes: NoteTopic) -> None:
    """Followers of a failed key neither begin the count anew nor close an open breaker."""
    note_receiver("caller", Mood(*range(9)), breaker=THREE)
    notes.put_all("aabbc")
    notes.consume()
    assert is_open("caller")
    let_the_pause_pass()
    notes.put("a", 8)
    notes.consume()
    assert is_open("caller")


def test_other_receivers_go_on_while_one_is_left_alone(notes: NoteTopic) -> None:
    """A breaker belongs to one receiver."""
    note_receiver("caller", Mood(*range(9)), breaker=THREE)
    note_receiver("steady")
    notes.put_all("abcdefg")
    notes.consume()
    assert effects("steady") == list(range(7))


def test_the_retry_pass_leaves_it_alone_until_the_pause_is_over(notes: NoteTopic) -> None:
    """Due deliveries of a receiver whose breaker is open are not run."""
    started = note_receiver("caller", Mood(*range(9)), breaker=THREE, retry=RetryPolicy(backoff=0))
    notes.put_all("abcd")
    notes.consume()
    before = len(started)
    assert (retry_due().resolved, retry_due().failed) == (0, 0)
    assert len(started) == before


def test_a_failed_probe_keeps_the_breaker_open(notes: NoteTopic) -> None:
    """One event is tried, the others wait for the next pause."""
    started = note_receiver("caller", Mood(*range(9)), breaker=THREE, retry=RetryPolicy(backoff=0))
    notes.put_all("abcd")
    notes.consume()
    before = len(started)
    let_the_pause_pass()
    assert retry_due().failed == 1
    assert len(started) == before + 1
    assert is_open("caller")


def test_a_probe_that_succeeds_closes_the_breaker(notes: NoteTopic) -> None:
    """What was kept meanwhile takes effect with the next pass."""
    mood = Mood(*range(9))
    note_receiver("caller", mood, breaker=THREE, retry=RetryPolicy(backoff=0))
    notes.put_all("abcde")
    notes.consume()
    mood.bad.clear()
    let_the_pause_pass()
    assert retry_due().resolved == 1
    assert not is_open("caller")
    assert retry_due().resolved == 4
    assert sorted(effects("caller")) == [0, 1, 2, 3, 4]


def test_a_new_event_may_be_the_probe(notes: NoteTopic) -> None:
    """The consumer probes too, and its success closes the breaker."""
    mood = Mood(*range(9))
    note_receiver("caller", mood, breaker=THREE)
    notes.put_all("abc")
    notes.consume()
    mood.bad.clear()
    let_the_pause_pass()
    notes.put("new", 10)
    notes.consume()
    assert not is_open("caller")
    assert effects("caller") == [10]


def test_too_many_kept_events_pause_the_partition(
    notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """The log keeps what the table of deliveries should not have to."""
    folio_events(MAX_WAITING=5)
    note_receiver("caller", Mood(*range(20)), breaker=THREE)
    notes.put_all("abcdefghij")
    notes.consume()
    assert Delivery.objects.count() == 5
    assert ConsumerOffset.objects.get().offset == 5


def test_without_a_breaker_every_event_is_tried(notes: NoteTopic) -> None:
    """None turns it off."""
    started = note_receiver("caller", Mood(*range(9)), breaker=None)
    notes.put_all("abcde")
    notes.consume()
    assert set(started) == set(range(5))
    assert not ReceiverState.objects.exists()
