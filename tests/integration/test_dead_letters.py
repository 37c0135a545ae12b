"""Dead letters by cause, what waits behind them, and what is done to all that match."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connections
from django.utils import timezone

from folio_events import deliveries, receiver
from folio_events.deliveries import Failure
from folio_events.dialects import decode
from folio_events.exceptions import InvalidStateError
from folio_events.message import Record
from folio_events.models import BulkAction, Delivery, WithheldMessage
from folio_events.operations import bulk_actions, dead_letters
from folio_events.operations.bulk_actions import Action, State, Subject
from folio_events.operations.dead_letters import Selection
from folio_events.receivers import Receiver, registry
from folio_events.redelivery import retry_due
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

pytest_plugins = ("tests.second_connection",)
pytestmark = pytest.mark.django_db

_offsets = iter(range(10**9))
Other = Callable[[Callable[[], Any]], Future[Any]]


def new_receiver(name: str = "one", order: str = "key") -> Receiver:
    receiver("library.*", name=name, order=order)(lambda _event: None)  # type: ignore[arg-type]
    found = registry.get(name)
    assert found is not None
    return found


def fail(to: Receiver, key: str = "k", error: str = "no", **options: Any) -> Delivery:
    """A dead letter of a new event."""
    record = Record(
        topic=options.get("topic", "folio.library.note"),
        partition=0,
        offset=next(_offsets),
        key=key.encode(),
        value=b"{}",
        headers=[],
        timestamp=1_700_000_000_123,
    )
    failure = Failure(error=ValueError(error), attempt=1, pause=options.get("pause"))
    deliveries.record_failure(to, record, decode(record), failure, using="default")
    found = Delivery.objects.latest("id")
    if "tenant" in options:
        Delivery.objects.filter(pk=found.pk).update(tenant=options["tenant"])
    return found


def hold(behind: Receiver, key: str) -> Delivery:
    """A delivery that was never tried, since an older one of its key is open."""
    record = Record("folio.library.note", 0, next(_offsets), key.encode(), b"{}", [], 1_700_000)
    deliveries.record_held(behind, record, decode(record), using="default")
    return Delivery.objects.latest("id")


def withheld_message(topic: str, state: str = "refused", pk: int | None = None) -> WithheldMessage:
    return WithheldMessage.objects.create(
        outbox_message_id=next(_offsets) + 10**6 if pk is None else pk,
        topic=topic,
        tenant="diku",
        key="a",
        state=state,
        error="too large" if state == "refused" else "",
        withheld_at=timezone.now(),
    )


def start(action: BulkAction.Action = Action.RETRY, **options: Any) -> BulkAction:
    options.setdefault("reason", "the receiver was mended")
    return bulk_actions.start(action, options.pop("selection", Selection()), **options)


def states() -> list[str]:
    return list(Delivery.objects.order_by("id").values_list("state", flat=True))


def test_failures_of_one_cause_are_one_group() -> None:
    """With how many, of whom, since when, and the newest as a sample."""
    one, two = new_receiver(), new_receiver("two")
    first = fail(one, "a", "no loan 1", tenant="diku")
    fail(one, "b", "no loan 2", tenant="diku", pause=60)
    last = fail(one, "c", "no loan 3", tenant="college", topic="folio.library.memo")
    other = fail(two, "a", "no loan 1")
    groups = dead_letters.groups(Selection(), using="default")
    assert [(g.receiver, g.dead, g.retrying, g.tenants, g.topics) for g in groups] == [
        ("one", 2, 1, 2, 2),
        ("two", 1, 0, 0, 1),
    ]
    mine = groups[0]
    assert (mine.sample, mine.error, mine.error_class) == (
        last.pk, "no loan 3", "builtins.ValueError",
    )  # fmt: skip
    assert mine.first_at == first.created_at
    assert groups[1].sample == other.pk


def test_what_is_settled_or_never_ran_is_in_no_group() -> None:
    """Only open failures are."""
    one = new_receiver()
    discarded = fail(one, "a")
    deliveries.discard([discarded.pk], reason="test")
    fail(one, "b")
    hold(one, "b")
    (group,) = dead_letters.groups(Selection(), using="default")
    assert (group.dead, group.retrying, group.behind) == (1, 0, 1)


def test_what_waits_behind_is_counted_by_cause() -> None:
    """By the oldest open delivery of the key, not by those between."""
    one = new_receiver()
    for key, error, held in (("a", "this", 2), ("b", "that", 1), ("c", "that", 0)):
        head = fail(one, key, error)
        for _ in range(held):
            hold(one, key)
        assert dead_letters.followers(head).count() == held
    groups = dead_letters.groups(Selection(), using="default")
    assert {(g.error, g.behind) for g in groups} == {("this", 2), ("that", 1)}


@pytest.mark.parametrize(
    "criteria",
    [
        {"receiver": "one"},
        {"topic": "folio.diku.library.note"},
        {"tenant": "diku"},
        {"event_type": "UPDATE"},
        {"error": "library.ShelfLocked"},
        {"fingerprint": "0123456789abcdef"},
        {"since": datetime(2026, 3, 1, tzinfo=UTC)},
        {"until": datetime(2026, 2, 1, tzinfo=UTC)},
    ],
    ids=lambda criteria: next(iter(criteria)),
)
def test_each_criterion_narrows_the_selection(criteria: dict[str, Any]) -> None:
    """It finds the one that has it and not the other; JSON brings it back."""
    values: dict[str, Any] = {
        "receiver": "other",
        "topic": "folio.diku.library.memo",
        "tenant": "college",
        "event_type": "CREATE",
        "error_class": "library.Other",
        "fingerprint": "f" * 16,
        "last_attempt_at": datetime(2026, 2, 10, tzinfo=UTC),
    }
    columns = {
        "error": "error_class",
        "since": "last_attempt_at",
        "until": "last_attempt_at",
    }
    ((name, value),) = criteria.items()
    if name == "until":
        value -= timedelta(1)
    one = fail(new_receiver())
    Delivery.objects.update(**values)
    fail(new_receiver("two"), "b")
    Delivery.objects.exclude(pk=one.pk).update(
        **{**values, columns.get(name, name): value, "event_id": uuid.uuid4()}
    )
    (other,) = Delivery.objects.exclude(pk=one.pk)
    selection = Selection(**criteria)
    assert list(selection.dead(using="default")) == [other]
    assert Selection.of(selection.criteria()) == selection


def test_a_topic_is_meant_logically_or_as_on_the_broker() -> None:
    """The logical one finds it with every tenant."""
    fail(new_receiver())
    for topic in ("library.note", "folio.library.note"):
        assert Selection(topic=topic).dead(using="default").count() == 1


def test_withheld_messages_are_not_chosen_by_what_they_have_not() -> None:
    """They have no receiver, and a mistaken name must not mean all of them."""
    with pytest.raises(ValueError, match="no receiver"):
        Selection(receiver="one").refused(using="default")
    with pytest.raises(ValueError, match="no colour"):
        Selection.of({"colour": "red"})


def test_all_that_match_run_again(notes: NoteTopic) -> None:
    """The retry pass works the action off and runs them; what does not match stays dead."""
    mood = Mood(0, 1, 2)
    for name in ("one", "two"):
        note_receiver(name, mood, order="none")
    notes.put_all("abc")
    notes.consume()
    Delivery.objects.update(state="dead", next_attempt_at=None)
    mood.bad = {2}
    bulk = start(selection=Selection(receiver="one"))
    ended = retry_due()
    assert (ended.resolved, ended.failed) == (2, 1)
    bulk.refresh_from_db()
    assert (bulk.state, bulk.done) == (State.DONE, 3)
    outcome = bulk_actions.outcome(bulk)
    assert (outcome.pop("resolved"), sum(outcome.values())) == (2, 1)
    assert set(Delivery.objects.filter(receiver="two").values_list("state", flat=True)) == {"dead"}


def test_rows_that_come_later_are_left_alone() -> None:
    """Whoever started it did not see them."""
    one = new_receiver()
    fail(one, "a")
    bulk = start(Action.DISCARD)
    fail(one, "b")
    assert bulk_actions.work_off() == 1
    bulk.refresh_from_db()
    assert states() == ["discarded", "dead"]
    assert (bulk.state, bulk.done, bulk.total) == (State.DONE, 1, 1)


def test_who_and_why_stand_with_every_row() -> None:
    """As if it had been settled alone."""
    ann = User.objects.create(username="ann")
    row = fail(new_receiver())
    bulk = start(Action.DISCARD, reason="tenant is gone", by=ann)
    bulk_actions.work_off()
    row.refresh_from_db()
    assert (row.reason, row.bulk_action) == ("tenant is gone", bulk.pk)
    entry = LogEntry.objects.get(object_id=str(row.pk), content_type__model="delivery")
    assert entry.user == ann
    assert entry.get_change_message() == f"discarded by bulk action {bulk.pk}: tenant is gone"
    assert bulk.created_by == "ann"


def test_an_action_on_the_same_rows_is_not_started_twice() -> None:
    """The second person gets the one that runs; another action on them is refused."""
    fail(new_receiver())
    first = start(selection=Selection(receiver="one"))
    assert start(selection=Selection(receiver="one")).pk == first.pk
    with pytest.raises(InvalidStateError, match=f"Bulk action {first.pk} .retry. works on"):
        start(Action.DISCARD, selection=Selection(receiver="one"))
    bulk_actions.work_off()
    with pytest.raises(InvalidStateError, match="Nothing matches"):
        start(selection=Selection(receiver="one"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reason": " "}, "Say why"),
        ({"rate": 0}, "above 0"),
        ({"rate": float("nan")}, "above 0"),
        ({"action": Action.RELEASE}, "No release of deliveries"),
        ({"subject": Subject.WITHHELD}, "No retry of withheld"),
    ],
)
def test_what_makes_no_sense_is_not_started(options: dict[str, Any], said: str) -> None:
    """And says what is wrong."""
    fail(new_receiver())
    with pytest.raises(ValueError, match=said):
        start(options.pop("action", Action.RETRY), **options)
    assert not BulkAction.objects.exists()


def test_a_cancelled_action_does_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has settled stays so."""
    monkeypatch.setattr(bulk_actions, "BATCH", 1)
    one = new_receiver()
    for key in "abc":
        fail(one, key)
    bulk = start(Action.DISCARD)
    assert bulk_actions.work_off(seconds=0) == 1
    assert bulk_actions.cancel(bulk.pk, reason="a mistake").done == 1
    assert bulk_actions.work_off() == 0
    assert states() == ["discarded", "dead", "dead"]
    with pytest.raises(InvalidStateError, match="is cancelled already"):
        bulk_actions.cancel(bulk.pk)
    with pytest.raises(InvalidStateError, match="no bulk action 0"):
        bulk_actions.cancel(0)


