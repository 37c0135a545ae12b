"""Everything that is known of one event comes together: outbox, broker, receivers, attempts."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from folio_events import Event, RetryPolicy, deliveries, publish, receiver
from folio_events.models import Attempt, Delivery, InboxEntry, OutboxMessage, WithheldMessage
from folio_events.monitoring.history import MISSING, Change, History, Result, changes, history
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from folio_events.tenants import CallContext, call_context
from tests.note_topic import LOGICAL, Mood, NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)
AT_ONCE = RetryPolicy(attempts=50, backoff=0)


def known(event_id: uuid.UUID) -> History:
    found = history(event_id)
    assert found is not None
    return found


def told(found: History) -> list[tuple[str, str]]:
    return [(step.what, step.receiver) for step in found.timeline()]


def test_an_event_is_followed_from_the_write_to_its_receivers(notes: NoteTopic) -> None:
    """Written, published at a place, failed and repaired in one receiver, handled by another."""
    mood = Mood(7)
    note_receiver("good", order="none")
    note_receiver("moody", mood, retry=AT_ONCE)
    context = CallContext(
        headers={"x-okapi-request-id": "123/notes"}, cause_id=(cause := uuid.uuid4())
    )
    with call_context(context):
        event = publish(LOGICAL, key="k", payload={"number": 7})
    drain()
    notes.consume()
    mood.bad.clear()
    retry_due()

    found = known(event.id)
    assert (found.topic, found.event_type, found.key) == (LOGICAL, event.type, "k")
    assert (found.request_id, found.cause_id, found.source) == ("123/notes", str(cause), "/events")
    assert found.written is not None
    assert found.written.published is not None
    assert (found.places[0].topic, found.places[0].offset) == (notes.wire, 0)
    assert found.event is not None
    assert found.event.payload == {"number": 7}
    good, moody = found.handlings
    assert (good.receiver, good.result, good.delivery) == ("good", Result.HANDLED, None)
    assert (moody.receiver, moody.result) == ("moody", Result.HANDLED)
    assert moody.delivery is not None
    assert [run.outcome for run in moody.delivery.runs] == ["failed", "succeeded"]
    assert "a bad number" in moody.delivery.runs[0].traceback
    assert told(found)[:2] == [("written", ""), ("published", "")]
    assert sorted(told(found)[2:]) == [
        ("failed", "moody"), ("handled", "good"), ("succeeded", "moody"),
    ]  # fmt: skip


def test_an_event_of_others_is_known_by_what_became_of_it(notes: NoteTopic) -> None:
    """There is no outbox row; the failed delivery has its bytes."""
    note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
    event_id = notes.put(headers=[("ce_source", b"/mod-notes")])
    notes.consume()
    found = known(event_id)
    assert found.written is None
    assert (found.topic, found.source) == (LOGICAL, "/mod-notes")
    assert found.event is not None
    assert told(found) == [("published", ""), ("failed", "one"), ("dead", "one")]


def test_an_event_that_only_the_inbox_knows_is_known(notes: NoteTopic) -> None:
    """Another system's event that succeeded at once has left nothing else."""
    note_receiver("one")
    event_id = notes.put()
    notes.consume()
    found = known(event_id)
    assert (found.payload, found.event) == (None, None)
    assert [(h.receiver, h.result) for h in found.handlings] == [("one", Result.HANDLED)]


def test_an_unknown_event_is_none() -> None:
    """There is no page about nothing."""
    assert history(uuid.uuid4()) is None


def test_what_waits_behind_a_dead_letter_is_counted(notes: NoteTopic) -> None:
    """From both ends: it holds two, and each of them names the oldest that it waits for."""
    note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
    ids = notes.put_all(["k"] * 3)
    notes.put("other")
    notes.consume()
    dead, _, last = (known(event_id).handlings[0] for event_id in ids)
    assert dead.delivery is not None
    assert last.delivery is not None
    assert (dead.result, dead.delivery.holds) == (Result.DEAD, 2)
    assert (last.result, last.delivery.held_behind) == (Result.HELD, dead.delivery.id)
    assert ("held", "one") in told(known(ids[2]))


def test_what_waited_behind_another_says_so_when_it_is_settled(notes: NoteTopic) -> None:
    """The step of its keeping names the delivery that stood before it."""
    mood = Mood(0)
    note_receiver("one", mood, retry=RetryPolicy(attempts=1))
    first, second = notes.put_all(["k"] * 2)
    notes.consume()
    head = known(first).handlings[0].delivery
    assert head is not None
    deliveries.discard([head.id], reason="a test")
    kept = known(second).handlings[0].delivery
    assert kept is not None
    assert (kept.held_behind, kept.waited_for) == (None, head.id)
    assert (head.waited_for, told(known(second))[1]) == (None, ("held", "one"))


