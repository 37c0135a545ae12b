"""A batch takes effect once in each receiver; what fails is kept, and harms nobody else."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.utils import timezone

from folio_events import (
    Event,
    RejectEvent,
    RetryLater,
    RetryPolicy,
    current_tenant,
    deliveries,
    publish,
)
from folio_events.consumer import Consumer
from folio_events.exceptions import FencedError
from folio_events.message import TopicPartition
from folio_events.models import ConsumerOffset, Delivery, InboxEntry, OutboxMessage
from folio_events.redelivery import retry_due
from folio_events.tenants import current_context
from tests.note_topic import WIRE, Mood, NoteTopic, effects, note_receiver
from tests.outbox_writer import database_address
from tests.testapp.models import Book, Effect

pytestmark = pytest.mark.django_db(transaction=True)


def offset(group: str = "events") -> int:
    return ConsumerOffset.objects.get(group=group, topic=WIRE, partition=0).offset


def states(receiver: str) -> dict[int, str]:
    """Offset of each delivery of a receiver to its state."""
    return dict(Delivery.objects.filter(receiver=receiver).values_list("offset", "state"))


# A batch


def test_effects_inbox_and_offset_are_one_transaction(notes: NoteTopic) -> None:
    """While the last receiver runs, another connection sees nothing of the batch."""
    seen: list[int] = []

    def look() -> None:
        try:
            seen.append(
                Effect.objects.count()
                + InboxEntry.objects.count()
                + ConsumerOffset.objects.filter(offset__gt=0).count()
            )
        finally:
            connections.close_all()

    def look_at_last(event: Event) -> None:
        if event.payload["number"] == 4:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(look).result()

    note_receiver("writer", look_at_last)
    notes.put_all("ababa")
    assert notes.consume() == 5
    assert seen == [0]
    assert effects("writer") == [0, 1, 2, 3, 4]
    assert InboxEntry.objects.count() == 5
    assert offset() == 5


@pytest.mark.parametrize("bad", [0, 50, 99], ids=["first", "middle", "last"])
def test_one_failure_in_a_batch_of_a_hundred_harms_nobody_else(notes: NoteTopic, bad: int) -> None:
    """That (event, receiver) becomes a delivery; all else takes effect once, in order."""
    note_receiver("failing", Mood(bad), order="none", retry=RetryPolicy(backoff=0))
    note_receiver("sound")
    ids = notes.put_all([f"k{number % 7}" for number in range(100)])
    assert notes.consume() == 100
    everything = list(range(100))
    assert effects("sound") == everything
    assert effects("failing") == [number for number in everything if number != bad]
    assert InboxEntry.objects.count() == 199
    assert offset() == 100
    delivery = Delivery.objects.get()
    assert (delivery.receiver, delivery.event_id) == ("failing", ids[bad])
    assert (delivery.state, delivery.attempts) == ("retrying", 1)


def test_a_retry_runs_the_failed_receiver_only(notes: NoteTopic) -> None:
    """The other receivers of the event are not called again."""
    mood = Mood(0)
    failing = note_receiver("failing", mood, retry=RetryPolicy(backoff=0))
    sound = note_receiver("sound")
    notes.put("a")
    notes.consume()
    before = list(sound)
    mood.bad.clear()
    assert retry_due().resolved == 1
    assert (effects("failing"), effects("sound")) == ([0], [0])
    assert sound == before
    assert failing[-1] == 0
    assert states("failing") == {0: "resolved"}


def test_several_receivers_fail_each_for_itself(notes: NoteTopic) -> None:
    """Every pair has a delivery of its own."""
    note_receiver("one", Mood(1, 2), order="none")
    note_receiver("two", Mood(2, 3), order="none")
    notes.put_all("abcde")
    notes.consume()
    assert effects("one") == [0, 3, 4]
    assert effects("two") == [0, 1, 4]
    assert states("one").keys() == {1, 2}
    assert states("two").keys() == {2, 3}


def test_receivers_are_chosen_by_topic_and_type(notes: NoteTopic) -> None:
    """Several may want the same event; one that does not is not started."""
    note_receiver("all")
    note_receiver("pattern", topic="library.*")
    note_receiver("notes only", types=["note"])
    note_receiver("both", types=["note", "memo"])
    other = note_receiver("other topic", topic="library.book")
    notes.put("a", 0)
    notes.put("a", 1, type="memo")
    notes.consume()
    assert effects("all") == effects("pattern") == effects("both") == [0, 1]
    assert effects("notes only") == [0]
    assert other == []


def test_an_event_that_stands_in_a_batch_twice_takes_effect_once(notes: NoteTopic) -> None:
    """The inbox knows events, not places in the log."""
    note_receiver("writer")
    event_id = notes.put("a", 0)
    notes.put("b", 1)
    notes.put("a", 0, event_id=event_id)
    assert notes.consume() == 3
    assert effects("writer") == [0, 1]


@pytest.mark.parametrize("order", ["key", "none"])
def test_every_event_delivered_three_times_gives_the_same_result(
    notes: NoteTopic, order: Any
) -> None:
    """Within a batch, in later batches, and also where the receiver failed first."""
    mood = Mood(2, 5)
    note_receiver("writer", mood, order=order, retry=RetryPolicy(backoff=0))
    ids = notes.put_all("abcabc")
    for number, event_id in enumerate(ids):
        notes.put("abcabc"[number], number, event_id=event_id)
    notes.consume()
    for number, event_id in enumerate(ids):
        notes.put("abcabc"[number], number, event_id=event_id)
    notes.consume()
    mood.bad.clear()
    while retry_due().resolved:
        pass
    for number, event_id in enumerate(ids):
        notes.put("abcabc"[number], number, event_id=event_id)
    notes.consume()
    assert sorted(effects("writer")) == [0, 1, 2, 3, 4, 5]
    for key in "abc":
        made = Effect.objects.filter(key=key).order_by("id").values_list("note", flat=True)
        assert list(made) == sorted(made)
    assert set(Delivery.objects.values_list("state", flat=True)) == {"resolved"}


def test_a_discarded_event_that_comes_again_stays_discarded(notes: NoteTopic) -> None:
    """What a person has closed is not run by a repetition from the broker."""
    mood = Mood(0)
    note_receiver("writer", mood)
    event_id = notes.put("a")
    notes.consume()
    deliveries.discard([Delivery.objects.get().pk], reason="test")
    mood.bad.clear()
    notes.put("a", event_id=event_id)
    notes.consume()
    assert effects("writer") == []
    assert states("writer") == {0: "discarded"}


# Receivers and the transaction


def test_a_receiver_that_swallowed_a_database_error_spoils_nobody(notes: NoteTopic) -> None:
    """Its own delivery says what it did; the others' work is committed."""

    def swallow(event: Event) -> None:
        if event.payload["number"] == 1:
            with suppress(IntegrityError):
                Effect.objects.create(pk=Effect.objects.latest("pk").pk, event_id=event.id)

    note_receiver("careless", swallow)
    note_receiver("sound")
    notes.put_all("abc")
    notes.consume()
    assert effects("sound") == [0, 1, 2]
    assert effects("careless") == [0, 2]
    delivery = Delivery.objects.get()
    assert delivery.receiver == "careless"
    assert delivery.error_class.endswith("BrokenTransactionError")
    assert "transaction.atomic()" in delivery.error


