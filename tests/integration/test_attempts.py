"""Each run of a delivery is kept: when it began, how long it took and how it ended."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from folio_events import RetryPolicy, attempts, deliveries
from folio_events.models import Attempt, Delivery
from folio_events.operations.retention import purge
from folio_events.redelivery import retry_due
from tests.note_topic import Mood, NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)
AT_ONCE = RetryPolicy(attempts=50, backoff=0)


def kept() -> list[tuple[int, str]]:
    return list(Attempt.objects.order_by("id").values_list("number", "outcome"))


def test_runs_are_kept_from_the_first_failure_to_the_success(notes: NoteTopic) -> None:
    """Each with its own error; the one that succeeded has none."""
    mood = Mood(0)
    note_receiver("one", mood, retry=AT_ONCE)
    before = timezone.now()
    notes.put()
    notes.consume()
    mood.error = OSError("another error")
    retry_due(limit=1)
    mood.bad.clear()
    retry_due()

    assert kept() == [(1, "failed"), (2, "failed"), (3, "succeeded")]
    first, second, third = Attempt.objects.order_by("id")
    assert {a.delivery_id for a in (first, second, third)} == {Delivery.objects.get().pk}
    assert (first.error, second.error, third.error) == ("a bad number", "another error", "")
    assert "OSError" in second.traceback
    assert "OSError" not in first.traceback
    assert before <= first.started_at <= second.started_at <= third.started_at <= timezone.now()
    for attempt in (first, second, third):
        assert attempt.receiver == "one"
        assert attempt.duration is not None
        assert 0 < attempt.duration < 60


def test_what_is_held_has_no_attempt_until_it_runs(notes: NoteTopic) -> None:
    """A chain that runs in one transaction keeps a run of each."""
    mood = Mood(0)
    note_receiver("one", mood, retry=AT_ONCE)
    notes.put_all(["k"] * 4)
    notes.consume()
    assert kept() == [(1, "failed")]
    mood.bad.clear()
    retry_due()
    assert kept() == [(1, "failed"), (2, "succeeded"), *[(1, "succeeded")] * 3]
    assert len(set(Attempt.objects.values_list("delivery", flat=True))) == 4


def test_a_chain_that_is_taken_back_leaves_no_attempts(notes: NoteTopic) -> None:
    """Nothing came of those runs; they come again one by one."""
    mood = Mood(0, 2)
    note_receiver("one", mood, retry=AT_ONCE)
    notes.put_all(["k"] * 3)
    notes.consume()
    mood.bad = {2}
    retry_due(limit=3)
    assert kept() == [(1, "failed"), (2, "succeeded"), (1, "succeeded"), (1, "failed")]


def test_a_run_that_ended_the_process_is_kept_as_one_without_end(notes: NoteTopic) -> None:
    """When it is begun again, the beginning of the lost one is known and its length is not."""
    mood = Mood(0)
    note_receiver("one", mood, retry=AT_ONCE)
    notes.put()
    notes.consume()
    begun = timezone.now() - timedelta(minutes=5)
    Delivery.objects.update(attempts=2, unfinished=True, last_attempt_at=begun)
    mood.bad.clear()
    retry_due()
    assert kept() == [(1, "failed"), (2, "lost"), (3, "succeeded")]
    lost = Attempt.objects.get(number=2)
    assert (lost.started_at, lost.duration) == (begun, None)


def test_an_event_that_ends_the_process_for_the_last_time_is_kept_as_one_without_end(
    notes: NoteTopic,
) -> None:
    """It is dead, and no run of it is missing."""
    note_receiver("one", Mood(0), retry=RetryPolicy(attempts=2, backoff=0))
    notes.put()
    notes.consume()
    Delivery.objects.update(attempts=2, unfinished=True, last_attempt_at=timezone.now())
    retry_due()
    assert kept() == [(1, "failed"), (2, "lost")]
    assert "ProcessEndedError" in Attempt.objects.get(number=2).error_class


def test_only_the_newest_attempts_of_a_delivery_are_kept(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that fails for weeks does not fill the table; other deliveries keep theirs."""
    monkeypatch.setattr(attempts, "MAX_KEPT", 3)
    note_receiver("one", Mood(0, 1), retry=AT_ONCE, order="none")
    notes.put_all(["k"] * 2)
    notes.consume()
    kept_of = Delivery.objects.order_by("offset").first()
    assert kept_of is not None
    Delivery.objects.exclude(pk=kept_of.pk).update(
        next_attempt_at=timezone.now() + timedelta(days=1)
    )
    for _ in range(5):
        retry_due(limit=1)
    numbers = Attempt.objects.filter(delivery=kept_of).order_by("id")
    assert list(numbers.values_list("number", flat=True)) == [4, 5, 6]
    assert Attempt.objects.exclude(delivery=kept_of).count() == 1


def test_attempts_go_with_their_delivery(notes: NoteTopic) -> None:
    """What the purge deletes and what an erasure blanks has none any more."""
    note_receiver("one", Mood(0, 1), retry=RetryPolicy(attempts=1), order="none")
    notes.put_all(["k"] * 2)
    notes.consume()
    erased, purged = Delivery.objects.order_by("offset")
    deliveries.erase([erased.pk], reason="asked for", discard_open=True, using="default")
    assert list(Attempt.objects.values_list("delivery", flat=True)) == [purged.pk]
    long_ago = timezone.now() - timedelta(days=1000)
    Delivery.objects.filter(pk=purged.pk).update(state="discarded", resolved_at=long_ago)
    assert purge().deliveries == 1
    assert kept() == []
