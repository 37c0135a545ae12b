"""A retry pass runs what is due, each delivery once and each key in order."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
from django.db import connections
from django.utils import timezone

from folio_events import Event, RejectEvent, RetryLater, RetryPolicy, deliveries, redelivery
from folio_events.exceptions import InvalidStateError
from folio_events.message import Record
from folio_events.models import Delivery, InboxEntry
from folio_events.receivers import registry
from folio_events.redelivery import RetryPass, retry_due
from tests.note_topic import Mood, NoteTopic, effects, note_receiver
from tests.outbox_writer import database_address
from tests.testapp.models import Book, Effect

pytestmark = pytest.mark.django_db(transaction=True)
AT_ONCE = RetryPolicy(backoff=0)


def states() -> list[str]:
    return list(Delivery.objects.order_by("offset").values_list("state", flat=True))


def make_due() -> None:
    """Let the pauses of all retrying deliveries be over."""
    Delivery.objects.filter(state="retrying").update(next_attempt_at=timezone.now())


def test_a_delivery_that_succeeds_is_resolved_with_its_effect(notes: NoteTopic) -> None:
    """The effect, its inbox entry and the state come together."""
    mood = Mood(0)
    note_receiver("one", mood, retry=AT_ONCE)
    event_id = notes.put()
    notes.consume()
    assert not InboxEntry.objects.exists()
    mood.bad.clear()
    assert retry_due() == RetryPass(resolved=1)
    assert effects("one") == [0]
    assert InboxEntry.objects.get().event_id == event_id
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts, delivery.next_attempt_at) == ("resolved", 2, None)
    assert delivery.resolved_at is not None
    assert delivery.error == "a bad number"
    assert retry_due() == RetryPass()


def test_a_delivery_that_fails_again_leaves_nothing_but_its_cause(notes: NoteTopic) -> None:
    """The receiver's work is rolled back, the newest error stays."""
    mood = Mood(0)
    note_receiver("one", mood, retry=AT_ONCE)
    notes.put()
    notes.consume()
    mood.error = OSError("another error")
    assert retry_due(limit=1) == RetryPass(failed=1)
    assert effects("one") == []
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts, delivery.error) == ("retrying", 2, "another error")
    assert "OSError" in delivery.traceback


def test_attempts_end_in_a_dead_letter(notes: NoteTopic) -> None:
    """The first run in the batch counts; afterwards nobody runs it unasked."""
    runs = note_receiver("one", Mood(0), retry=RetryPolicy(attempts=3, backoff=0))
    notes.put()
    notes.consume()
    before = len(runs)
    for _ in range(5):
        retry_due()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts) == ("dead", 3)
    assert len(runs) - before == 2


def test_a_dead_letter_that_is_retried_has_one_more_attempt(notes: NoteTopic) -> None:
    """Failing again it is dead again; succeeding it is resolved."""
    mood = Mood(0)
    note_receiver("one", mood, retry=RetryPolicy(attempts=1))
    notes.put()
    notes.consume()
    deliveries.retry([Delivery.objects.get().pk])
    assert retry_due() == RetryPass(failed=1)
    assert states() == ["dead"]
    mood.bad.clear()
    deliveries.retry([Delivery.objects.get().pk])
    assert retry_due() == RetryPass(resolved=1)
    assert (states(), effects("one")) == (["resolved"], [0])


def test_pauses_grow_and_are_kept(notes: NoteTopic) -> None:
    """A pass before the time does nothing."""
    note_receiver("one", Mood(0), retry=RetryPolicy(backoff=100, jitter=0))
    notes.put()
    notes.consume()
    assert retry_due() == RetryPass()
    make_due()
    before = timezone.now()
    assert retry_due() == RetryPass(failed=1)
    next_attempt_at = Delivery.objects.get().next_attempt_at
    assert next_attempt_at is not None
    assert timedelta(seconds=200) <= next_attempt_at - before < timedelta(seconds=230)


def test_a_receiver_may_ask_for_another_time_or_give_up_in_a_retry(notes: NoteTopic) -> None:
    """RetryLater and RejectEvent mean the same as at first."""
    mood = Mood(0)
    note_receiver("one", mood, retry=AT_ONCE)
    notes.put()
    notes.consume()
    mood.error = RetryLater(seconds=500)
    retry_due(limit=1)
    next_attempt_at = Delivery.objects.get().next_attempt_at
    assert next_attempt_at is not None
    assert next_attempt_at > timezone.now() + timedelta(seconds=400)
    mood.error = RejectEvent("no such loan")
    make_due()
    retry_due()
    assert Delivery.objects.get().error == "no such loan"
    assert states() == ["dead"]


def test_a_chain_runs_until_one_fails(notes: NoteTopic) -> None:
    """In order; what stands behind the failure waits on."""
    mood = Mood(0)
    note_receiver("one", mood, retry=RetryPolicy(backoff=100))
    notes.put_all("aaaaa")
    notes.consume()
    mood.bad = {3}
    make_due()
    assert retry_due() == RetryPass(resolved=3, failed=1)
    assert effects("one") == [0, 1, 2]
    assert states() == ["resolved", "resolved", "resolved", "retrying", "retrying"]
    mood.bad.clear()
    make_due()
    assert retry_due() == RetryPass(resolved=2)
    assert effects("one") == [0, 1, 2, 3, 4]