@pytest.mark.postgres
def test_a_receiver_that_swallowed_an_error_of_a_bare_statement_loses_nothing(
    notes: NoteTopic,
) -> None:
    """Django does not mark such a transaction, and PostgreSQL would answer COMMIT with ROLLBACK."""

    def swallow(event: Event) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 / 0")
        except DatabaseError:
            pass

    note_receiver("careless", swallow)
    note_receiver("sound")
    notes.put_all("ab")
    notes.consume()
    assert effects("sound") == [0, 1]
    assert effects("careless") == []
    assert states("careless") == {0: "retrying", 1: "retrying"}
    delivery = Delivery.objects.first()
    assert delivery is not None
    assert delivery.error_class.endswith("BrokenTransactionError")


def test_a_receiver_may_catch_a_database_error_in_a_savepoint(notes: NoteTopic) -> None:
    """That is what Django's manual asks for, and it is no fault."""

    def careful(event: Event) -> None:
        try:
            with transaction.atomic():
                Effect.objects.create(pk=Effect.objects.latest("pk").pk, event_id=event.id)
        except IntegrityError:
            pass

    note_receiver("careful", careful)
    notes.put_all("ab")
    notes.consume()
    assert effects("careful") == [0, 1]
    assert not Delivery.objects.exists()


def test_a_durable_transaction_inside_a_receiver_is_refused_in_plain_words(
    notes: NoteTopic,
) -> None:
    """It cannot be durable there; the delivery says so and nothing else is harmed."""

    def durable(_event: Event) -> None:
        with transaction.atomic(durable=True):
            pass

    note_receiver("durable", durable)
    note_receiver("sound")
    notes.put("a")
    notes.consume()
    assert effects("sound") == [0]
    assert effects("durable") == []
    delivery = Delivery.objects.get()
    assert delivery.receiver == "durable"
    assert "durable" in delivery.error
    assert "atomic" in delivery.error