def test_after_a_failed_batch_it_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch and how far it came are one transaction: nothing is done twice or left out."""
    monkeypatch.setattr(bulk_actions, "BATCH", 2)
    one = new_receiver()
    for key in "abcd":
        fail(one, key)
    bulk = start(Action.DISCARD)
    assert bulk_actions.work_off(seconds=0) == 2

    def break_off(*_args: object, **_options: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deliveries.settling, "log_action", break_off)
        with pytest.raises(KeyboardInterrupt):
            bulk_actions.work_off()
    bulk.refresh_from_db()
    assert (bulk.done, states()) == (2, ["discarded", "discarded", "dead", "dead"])
    assert bulk_actions.work_off() == 2
    bulk.refresh_from_db()
    assert (bulk.done, bulk.state) == (4, State.DONE)


def test_one_that_was_settled_by_hand_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not counted, and stops nobody."""
    one = new_receiver()
    first, second = fail(one, "a"), fail(one, "b")
    bulk = start(Action.DISCARD, reason="by many")
    deliveries.discard([first.pk], reason="by hand")
    assert bulk_actions.work_off() == 1
    bulk.refresh_from_db()
    assert (bulk.state, bulk.done, bulk.total) == (State.DONE, 1, 2)
    reasons = Delivery.objects.order_by("id").values_list("reason", flat=True)
    assert list(reasons) == ["by hand", "by many"]
    assert second.pk