def test_a_delivery_of_many_runs_was_not_kept_without_one() -> None:
    """Its first runs are no longer known, its recording was the first of them all the same."""
    now = timezone.now()
    row = Delivery.objects.create(
        receiver="one", group="g", event_id=uuid.uuid4(), state="dead", order="none", attempts=25,
        topic=LOGICAL, partition=0, offset=1, headers=b"[]", published_at=now, created_at=now,
        last_attempt_at=now,
    )  # fmt: skip
    Attempt.objects.create(
        delivery=row,
        receiver="one",
        number=6,
        started_at=now + timedelta(hours=1),
        outcome="failed",
    )
    assert ("held", "one") not in told(known(row.event_id))


def test_a_receiver_that_has_not_come_to_it_is_told_from_one_that_passed_it(
    notes: NoteTopic,
) -> None:
    """The offset of the group says which; before there is one, nobody knows."""
    note_receiver("one", mode="manual")
    event = publish(LOGICAL, key="k", payload={"number": 1})
    assert known(event.id).handlings[0].result == Result.UNKNOWN
    drain()
    notes.consume()
    assert known(event.id).handlings[0].result == Result.PASSED
    later = publish(LOGICAL, key="k", payload={"number": 2})
    drain()
    assert known(later.id).handlings[0].result == Result.AHEAD


def test_an_event_that_was_refused_says_so() -> None:
    """When, why, and what a person did about it."""
    event = publish(LOGICAL, key="k", payload={})
    row = OutboxMessage.objects.get()
    WithheldMessage.objects.create(
        outbox_message=row, topic=row.topic, key=row.key, state="discarded",
        error="MessageTooLargeError", reason="a test", withheld_at=timezone.now(),
        resolved_at=timezone.now(),
    )  # fmt: skip
    found = known(event.id)
    assert found.written is not None
    assert found.written.withheld is not None
    assert (found.written.withheld.error, found.written.withheld.reason) == (
        "MessageTooLargeError",
        "a test",
    )
    assert told(found) == [("written", ""), ("withheld", ""), ("discarded", "")]


def test_runs_of_a_replay_stand_beside_the_first_ones(notes: NoteTopic) -> None:
    """Each by the number of its replay."""
    note_receiver("one")
    event_id = notes.put()
    notes.consume()
    InboxEntry.objects.create(
        receiver="one", event_id=event_id, replay=4, handled_at=timezone.now()
    )
    assert [h.replay for h in known(event_id).handlings] == [0, 4]


def test_a_delivery_of_a_receiver_that_is_no_more_is_shown(notes: NoteTopic) -> None:
    """Its name is all there is left of it."""
    note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
    event_id = notes.put()
    notes.consume()
    Delivery.objects.update(receiver="gone.away")
    gone = next(h for h in known(event_id).handlings if h.receiver == "gone.away")
    assert (gone.is_registered, gone.result) == (False, Result.DEAD)


def test_a_body_that_is_none_is_kept_with_the_reason(notes: NoteTopic) -> None:
    """There is no event, but bytes and what is wrong with them."""
    note_receiver("one")
    notes.put_raw(b"\xff\x00")
    notes.consume()
    found = known(Delivery.objects.get().event_id)
    assert (found.payload, found.event, found.undecodable) == (
        b"\xff\x00",
        None,
        "the body is no UTF-8",
    )
    assert Attempt.objects.get().error == "the body is no UTF-8"


def test_a_broadcast_receiver_is_left_out(notes: NoteTopic) -> None:
    """It keeps no inbox that could tell of it."""

    @receiver(LOGICAL, name="cache", broadcast=True)
    def refresh(event: Event) -> None: ...

    event = publish(LOGICAL, key="k", payload={})
    assert known(event.id).handlings == ()


def test_the_timeline_goes_by_time(notes: NoteTopic) -> None:
    """Whatever order the tables were read in."""
    note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
    event_id = notes.put()
    notes.consume()
    early = timezone.now() - timedelta(days=1)
    Attempt.objects.update(started_at=early)
    steps = known(event_id).timeline()
    assert steps[0].at == early
    assert [step.at for step in steps] == sorted(step.at for step in steps)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, [Change("b", 2, 3)]),
        (None, {"a": 1}, [Change("a", MISSING, 1)]),
        ({"a": 1}, None, [Change("a", 1, MISSING)]),
        ({"a": None}, {}, [Change("a", None, MISSING)]),
        ({"a": 1}, {"a": True}, [Change("a", 1, True)]),
        ({"a": {"x": 1}}, {"a": {"x": 1}}, []),
    ],
)
def test_changes_are_what_differs(old, new, expected) -> None:
    """A member that is missing is another thing than one that is null."""
    assert changes(old, new) == expected