def test_a_receiver_cannot_commit_on_its_own(notes: NoteTopic) -> None:
    """An attempt to is a failure of the receiver."""

    def commit(_event: Event) -> None:
        transaction.commit()

    note_receiver("impatient", commit)
    notes.put("a")
    notes.consume()
    assert effects("impatient") == []
    assert states("impatient") == {0: "retrying"}


def test_a_receiver_that_marks_the_transaction_for_rollback_fails(notes: NoteTopic) -> None:
    """Its work would be gone while the inbox called it done."""

    def mark(_event: Event) -> None:
        transaction.set_rollback(True)

    note_receiver("marking", mark)
    note_receiver("sound")
    notes.put("a")
    notes.consume()
    assert (effects("marking"), effects("sound")) == ([], [0])
    assert states("marking") == {0: "retrying"}


def test_what_a_receiver_puts_off_until_the_commit_is_done_once(notes: NoteTopic) -> None:
    """Runs that were rolled back leave no callback behind."""
    done: list[int] = []

    def put_off(event: Event) -> None:
        number = event.payload["number"]
        transaction.on_commit(lambda: done.append(number))

    note_receiver("later", put_off)
    note_receiver("failing", Mood(1), order="none")
    notes.put_all("abc")
    notes.consume()
    assert done == [0, 1, 2]


def test_a_callback_that_fails_after_the_commit_stops_no_consumer(notes: NoteTopic) -> None:
    """The work is committed; events that come after it are handled."""

    def put_off(event: Event) -> None:
        if event.payload["number"] == 0:
            transaction.on_commit(lambda: 1 / 0)

    note_receiver("later", put_off)
    notes.put("a", 0)
    notes.consume()
    notes.put("a", 1)
    notes.consume()
    assert effects("later") == [0, 1]
    assert offset() == 2
    assert not Delivery.objects.exists()


def test_events_that_a_failed_receiver_caused_are_not_recorded(notes: NoteTopic) -> None:
    """Those of a successful run are recorded once."""
    note_receiver("causing", lambda event: publish("library.echo", key="e", payload={}))
    note_receiver("failing", Mood(0))

    def cause_and_fail(event: Event) -> None:
        publish("library.never", key="e", payload={})
        raise ValueError

    note_receiver("causing in vain", cause_and_fail)
    notes.put("a")
    notes.consume()
    assert list(OutboxMessage.objects.values_list("topic", flat=True)) == ["library.echo"]


# Failures


def delivery_of(notes: NoteTopic, error: Exception, **policy: Any) -> Delivery:
    note_receiver("failing", Mood(0, error=error), retry=RetryPolicy(**policy))
    notes.put("a")
    notes.consume()
    return Delivery.objects.get()


def test_a_delivery_has_all_that_is_needed_to_understand_and_run_it(notes: NoteTopic) -> None:
    """Cause, place, key, headers and the record's own bytes."""
    notes.put("before")
    note_receiver("failing", Mood(7, error=ValueError("seven is bad")))
    event_id = notes.put("käse", 7, headers=[("x-okapi-tenant", b"diku"), ("blob", b"\xff\x00")])
    notes.consume()
    delivery = Delivery.objects.get()
    (record,) = notes.broker.records(WIRE)[1:]
    assert (delivery.receiver, delivery.group, delivery.event_id) == ("failing", "events", event_id)
    assert (delivery.topic, delivery.partition, delivery.offset) == (WIRE, 0, 1)
    assert (delivery.key, bytes(delivery.raw_key or b"")) == ("käse", "käse".encode())
    assert bytes(delivery.payload or b"") == record.value
    assert (delivery.event_type, delivery.attempts) == ("note", 1)
    assert (delivery.error_class, delivery.error) == ("builtins.ValueError", "seven is bad")
    assert delivery.traceback.startswith("Traceback")
    assert "ValueError: seven is bad" in delivery.traceback
    assert deliveries.record_of(delivery) == record


