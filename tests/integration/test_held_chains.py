"""What was held behind a delivery runs as one batch once that has succeeded."""

from __future__ import annotations

from collections import Counter

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from folio_events import Event, RetryPolicy, deliveries
from folio_events.models import Delivery, InboxEntry
from folio_events.redelivery import RetryPass, retry_due
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)
PATIENT = RetryPolicy(backoff=100)


def held_behind_the_first(notes: NoteTopic, count: int, mood: Mood) -> None:
    """Have the first note of a key fail, and the others wait behind it."""
    notes.put_all("a" * count)
    notes.consume()
    mood.bad.clear()
    make_due()


def make_due() -> None:
    Delivery.objects.filter(state="retrying").update(next_attempt_at=timezone.now())


def attempts() -> list[int]:
    return list(Delivery.objects.order_by("offset").values_list("attempts", flat=True))


def test_a_long_chain_takes_few_statements(notes: NoteTopic) -> None:
    """Fewer than one for each delivery, or a busy key would never catch up."""
    mood = Mood(0)
    note_receiver("one", mood, retry=PATIENT)
    held_behind_the_first(notes, 60, mood)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert retry_due() == RetryPass(resolved=60)
    assert effects("one") == list(range(60))
    own = [q for q in queries if "testapp_effect" not in q["sql"] and "SAVEPOINT" not in q["sql"]]
    assert len(own) < 40
    assert InboxEntry.objects.count() == 60


def test_one_that_fails_in_the_batch_fails_alone(notes: NoteTopic) -> None:
    """Those before it take effect once, those behind it wait without a run."""
    mood = Mood(0)
    note_receiver("one", mood, retry=PATIENT)
    held_behind_the_first(notes, 7, mood)
    mood.bad = {4}
    assert retry_due() == RetryPass(resolved=4, failed=1)
    assert effects("one") == [0, 1, 2, 3]
    assert attempts() == [2, 1, 1, 1, 1, 0, 0]
    assert not Delivery.objects.filter(unfinished=True).exists()
    mood.bad.clear()
    make_due()
    assert retry_due() == RetryPass(resolved=3)
    assert effects("one") == list(range(7))


def test_one_that_ends_the_process_ends_as_a_dead_letter(notes: NoteTopic) -> None:
    """The others of its batch are counted once, run by themselves and take effect once."""
    ended: Counter[int] = Counter()
    mood = Mood(0)

    def react(event: Event) -> None:
        mood(event)
        if event.payload["number"] == 3:
            ended[3] += 1
            raise SystemExit

    note_receiver("one", react, retry=RetryPolicy(attempts=3, backoff=0))
    notes.put_all("aaaaaa")
    notes.consume()
    mood.bad.clear()
    for _ in range(20):
        make_due()
        try:
            retry_due()
        except SystemExit:
            continue
    assert effects("one") == [0, 1, 2]
    states = list(Delivery.objects.order_by("offset").values_list("state", flat=True))
    assert states == ["resolved"] * 3 + ["dead"] + ["retrying"] * 2
    assert ended[3] == 3
    deliveries.discard([Delivery.objects.get(offset=3).pk], reason="it ends the process")
    retry_due()
    assert effects("one") == [0, 1, 2, 4, 5]


def test_the_chain_stops_where_another_is_dead(notes: NoteTopic) -> None:
    """What waits behind a dead letter is no follower of the one before."""
    mood = Mood(0)
    note_receiver("one", mood, retry=PATIENT)
    held_behind_the_first(notes, 6, mood)
    Delivery.objects.filter(offset=3).update(state="dead", attempts=5)
    assert retry_due() == RetryPass(resolved=3)
    assert effects("one") == [0, 1, 2]


def test_a_follower_that_was_discarded_meanwhile_does_not_run(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person decides between the beginning and the run; the others do not wait for a lease."""
    mood = Mood(0)
    note_receiver("one", mood, retry=PATIENT)
    held_behind_the_first(notes, 5, mood)
    begin = deliveries.begin

    def begin_and_discard(claimed: list[Delivery], *, lease: float, using: str) -> None:
        begin(claimed, lease=lease, using=using)
        if len(claimed) == 4:
            deliveries.discard([claimed[1].pk], reason="meanwhile")

    monkeypatch.setattr(deliveries, "begin", begin_and_discard)
    retry_due()
    assert effects("one") == [0, 1, 3, 4]


@pytest.mark.parametrize("mode", ["after_commit", "manual"])
def test_receivers_outside_the_transaction_run_one_by_one(notes: NoteTopic, mode: str) -> None:
    """Each is recorded when it has run; the first has left what it did before it failed."""
    mood = Mood(0)
    note_receiver("one", mood, retry=PATIENT, mode=mode)
    held_behind_the_first(notes, 4, mood)
    assert retry_due() == RetryPass(resolved=4)
    assert effects("one") == [0, 0, 1, 2, 3]
    assert attempts() == [2, 1, 1, 1]