def test_the_rate_spreads_them_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are made due one after the other, no further ahead than ten seconds."""
    one = new_receiver(order="none")
    for _ in range(50):
        fail(one)
    bulk = start(rate=2)
    assert bulk_actions.work_off() == 20
    waiting = Delivery.objects.filter(state="retrying").order_by("id")
    due = [at for at in waiting.values_list("next_attempt_at", flat=True) if at is not None]
    assert [round((at - due[0]).total_seconds()) for at in due] == [
        second for second in range(10) for _ in range(2)
    ]
    assert bulk_actions.work_off() == 0
    bulk.refresh_from_db()
    assert (bulk.state, bulk.done) == (State.RUNNING, 20)
    # After a standstill of an hour no more than a minute is made up for.
    BulkAction.objects.update(next_at=timezone.now() - timedelta(hours=1), rate=0.2)
    assert bulk_actions.work_off() == 14


def test_one_that_cannot_be_read_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Of another version, say: it is logged, and what else there is to do is done."""
    one = new_receiver()
    fail(one, "a")
    old = start(selection=Selection(receiver="one"))
    BulkAction.objects.update(criteria={"colour": "red"})
    start(Action.DISCARD)
    assert bulk_actions.work_off() == 1
    assert f"bulk action {old.pk} does not go on: A selection has no colour." in caplog.text
    assert states() == ["discarded"]


