"""Receivers outside the batch's transaction, and what a running receiver may ask."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from folio_events import Event, RetryPolicy, claim, idempotency_key
from folio_events.exceptions import ConfigurationError, FolioEventsError
from folio_events.models import ConsumerOffset, Delivery, InboxEntry
from folio_events.receivers import receiver
from folio_events.redelivery import retry_due
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


def test_an_after_commit_receiver_runs_outside_a_transaction_when_the_others_have_committed(
    notes: NoteTopic,
) -> None:
    """It sees their work, and nothing that it does is rolled back with anything."""
    seen: list[tuple[bool, list[int]]] = []
    note_receiver("inside")
    note_receiver(
        "outside",
        lambda _event: seen.append((connection.in_atomic_block, effects("inside"))),
        mode="after_commit",
    )
    notes.put_all("ab")
    assert notes.consume() == 2
    assert seen == [(False, [0, 1]), (False, [0, 1])]


def test_an_after_commit_receiver_is_recorded_once_it_has_returned(notes: NoteTopic) -> None:
    """The same event at another offset does not start it again."""
    started = note_receiver("mailer", mode="after_commit")
    event_id = notes.put("a", 1)
    notes.put("a", 1, event_id=event_id)
    notes.consume()
    assert started == [1]
    assert InboxEntry.objects.filter(receiver="mailer").count() == 1


def test_an_after_commit_receiver_has_an_offset_of_its_own(notes: NoteTopic) -> None:
    """What receivers with and without a transaction have done is counted apart."""
    note_receiver("inside")
    note_receiver("outside", mode="after_commit")
    notes.put_all("ab")
    notes.consume()
    rows = ConsumerOffset.objects.order_by("database").values_list("database", "offset")
    assert list(rows) == [("", 2), ("default", 2)]


def test_a_failed_after_commit_receiver_becomes_a_delivery_and_is_retried(notes: NoteTopic) -> None:
    """What it had done before it failed stays done: at least once is all it has."""
    mood = Mood(0)
    started = note_receiver("mailer", mood, mode="after_commit", retry=RetryPolicy(backoff=0))
    notes.put_all("ab")
    notes.consume()
    assert Delivery.objects.get().state == "retrying"
    assert effects("mailer") == [0, 1]
    mood.bad.clear()
    assert retry_due().resolved == 1
    assert started == [0, 1, 0]
    assert effects("mailer") == [0, 1, 0]


def test_a_manual_receiver_that_claims_takes_effect_once(notes: NoteTopic) -> None:
    """The claim is part of the transaction that the receiver opens itself."""
    claims: list[bool] = []

    def work(event: Event) -> None:
        with transaction.atomic():
            claims.append(claim())

    note_receiver("own", work, mode="manual")
    event_id = notes.put("a", 1)
    notes.consume()
    notes.put("a", 1, event_id=event_id)
    notes.consume()
    assert claims == [True]
    assert InboxEntry.objects.filter(receiver="own").count() == 1


def test_a_manual_receiver_that_does_not_claim_runs_for_each_copy(notes: NoteTopic) -> None:
    """Without a claim nobody records that it ran."""
    started = note_receiver("own", mode="manual")
    event_id = notes.put("a", 1)
    notes.put("a", 1, event_id=event_id)
    notes.consume()
    assert started == [1, 1]


def test_a_claim_outside_a_transaction_is_refused(notes: NoteTopic) -> None:
    """It would be committed without the work that it stands for."""
    note_receiver("own", lambda _event: claim(), mode="manual", retry=RetryPolicy(attempts=1))
    notes.put("a", 1)
    notes.consume()
    assert "transaction.atomic()" in Delivery.objects.get().error


def test_a_claim_without_a_running_receiver_is_refused() -> None:
    """There is no event that it could stand for."""
    with pytest.raises(FolioEventsError, match="No receiver is running"):
        claim()


def test_the_idempotency_key_is_the_same_in_every_attempt(notes: NoteTopic) -> None:
    """It differs between events and between receivers."""
    keys: dict[str, list[str]] = {"one": [], "two": []}

    def failing_once(name: str) -> object:
        def react(event: Event) -> None:
            keys[name].append(idempotency_key())
            if len(keys[name]) == 1:
                raise ValueError("once")

        return react

    for name in keys:
        note_receiver(name, failing_once(name), mode="after_commit", retry=RetryPolicy(backoff=0))  # type: ignore[arg-type]
    notes.put("a", 1)
    notes.put("b", 2)
    notes.consume()
    retry_due()
    first, second, again = keys["one"]
    assert first == again != second
    assert set(keys["one"]).isdisjoint(keys["two"])


def test_a_receiver_without_a_transaction_keeps_its_state_in_the_default_database() -> None:
    """Another alias would name a transaction that it does not have."""
    with pytest.raises(ConfigurationError, match="using"):
        receiver("library.note", mode="after_commit", using="other")(lambda _event: None)


def test_a_run_that_ended_the_process_counts_as_an_attempt(notes: NoteTopic) -> None:
    """Its delivery is due again after the lease, and dead when the attempts are used up."""
    mood = Mood(0)
    note_receiver("fragile", mood, retry=RetryPolicy(attempts=2, backoff=0))
    notes.put("a", 0)
    notes.consume()
    # As a process leaves it that was killed in its second attempt.
    Delivery.objects.update(
        attempts=2, unfinished=True, next_attempt_at=timezone.now() - timedelta(seconds=1)
    )
    assert retry_due().failed == 1
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts) == ("dead", 2)
    assert "process ended" in delivery.error