def test_a_dead_letter_holds_its_key_until_a_person_decides(notes: NoteTopic) -> None:
    """Discarded, it lets the others go on."""
    note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
    notes.put_all("aab")
    notes.consume()
    assert retry_due() == RetryPass()
    deliveries.discard([Delivery.objects.get(offset=0).pk], reason="test")
    assert retry_due() == RetryPass(resolved=1)
    assert effects("one") == [2, 1]


def test_one_failing_delivery_does_not_hold_up_other_keys(notes: NoteTopic) -> None:
    """A pass goes on with the others."""
    mood = Mood(*range(6))
    note_receiver("one", mood, retry=RetryPolicy(backoff=100))
    notes.put_all("abcdef")
    notes.consume()
    mood.bad = {0, 3}
    make_due()
    assert retry_due() == RetryPass(resolved=4, failed=2)


def test_a_pass_has_a_limit(notes: NoteTopic) -> None:
    """The rest is for the next one."""
    mood = Mood(*range(5))
    note_receiver("one", mood, retry=AT_ONCE, order="none")
    notes.put_all("abcde")
    notes.consume()
    mood.bad.clear()
    assert retry_due(limit=2) == RetryPass(resolved=2)
    assert retry_due(limit=100) == RetryPass(resolved=3)


def test_deliveries_of_a_vanished_receiver_stay(notes: NoteTopic) -> None:
    """They are neither run nor lost; when the receiver is back, they run."""
    mood = Mood(0, 1)
    note_receiver("gone", mood, retry=AT_ONCE)
    notes.put_all("aa")
    notes.consume()
    gone = registry.get("gone")
    assert gone is not None
    registry.remove("gone")
    assert retry_due() == RetryPass()
    assert states() == ["retrying", "retrying"]
    registry.add(gone)
    mood.bad.clear()
    assert retry_due() == RetryPass(resolved=2)


def test_a_receiver_that_no_longer_wants_the_event_is_spared_it(notes: NoteTopic) -> None:
    """The delivery is resolved without a run."""
    runs = note_receiver("one", Mood(0), retry=AT_ONCE)
    notes.put(type="note")
    notes.consume()
    before = len(runs)
    registry.remove("one")
    runs = note_receiver("one", types=["memo"])
    assert retry_due() == RetryPass(resolved=1)
    assert runs == []
    assert before >= 1