def test_a_slow_rate_lets_one_pass_at_a_time() -> None:
    """Also less than one in ten seconds."""
    one = new_receiver(order="none")
    for _ in range(3):
        fail(one)
    start(rate=0.01)
    assert bulk_actions.work_off() == 1
    assert bulk_actions.work_off() == 0


def test_refused_messages_are_released_and_discarded_by_topic() -> None:
    """Followers are not touched: they go when their turn comes."""
    big, follower = withheld_message("library.big"), withheld_message("library.big", "waiting")
    other = withheld_message("library.other")
    (first, second) = dead_letters.refused_groups(using="default")
    assert (first.topic, first.refused, first.waiting, first.error) == (
        "library.big", 1, 1, "too large",
    )  # fmt: skip
    assert (second.topic, second.refused, second.waiting) == ("library.other", 1, 0)
    start(Action.RELEASE, subject=Subject.WITHHELD, selection=Selection(topic="library.big"))
    start(
        Action.DISCARD, subject=Subject.WITHHELD, selection=Selection(topic="library.other"),
        reason="never needed",
    )  # fmt: skip
    assert bulk_actions.work_off() == 2
    found = {row.pk: (row.state, row.reason) for row in WithheldMessage.objects.all()}
    assert found == {
        big.pk: ("waiting", ""),
        follower.pk: ("waiting", ""),
        other.pk: ("discarded", "never needed"),
    }


def test_deliveries_of_an_older_version_get_their_fingerprint() -> None:
    """The same as a new failure of theirs would have; settled ones are left."""
    one = new_receiver()
    first, second = fail(one, "a"), fail(one, "b")
    hold(one, "b")
    Delivery.objects.update(fingerprint=None)
    Delivery.objects.filter(pk=second.pk).update(state="resolved")
    assert dead_letters.groups(Selection(), using="default") == []
    assert deliveries.fill_fingerprints(using="default") == 2
    assert deliveries.fill_fingerprints(using="default") == 0
    found = list(Delivery.objects.order_by("id").values_list("fingerprint", flat=True))
    assert found == [first.fingerprint, None, ""]


