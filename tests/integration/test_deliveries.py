"""Deliveries: what is kept of a failure, whose turn it is, and what a person may do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.utils import timezone

from folio_events import deliveries, receiver
from folio_events.deliveries import Failure
from folio_events.dialects import decode
from folio_events.exceptions import InvalidStateError
from folio_events.message import Record
from folio_events.models import Delivery
from folio_events.receivers import Receiver, registry

pytestmark = pytest.mark.django_db
_offsets = iter(range(10**9))


@pytest.fixture
def one() -> Receiver:
    return new_receiver("one")


def new_receiver(name: str, order: str = "key") -> Receiver:
    receiver("library.*", name=name, order=order)(lambda _event: None)  # type: ignore[arg-type]
    found = registry.get(name)
    assert found is not None
    return found


def fail(
    to: Receiver,
    key: str | None = "k",
    *,
    topic: str = "folio.library.note",
    pause: float | None = 0.0,
    error: Exception | None = None,
) -> Delivery:
    """A delivery of a new event that failed once."""
    record = Record(
        topic=topic,
        partition=0,
        offset=next(_offsets),
        key=None if key is None else key.encode(),
        value=b"{}",
        headers=[("a", b"1"), ("a", None), ("b", b"\xff\x00")],
        timestamp=1_700_000_000_123,
    )
    failure = Failure(error=error or ValueError("no"), attempt=1, pause=pause)
    deliveries.record_failure(to, record, decode(record), failure, using="default")
    return Delivery.objects.latest("id")


def due(*names: str) -> list[int]:
    return [delivery.pk for delivery in deliveries.due(names or ["one"], using="default")]


def test_a_delivery_is_due_when_its_pause_is_over(one: Receiver) -> None:
    """Those that are not yet due, or dead, are left."""
    now, _later, _dead = fail(one, "a"), fail(one, "b", pause=60), fail(one, "c", pause=None)
    assert due() == [now.pk]


def test_the_oldest_open_delivery_of_a_key_holds_the_others(one: Receiver) -> None:
    """Whether it retries, pauses or is dead; once it is settled, the next one is due."""
    first, second, third = (fail(one, "a") for _ in range(3))
    assert due() == [first.pk]
    Delivery.objects.filter(pk=first.pk).update(next_attempt_at=timezone.now() + timedelta(1))
    assert due() == []
    Delivery.objects.filter(pk=first.pk).update(state="dead", next_attempt_at=None)
    assert due() == []
    deliveries.discard([first.pk], reason="test")
    assert due() == [second.pk]
    Delivery.objects.filter(pk=second.pk).update(state="resolved")
    assert due() == [third.pk]


def test_keys_topics_and_receivers_do_not_hold_one_another(one: Receiver) -> None:
    """Nor do deliveries without a key."""
    other = new_receiver("other")
    free = [
        fail(one, "a"),
        fail(one, "b"),
        fail(one, "a", topic="folio.library.memo"),
        fail(other, "a"),
        fail(one, None),
        fail(one, None),
    ]
    assert due("one", "other") == [delivery.pk for delivery in free]
    assert due("other") == [free[3].pk]


def test_without_order_no_delivery_holds_another() -> None:
    """All of a key are due at once."""
    unordered = new_receiver("unordered", order="none")
    ids = [fail(unordered, "a").pk for _ in range(3)]
    assert due("unordered") == ids


def test_the_longest_waiting_is_first(one: Receiver) -> None:
    """By the time it is due, not by its age."""
    first, second = fail(one, "a"), fail(one, "b")
    Delivery.objects.filter(pk=first.pk).update(next_attempt_at=timezone.now())
    Delivery.objects.filter(pk=second.pk).update(next_attempt_at=timezone.now() - timedelta(1))
    assert due() == [second.pk, first.pk]


def test_a_held_delivery_says_behind_whom(one: Receiver) -> None:
    """The oldest open one of its key; those that are due or dead wait for nobody."""
    first, second, other = fail(one, "a", pause=None), fail(one, "a"), fail(one, "b")
    found = deliveries.with_held_behind(Delivery.objects.all())
    held = {delivery.pk: getattr(delivery, "held_behind") for delivery in found}  # noqa: B009 - annotated
    assert held == {first.pk: None, second.pk: first.pk, other.pk: None}


def test_the_record_is_kept_byte_by_byte(one: Receiver) -> None:
    """Headers that repeat, are missing or are no text come back as they were."""
    delivery = fail(one, "käse")
    again = deliveries.record_of(delivery)
    assert again.headers == [("a", b"1"), ("a", None), ("b", b"\xff\x00")]
    assert (again.key, again.value, again.timestamp) == ("käse".encode(), b"{}", 1_700_000_000_123)


def test_an_error_of_any_length_and_text_can_be_kept(one: Receiver) -> None:
    """It is cut, and what PostgreSQL refuses is replaced; of a traceback the end counts."""
    delivery = fail(one, error=ValueError("\0 \ud800 " + "x" * 200_000))
    assert len(delivery.error) == deliveries.MAX_ERROR
    assert len(delivery.traceback) == deliveries.MAX_TRACEBACK
    assert delivery.traceback.endswith("x\n")
    assert "\0" not in delivery.error


def test_the_cause_behind_an_error_stands_in_the_traceback(one: Receiver) -> None:
    """What it was raised from, with its own lines."""
    try:
        try:
            raise OSError("the cause")
        except OSError as cause:
            raise ValueError("the error") from cause
    except ValueError as error:
        delivery = fail(one, error=error)
    assert "OSError: the cause" in delivery.traceback
    assert "direct cause" in delivery.traceback


@pytest.mark.parametrize("pause", [None, 3600.0], ids=["dead", "retrying"])
def test_an_open_delivery_can_be_retried_at_once(one: Receiver, pause: float | None) -> None:
    """It is due from then on; its history stays."""
    delivery = fail(one, pause=pause)
    assert deliveries.retry([delivery.pk]) == 1
    assert due() == [delivery.pk]
    delivery.refresh_from_db()
    assert (delivery.state, delivery.attempts, delivery.error) == ("retrying", 1, "no")


def test_an_open_delivery_can_be_discarded(one: Receiver) -> None:
    """With a reason and a time; it will not run."""
    delivery = fail(one, pause=None)
    assert deliveries.discard([delivery.pk], reason="test data") == 1
    delivery.refresh_from_db()
    assert (delivery.state, delivery.reason) == ("discarded", "test data")
    assert delivery.resolved_at is not None
    assert due() == []


@pytest.mark.parametrize("state", ["resolved", "discarded"])
@pytest.mark.parametrize("action", ["retry", "discard"])
def test_a_settled_delivery_stays_settled(one: Receiver, action: str, state: str) -> None:
    """If one of several is, none is touched, and the error names it."""
    open_one, settled = fail(one, pause=None), fail(one, pause=None)
    Delivery.objects.filter(pk=settled.pk).update(state=state)
    acts: dict[str, Callable[[list[int]], int]] = {
        "retry": deliveries.retry,
        "discard": partial(deliveries.discard, reason="test"),
    }
    with pytest.raises(InvalidStateError, match=rf"{settled.pk} is {state}; only open ones"):
        acts[action]([open_one.pk, settled.pk])
    assert list(Delivery.objects.order_by("pk").values_list("state", flat=True)) == ["dead", state]
    assert not LogEntry.objects.exists()


def test_who_settles_a_delivery_stands_in_the_admin_log(one: Receiver) -> None:
    """One entry for each, with the reason."""
    user = User.objects.create(username="librarian")
    retried, discarded = fail(one, "a", pause=None), fail(one, "b", pause=None)
    deliveries.retry([retried.pk], by=user)
    deliveries.discard([discarded.pk], reason="test data", by=user)
    entries = LogEntry.objects.order_by("pk").values_list("object_id", "user", "change_message")
    assert list(entries) == [
        (str(retried.pk), user.pk, "retried"),
        (str(discarded.pk), user.pk, "discarded: test data"),
    ]


def test_a_program_that_settles_deliveries_is_logged(
    one: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a user the logger hears of it."""
    with caplog.at_level(logging.INFO, logger="folio_events.audit"):
        deliveries.retry([fail(one).pk])
    assert "1 deliveries by a program: retried" in caplog.text


def test_a_second_failure_of_the_same_event_makes_no_second_delivery(one: Receiver) -> None:
    """One (event, receiver) is one delivery."""
    delivery = fail(one)
    record = deliveries.record_of(delivery)
    failure = Failure(error=OSError(), attempt=1, pause=None)
    deliveries.record_failure(one, record, decode(record), failure, using="default")
    kept = Delivery.objects.get()
    assert (kept.pk, kept.error) == (delivery.pk, "no")


def test_any_number_of_receivers_can_be_asked_for() -> None:
    """SQLite takes no more than 500 parts of one SELECT."""
    names = [f"receiver {number}" for number in range(600)]
    assert deliveries.standing(names, [], [], [], using="default") == deliveries.Standing()