def test_a_failure_is_tried_again_after_the_policys_pause(notes: NoteTopic) -> None:
    """The first pause is ``backoff``."""
    before = timezone.now()
    delivery = delivery_of(notes, ValueError(), backoff=40, jitter=0)
    assert delivery.state == "retrying"
    assert delivery.next_attempt_at is not None
    pause = delivery.next_attempt_at - before
    assert timedelta(seconds=40) <= pause < timedelta(seconds=60)


def test_a_receiver_may_ask_for_another_time(notes: NoteTopic) -> None:
    """RetryLater names it, whatever the policy's own pause."""
    before = timezone.now()
    delivery = delivery_of(notes, RetryLater(seconds=300, reason="closed"), backoff=1)
    assert (delivery.state, delivery.error) == ("retrying", "closed")
    assert delivery.next_attempt_at is not None
    assert delivery.next_attempt_at - before >= timedelta(seconds=300)


@pytest.mark.parametrize(
    ("error", "policy"),
    [
        pytest.param(RejectEvent("no such loan"), {}, id="rejected"),
        pytest.param(ValueError(), {"give_up_on": (ValueError,)}, id="given up on"),
        pytest.param(ValueError(), {"retry_on": (OSError,)}, id="not worth a retry"),
        pytest.param(ValueError(), {"attempts": 1}, id="only attempt"),
    ],
)
def test_what_cannot_be_mended_by_waiting_is_dead_at_once(
    notes: NoteTopic, error: Exception, policy: dict[str, Any]
) -> None:
    """It has no next attempt, and a retry pass leaves it alone."""
    delivery = delivery_of(notes, error, **policy)
    assert (delivery.state, delivery.next_attempt_at) == ("dead", None)
    assert retry_due().failed == 0


def test_later_events_of_a_key_wait_behind_a_failed_one(notes: NoteTopic) -> None:
    """Other keys and other receivers go on; when it is resolved they run in order."""
    mood = Mood(0)
    note_receiver("ordered", mood, order="key", retry=RetryPolicy(backoff=0))
    note_receiver("other")
    notes.put("a", 0)
    notes.consume()
    for number, key in enumerate(["a", "b", "a"], start=1):
        notes.put(key, number)
    notes.consume()
    notes.put("a", 4)
    notes.consume()
    assert effects("ordered") == [2]
    assert effects("other") == [0, 1, 2, 3, 4]
    assert states("ordered") == dict.fromkeys([0, 1, 3, 4], "retrying")
    held = Delivery.objects.exclude(offset=0)
    assert set(held.values_list("attempts", "error")) == {(0, "")}
    mood.bad.clear()
    assert retry_due().resolved == 4
    assert effects("ordered") == [2, 0, 1, 3, 4]
    notes.put("a", 5)
    notes.consume()
    assert effects("ordered")[-1] == 5


def test_later_events_of_a_key_wait_behind_a_failed_one_of_their_own_batch(
    notes: NoteTopic,
) -> None:
    """Also when the batch came in one."""
    mood = Mood(1)
    note_receiver("ordered", mood, retry=RetryPolicy(backoff=0))
    notes.put_all("aaaba")
    notes.consume()
    assert effects("ordered") == [0, 3]
    assert states("ordered").keys() == {1, 2, 4}
    mood.bad.clear()
    retry_due()
    assert effects("ordered") == [0, 3, 1, 2, 4]


def test_without_order_later_events_go_on(notes: NoteTopic) -> None:
    """Only the failed one is kept."""
    note_receiver("unordered", Mood(0), order="none")
    notes.put_all("aaa")
    notes.consume()
    assert effects("unordered") == [1, 2]
    assert states("unordered") == {0: "retrying"}


def test_events_without_key_have_no_order(notes: NoteTopic) -> None:
    """A failed one holds no other up."""
    note_receiver("ordered", Mood(0))
    notes.put_all([None, None, "a"])
    notes.consume()
    assert effects("ordered") == [1, 2]
    assert states("ordered") == {0: "retrying"}