def test_a_run_that_is_under_way_is_not_begun_beside_itself() -> None:
    """Retry leaves it alone until its lease is over."""
    row = fail(new_receiver(), pause=0)
    later = timezone.now() + timedelta(minutes=1)
    Delivery.objects.update(unfinished=True, next_attempt_at=later)
    assert deliveries.retry([row.pk]) == 1
    row.refresh_from_db()
    assert (row.unfinished, row.next_attempt_at) == (True, later)
    Delivery.objects.update(next_attempt_at=timezone.now())
    deliveries.retry([row.pk])
    row.refresh_from_db()
    assert not row.unfinished


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_of_two_people_at_once_one_starts_and_both_get_it() -> None:
    """The constraint of the table decides, whoever is first."""
    fail(new_receiver())
    together = threading.Barrier(2)

    def click(_person: int) -> int:
        try:
            together.wait(10)
            return start(selection=Selection(receiver="one")).pk
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        found = set(pool.map(click, range(2)))
    assert len(found) == 1 == BulkAction.objects.count()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_two_passes_at_once_settle_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is one process's; the log has one entry for each row."""
    monkeypatch.setattr(bulk_actions, "BATCH", 3)
    one = new_receiver()
    for number in range(30):
        fail(one, str(number))
    ann = User.objects.create(username="ann")
    bulk = start(Action.DISCARD, by=ann)
    together = threading.Barrier(2)

    def work(_process: int) -> int:
        try:
            together.wait(10)
            return bulk_actions.work_off()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        settled = sum(pool.map(work, range(2)))
    settled += bulk_actions.work_off()
    bulk.refresh_from_db()
    assert (settled, bulk.done, bulk.state) == (30, 30, State.DONE)
    assert LogEntry.objects.filter(change_message__startswith="discarded").count() == 30


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("mode", ["transaction", "after_commit"])
def test_a_letter_that_is_retried_during_its_run_runs_once(
    notes: NoteTopic, other: Other, mode: str
) -> None:
    """The second person waits for its end, or it goes on; no second run stands beside it."""
    asked: list[Future[Any]] = []

    def again() -> str:
        try:
            deliveries.retry([row.pk])
        except InvalidStateError as error:
            return str(error)
        return f"resolved {retry_due().resolved}"

    def react(_event: Any) -> None:
        if not mood.bad:
            asked.append(other(again))
            if mode == "after_commit":  # in the other mode it waits for the lock of the run
                asked[0].result(20)
        mood(_event)

    mood = Mood(0)
    started = note_receiver("one", react, mode=mode)
    notes.put("a", 0)
    notes.consume()
    row = Delivery.objects.get()
    deliveries.retry([row.pk])
    mood.bad = set()
    started.clear()
    assert retry_due().resolved == 1
    said = asked[0].result(20)
    assert said == "resolved 0" or "is resolved; only open ones" in said
    assert retry_due().resolved == 0
    assert started == [0]


@pytest.mark.django_db(transaction=True)
def test_a_letter_that_two_retry_runs_once(notes: NoteTopic) -> None:
    """The second click before the run changes nothing, the one after it is refused."""
    mood = Mood(0)
    note_receiver("one", mood)
    notes.put("a", 0)
    notes.consume()
    row = Delivery.objects.get()
    Delivery.objects.update(state="dead", next_attempt_at=None)
    mood.bad = set()
    deliveries.retry([row.pk])
    deliveries.retry([row.pk])
    assert retry_due().resolved == 1
    assert retry_due().resolved == 0
    assert effects("one") == [0]
    with pytest.raises(InvalidStateError, match="is resolved"):
        deliveries.retry([row.pk])