def test_an_undecodable_record_is_dead_again_until_the_code_can_read_it(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are decoded anew in each attempt."""
    note_receiver("one")
    notes.put_raw(b"number 7")
    notes.consume()
    delivery = Delivery.objects.get()
    deliveries.retry([delivery.pk])
    assert retry_due() == RetryPass(failed=1)
    assert states() == ["dead"]

    def read(record: Record, *, tenant: str | None) -> Event:
        assert (record.value, tenant) == (b"number 7", None)
        return Event(
            id=delivery.event_id,
            topic="library.note",
            type="note",
            key="k",
            tenant=None,
            occurred_at=timezone.now(),
            payload={"number": 7},
        )

    monkeypatch.setattr(redelivery, "decode", read)
    deliveries.retry([delivery.pk])
    assert retry_due() == RetryPass(resolved=1)
    assert effects("one") == [7]


def test_an_effect_that_was_made_meanwhile_is_not_made_again(notes: NoteTopic) -> None:
    """The inbox decides; the delivery is resolved."""
    runs = note_receiver("one", Mood(0), retry=AT_ONCE)
    event_id = notes.put()
    notes.consume()
    InboxEntry.objects.create(receiver="one", event_id=event_id, handled_at=timezone.now())
    before = len(runs)
    assert retry_due() == RetryPass(resolved=1)
    assert len(runs) == before


def test_two_passes_at_once_run_a_delivery_once(notes: NoteTopic) -> None:
    """What one is at, the other leaves alone; chains keep their order."""
    mood = Mood(*range(12))
    note_receiver("one", mood, retry=AT_ONCE)
    notes.put_all("abcabcabcabc")
    notes.consume()
    mood.bad.clear()
    start = threading.Barrier(3)

    def work() -> RetryPass:
        try:
            start.wait(20)
            return retry_due()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(3) as pool:
        passes = [pool.submit(work) for _ in range(3)]
        resolved = sum(future.result(60).resolved for future in passes)
    resolved += retry_due().resolved
    assert resolved == 12
    assert sorted(effects("one")) == list(range(12))
    for key in "abc":
        made = Effect.objects.filter(key=key).order_by("id").values_list("note", flat=True)
        assert [int(note) for note in made] == sorted(int(note) for note in made)


@pytest.mark.postgres
def test_a_delivery_in_work_is_left_alone_by_another_pass(notes: NoteTopic) -> None:
    """Also those behind it; and a person has to wait until it is done."""
    inside, go_on = threading.Event(), threading.Event()
    mood = Mood(0, 1)

    def block(event: Event) -> None:
        mood(event)
        inside.set()
        assert go_on.wait(20)

    note_receiver("one", block, retry=AT_ONCE)
    notes.put_all("aa")
    notes.consume()
    mood.bad.clear()
    first = Delivery.objects.get(offset=0).pk

    def work() -> RetryPass:
        try:
            return retry_due(limit=1)
        finally:
            connections.close_all()

    def discard() -> None:
        try:
            deliveries.discard([first], reason="too late")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(work)
        assert inside.wait(20)
        assert retry_due() == RetryPass()
        person = pool.submit(discard)
        with psycopg.connect(**database_address(), autocommit=True) as observer:
            while not person.done():
                row = observer.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
                if row is not None and row[0]:
                    break
        go_on.set()
        assert running.result(20) == RetryPass(resolved=1)
        with pytest.raises(InvalidStateError, match="is resolved"):
            person.result(20)
    assert effects("one") == [0]


def test_a_run_that_ended_its_process_is_due_again_and_counted(notes: NoteTopic) -> None:
    """After its lease; nothing of it is left."""

    def die(event: Event) -> None:
        raise SystemExit

    mood = Mood(0)
    note_receiver("one", mood, retry=RetryPolicy(attempts=3, backoff=0))
    notes.put()
    notes.consume()
    registry.remove("one")
    note_receiver("one", die, retry=RetryPolicy(attempts=3, backoff=0))
    for attempt in (2, 3):
        with pytest.raises(SystemExit):
            retry_due()
        assert Delivery.objects.get().attempts == attempt
        assert effects("one") == []
        assert retry_due() == RetryPass()
        make_due()
    assert retry_due() == RetryPass(failed=1)
    assert states() == ["dead"]
    assert "process" in Delivery.objects.get().error


@pytest.mark.postgres
def test_a_database_fault_that_does_not_pass_starves_no_other_delivery(notes: NoteTopic) -> None:
    """It fails with its cause, and the pass goes on."""
    book = Book.objects.create(title="locked")
    mood = Mood(0, 1, 2)

    def lock(event: Event) -> None:
        mood(event)
        if event.payload["number"] == 0:
            Book.objects.select_for_update(nowait=True).get(pk=book.pk)

    note_receiver("one", lock, retry=RetryPolicy(backoff=100))
    notes.put_all("abc")
    notes.consume()
    mood.bad.clear()
    make_due()
    with psycopg.connect(**database_address()) as holder:
        holder.execute("SELECT 1 FROM testapp_book FOR UPDATE")
        assert retry_due() == RetryPass(resolved=2, failed=1)
    delivery = Delivery.objects.get(offset=0)
    assert delivery.state == "retrying"
    assert "could not obtain lock" in delivery.error
    make_due()
    assert retry_due() == RetryPass(resolved=1)


@pytest.mark.postgres
def test_a_passing_fault_of_the_database_is_no_attempt(notes: NoteTopic) -> None:
    """The receiver starts again at once, and the delivery is resolved."""
    book = Book.objects.create(title="locked")
    holder = psycopg.connect(**database_address())
    holder.execute("SELECT 1 FROM testapp_book FOR UPDATE")
    mood, runs = Mood(0), []

    def lock(event: Event) -> None:
        mood(event)
        runs.append(1)
        try:
            Book.objects.select_for_update(nowait=True).get(pk=book.pk)
        finally:
            if len(runs) == 2:
                holder.rollback()

    note_receiver("one", lock, retry=AT_ONCE)
    notes.put()
    notes.consume()
    mood.bad.clear()
    assert retry_due() == RetryPass(resolved=1)
    holder.close()
    assert len(runs) == 3
    assert Delivery.objects.get().attempts == 2


def test_new_events_of_a_key_follow_when_its_chain_is_done(notes: NoteTopic) -> None:
    """Consumer and retry pass take turns without an inversion."""
    mood = Mood(0)
    note_receiver("one", mood, retry=AT_ONCE)
    notes.put("a", 0)
    notes.consume()
    notes.put("a", 1)
    notes.consume()
    mood.bad.clear()
    assert retry_due(limit=1) == RetryPass(resolved=1)
    notes.put("a", 2)
    notes.consume()
    assert effects("one") == [0]
    assert retry_due() == RetryPass(resolved=2)
    notes.put("a", 3)
    notes.consume()
    assert effects("one") == [0, 1, 2, 3]


def test_what_could_not_be_read_is_no_easier_to_read_for_a_known_owner(
    notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """Its tenant is kept with the delivery, but a retry asks of the body what the consumer asked."""
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")
    shared = NoteTopic(notes.broker, wire="folio.ALL.library.note")
    note_receiver("one", retry=AT_ONCE)
    body = {"type": "note", "timestamp": 1_700_000_000_000, "data": {"number": 0}}
    shared.put_raw(json.dumps(body).encode(), headers=[("folio.tenantId", b"diku")])
    shared.consume()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.tenant) == ("dead", "diku")
    assert "'tenant' is missing" in delivery.error
    deliveries.retry([delivery.pk])
    assert retry_due() == RetryPass(failed=1)
    assert effects("one") == []