def test_the_same_key_of_another_topic_does_not_wait(notes: NoteTopic) -> None:
    """Order is that of a topic and key."""
    memos = NoteTopic(notes.broker, wire="folio.library.memo")
    memos.consumers = notes.consumers
    note_receiver("ordered", Mood(0), topic="library.*")
    notes.put("a", 0)
    notes.consume()
    memos.put("a", 1)
    notes.consume()
    assert effects("ordered") == [1]


# Records that are no events

POISON = {
    "empty": b"",
    "no UTF-8": b"\xff\xfe\x00",
    "no JSON": b"{",
    "not an object": b"[1, 2]",
    "a number": b"5",
    "old is a text": b'{"eventId": "x", "type": "UPDATE", "old": "text", "new": {}}',
    "nested too deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("body", POISON.values(), ids=POISON)
def test_an_undecodable_record_is_kept_for_each_receiver_and_passed(
    notes: NoteTopic, body: bytes
) -> None:
    """Dead, with its bytes, for all that listen to the topic; the consumer goes on."""
    note_receiver("one")
    note_receiver("two", types=["note"])
    note_receiver("elsewhere", topic="library.book")
    notes.put("a", 0)
    notes.put_raw(body, b"\xffraw", headers=[("h", b"\xff")])
    notes.put("a", 2)
    assert notes.consume() == 3
    assert effects("one") == effects("two") == [0, 2]
    found = Delivery.objects.order_by("receiver")
    assert [(d.receiver, d.state, d.offset) for d in found] == [
        ("one", "dead", 1),
        ("two", "dead", 1),
    ]
    for delivery in found:
        payload = delivery.payload
        assert (None if payload is None else bytes(payload)) == body
        assert bytes(delivery.raw_key or b"") == b"\xffraw"
        assert delivery.error_class.endswith("DecodingError")
    assert offset() == 3


def test_a_batch_of_undecodable_records_only_is_passed(notes: NoteTopic) -> None:
    """Nobody runs, nothing is lost."""
    started = note_receiver("one")
    for _ in range(3):
        notes.put_raw(b"?", None)
    assert notes.consume() == 3
    assert started == []
    assert states("one") == dict.fromkeys([0, 1, 2], "dead")


def test_an_undecodable_record_that_is_read_twice_is_kept_once(notes: NoteTopic) -> None:
    """Its place in the log is its identity."""
    note_receiver("one")
    notes.put_raw(b"?")
    notes.consume()
    notes.restart()
    ConsumerOffset.objects.update(offset=0)
    assert notes.consume() == 1
    assert Delivery.objects.count() == 1


@pytest.mark.parametrize(
    ("options", "key"),
    [
        pytest.param({"type": "a\0b"}, "k", id="NUL in the type"),
        pytest.param({"type": "\ud800"}, "k", id="surrogate in the type"),
        pytest.param({"type": "t" * 500}, "k", id="long type"),
        pytest.param({"headers": [("x-okapi-tenant", b"t" * 500)]}, "k", id="long tenant"),
        pytest.param({"headers": [("x-okapi-tenant", b"a\0b")]}, "k", id="NUL in the tenant"),
        pytest.param({}, "a\0b", id="NUL in the key"),
        pytest.param({}, "k" * 100_000, id="long key"),
        pytest.param({"headers": [("ce_time", b"99999-13-99")]}, "k", id="no time"),
    ],
)
@pytest.mark.parametrize("bad", [True, False], ids=["failing", "sound"])
def test_odd_events_are_handled_or_kept_like_others(
    notes: NoteTopic,
    folio_events: Callable[..., None],
    options: dict[str, Any],
    key: str,
    bad: bool,
) -> None:
    """Whatever a foreign producer writes, no database refuses the bookkeeping."""
    runs = note_receiver("one", Mood(*([1] if bad else [])), retry=RetryPolicy(backoff=0))
    Effect._meta.get_field("key")
    notes.put("before", 0)
    notes.put(key, 1, **options)
    notes.put("after", 2)
    assert notes.consume() == 3
    assert {0, 2} <= set(effects("one"))
    assert 1 in runs
    assert offset() == 3


def test_a_record_with_an_impossible_timestamp_is_kept_like_others(notes: NoteTopic) -> None:
    """A producer may stamp whatever it likes."""
    note_receiver("one", Mood(0))
    notes.put("a", 0)
    log = notes.broker._log[WIRE][0]
    for stamp in (2**62, -5):
        (record,) = log[:1]
        object.__setattr__(record, "timestamp", stamp)
        Delivery.objects.all().delete()
        ConsumerOffset.objects.update(offset=0)
        notes.restart()
        assert notes.consume() == 1
        assert states("one") == {0: "retrying"}


# Faults of the database


@pytest.mark.postgres
def test_a_passing_fault_of_the_database_is_tried_again_in_place(notes: NoteTopic) -> None:
    """A lock that was not to be had once is no failure of the event."""
    book = Book.objects.create(title="locked")
    holder = psycopg.connect(**database_address())
    holder.execute("SELECT 1 FROM testapp_book FOR UPDATE")
    runs: list[int] = []

    def lock(event: Event) -> None:
        runs.append(1)
        try:
            Book.objects.select_for_update(nowait=True).get(pk=book.pk)
        finally:
            holder.rollback() if len(runs) == 2 else None

    note_receiver("locking", lock)
    notes.put("a")
    notes.consume()
    holder.close()
    assert effects("locking") == [0]
    assert len(runs) == 3
    assert not Delivery.objects.exists()


@pytest.mark.postgres
def test_a_receiver_whose_database_fault_does_not_pass_gets_a_delivery(notes: NoteTopic) -> None:
    """The database is well and the others are not stopped for one receiver's sake."""
    book = Book.objects.create(title="locked")

    def lock(event: Event) -> None:
        if event.payload["number"] == 1:
            Book.objects.select_for_update(nowait=True).get(pk=book.pk)

    note_receiver("locking", lock, order="none", retry=RetryPolicy(backoff=0))
    note_receiver("sound")
    notes.put_all("abc")
    with psycopg.connect(**database_address()) as holder:
        holder.execute("SELECT 1 FROM testapp_book FOR UPDATE")
        assert notes.consume() == 3
        assert effects("locking") == [0, 2]
        assert effects("sound") == [0, 1, 2]
        assert states("locking") == {1: "retrying"}
    assert retry_due().resolved == 1
    assert effects("locking") == [0, 2, 1]


@pytest.mark.postgres
def test_a_connection_that_ends_inside_a_receiver_is_replaced(notes: NoteTopic) -> None:
    """The batch takes effect once, with nobody failing."""
    runs: list[int] = []

    def end_once(_event: Event) -> None:
        runs.append(1)
        if len(runs) == 2:
            pid = connection.connection.info.backend_pid
            with psycopg.connect(**database_address(), autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            Book.objects.count()

    note_receiver("one", end_once)
    notes.put_all("abc")
    assert notes.consume() == 3
    assert effects("one") == [0, 1, 2]
    assert not Delivery.objects.exists()
    assert offset() == 3


def test_a_database_error_of_the_event_itself_is_a_failure(notes: NoteTopic) -> None:
    """A row that the receiver may not write is its own fault."""

    def insert_twice(event: Event) -> None:
        if event.payload["number"] == 1:
            Effect.objects.create(pk=Effect.objects.latest("pk").pk, event_id=uuid.uuid4())

    note_receiver("writing", insert_twice)
    notes.put_all("abc")
    notes.consume()
    assert effects("writing") == [0, 2]
    assert Delivery.objects.get().error_class.endswith("IntegrityError")


# Who may


def test_a_consumer_that_was_overtaken_applies_nothing(notes: NoteTopic) -> None:
    """A zombie with an older position neither repeats nor sets the group back."""
    note_receiver("writer")
    zombie = Consumer("events", broker=notes.broker)
    notes.put_all("aa")
    assert zombie.step(timeout=0) == 2
    successor = Consumer("events", broker=notes.broker)
    zombie_subscription = zombie._subscription
    assert zombie_subscription is not None
    notes.put_all("aa")
    stale = zombie_subscription.poll(10, 0)
    assert len(stale) == 2
    # The group moves on behind its back.
    zombie_subscription.close()
    assert successor.step(timeout=0) == 2
    before = effects("writer")
    with pytest.raises(FencedError):
        zombie._dispatch(stale, zombie_subscription)
    assert effects("writer") == before
    assert offset() == 4


def test_an_offset_that_was_moved_back_fences_the_running_consumer(notes: NoteTopic) -> None:
    """It rolls back, reads the new position, and the inbox keeps effects single."""
    note_receiver("writer")
    consumer = Consumer("events", broker=notes.broker)
    notes.put_all("abc")
    assert consumer.step(timeout=0) == 3
    ConsumerOffset.objects.update(offset=1)
    notes.put("d", 3)
    deadline = time.monotonic() + 20
    while offset() < 4 and time.monotonic() < deadline:
        consumer.step(timeout=0.2)
    assert effects("writer") == [0, 1, 2, 3]
    assert offset() == 4


# Context


def test_a_receiver_runs_as_the_tenant_and_request_of_its_event(
    notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """Events that it causes inherit both and name their cause; afterwards all is as before."""
    seen: list[tuple[str | None, object]] = []

    def cause(event: Event) -> None:
        seen.append((current_tenant(), current_context().cause_id))
        publish("library.echo", key="e", payload={})

    note_receiver("causing", cause)
    broker = notes.broker
    folio_events(TENANCY="folio")
    diku = NoteTopic(broker, wire="folio.diku.library.note")
    headers = [
        ("folio.tenantId", b"diku"),
        ("x-okapi-request-id", b"77/abc"),
        ("x-okapi-token", b"t"),
    ]
    event_id = diku.put("a", 0, headers=headers, tenant="diku")
    diku.consume()
    assert seen == [("diku", event_id)]
    row = OutboxMessage.objects.get()
    assert row.tenant == "diku"
    own = bytes(row.own_headers).decode()
    assert '["x-okapi-request-id","77/abc"]' in own
    assert f'["ce_causationid","{event_id}"]' in own
    assert current_tenant() is None


def test_the_context_does_not_leak_from_one_event_into_the_next(
    notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """Not even after a failure."""
    seen: list[str | None] = []

    def look(event: Event) -> None:
        seen.append(current_tenant())
        if event.payload["number"] == 0:
            raise ValueError

    note_receiver("looking", look, topic="library.*", order="none")
    broker = notes.broker
    folio_events(TENANCY="folio")
    for number, tenant in enumerate(("college", "diku")):
        topic = NoteTopic(broker, wire=f"folio.{tenant}.library.note")
        topic.put("a", number, tenant=tenant)
    consumer = Consumer("events", broker=broker)
    while consumer.step(timeout=0):
        pass
    assert seen[-1] == "diku"
    assert set(seen) == {"diku", "college"}
    assert current_tenant() is None


# Logs


def test_the_log_names_receiver_and_place_and_never_the_payload(
    notes: NoteTopic, caplog: pytest.LogCaptureFixture
) -> None:
    """One ERROR line for each dead letter, with all that finds it again."""
    note_receiver(
        "my.receiver",
        Mood(3, error=ValueError("text with abracadabra")),
        retry=RetryPolicy(attempts=1),
    )
    notes.put("before", 0)
    event_id = notes.put("key-9", 3, data={"secret": "abracadabra"})
    with caplog.at_level(logging.DEBUG, logger="folio_events"):
        notes.consume()
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    for part in (
        "receiver=my.receiver",
        f"topic={WIRE}",
        "partition=0",
        "offset=1",
        "key=key-9",
        f"event={event_id}",
        "attempt=1",
        "error=builtins.ValueError",
    ):
        assert part in line
    assert "abracadabra" not in caplog.text
    assert Delivery.objects.get().error == "text with abracadabra"


def test_a_failure_that_will_be_tried_again_is_a_warning(
    notes: NoteTopic, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same facts, and as little of the payload."""
    note_receiver("my.receiver", Mood(3, error=ValueError("abracadabra")))
    notes.put("k", 3, data={"secret": "abracadabra"})
    with caplog.at_level(logging.DEBUG, logger="folio_events"):
        notes.consume()
    (record,) = [r for r in caplog.records if r.name == "folio_events.deliveries"]
    assert record.levelno == logging.WARNING
    assert "receiver=my.receiver" in record.getMessage()
    assert "abracadabra" not in caplog.text
    assert record.exc_info is None


def test_an_undecodable_record_is_logged_without_its_bytes(
    notes: NoteTopic, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that is no JSON may be somebody's letter all the same."""
    note_receiver("my.receiver")
    notes.put_raw(b'{"secret": "abracadabra"')
    with caplog.at_level(logging.DEBUG, logger="folio_events"):
        notes.consume()
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert "offset=0" in line
    assert "abracadabra" not in caplog.text
    assert TopicPartition(WIRE, 0).topic in line
