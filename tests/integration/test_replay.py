"""Past events run again in the receivers that are named, once in each replay, and nowhere else."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from folio_events import Event, RetryPolicy, deliveries, inbox, publish
from folio_events.exceptions import InvalidStateError
from folio_events.inbox import Lane
from folio_events.message import TopicPartition
from folio_events.models import ConsumerOffset, Delivery, OutboxMessage, Publication, Replay
from folio_events.operations import replays
from folio_events.operations.criteria import Criteria
from folio_events.operations.replay import (
    cancel_replay,
    count_events,
    replay_events,
    resume_replay,
    warnings_about,
)
from folio_events.receivers import registry
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from tests.note_topic import LOGICAL, WIRE, Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)
ALL = Criteria(topic=LOGICAL)
PLACE = TopicPartition(WIRE, 0)


def replay(criteria: Criteria = ALL, *names: str, **options: Any) -> Replay:
    return replay_events(criteria, names or ["one"], reason="a bug was fixed", **options)


def retry_all() -> None:
    while retry_due().resolved:
        pass


def numbers(*, replay: int) -> list[int]:
    """The offsets of a replay's deliveries, in the order of their ids."""
    found = Delivery.objects.filter(replay=replay).order_by("id")
    return list(found.values_list("offset", flat=True))


# What runs


def test_named_receivers_run_again_once_and_others_not(notes: NoteTopic) -> None:
    """A bug is mended and its window replayed: its receiver's effects double, nothing else moves."""
    note_receiver("one")
    note_receiver("other")
    notes.put_all("aabbc")
    notes.consume()
    before = list(ConsumerOffset.objects.values())

    done = replay()
    retry_all()

    assert (done.state, done.passed, done.deliveries) == ("done", 5, 5)
    assert sorted(effects("one")) == sorted([*range(5), *range(5)])
    assert effects("other") == list(range(5))
    assert list(ConsumerOffset.objects.values()) == before
    assert notes.consume() == 0
    second = replay()
    retry_all()
    assert second.pk != done.pk
    assert len(effects("one")) == 15


def test_events_of_a_key_run_in_their_order(notes: NoteTopic) -> None:
    """One that fails holds the later ones of its key back, as when they came the first time."""
    mood = Mood()
    note_receiver("one", mood, retry=RetryPolicy(backoff=100))
    notes.put_all("ababab")
    notes.consume()
    mood.bad = {2}

    replay()
    retry_due()

    again = effects("one")[6:]
    assert [n for n in again if n % 2 == 0] == [0]
    assert [n for n in again if n % 2 == 1] == [1, 3, 5]
    mood.bad.clear()
    Delivery.objects.update(next_attempt_at=timezone.now())
    retry_all()
    assert [n for n in effects("one")[6:] if n % 2 == 0] == [0, 2, 4]


def test_events_of_a_partition_run_in_their_order(notes: NoteTopic) -> None:
    """With order="partition" one that fails holds all later ones of its partition back."""
    mood = Mood()
    note_receiver("one", mood, order="partition", retry=RetryPolicy(backoff=100))
    notes.put_all("abcd")
    notes.consume()
    mood.bad = {1}

    replay()
    retry_due()

    assert effects("one")[4:] == [0]
    held = deliveries.with_held_behind(Delivery.objects.filter(offset=3)).get()
    assert vars(held)["held_behind"] == Delivery.objects.get(offset=1).pk


def test_new_events_wait_behind_replayed_ones_of_their_key(notes: NoteTopic) -> None:
    """The last event of a key that runs is the newest; other keys go on at once."""
    note_receiver("one")
    notes.put_all("aab")
    notes.consume()
    replay(Criteria(topic=LOGICAL, partition=0, from_offset=0, to_offset=2))

    notes.put("a", 3)
    notes.put("b", 4)
    notes.consume()

    assert effects("one")[3:] == [4]
    retry_all()
    assert effects("one")[4:] == [0, 1, 3]


def test_a_replay_does_not_pause_the_group(
    notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """However many replayed deliveries a key has, its partition is read on."""
    folio_events(MAX_HELD=2, MAX_WAITING=2)
    note_receiver("one")
    notes.put_all("aaaaa")
    notes.consume()
    replay(broker=notes.broker)  # another setting would make another broker

    notes.put("a", 5)
    notes.put("b", 6)

    assert notes.consume() == 2
    assert effects("one")[5:] == [6]
    assert deliveries.count_open("one", 100, using="default") == 1


def test_live_deliveries_come_before_replayed_ones(notes: NoteTopic) -> None:
    """A failure of now is not tried again only after a long replay."""
    mood = Mood(3)
    note_receiver("one", mood, retry=RetryPolicy(backoff=100))
    notes.put_all("abc")
    notes.consume()
    replay()
    notes.put("d", 3)
    notes.consume()
    mood.bad.clear()
    Delivery.objects.filter(offset=3).update(next_attempt_at=timezone.now())

    retry_due(limit=1)

    assert effects("one")[3:] == [3]


def test_what_the_group_has_not_read_is_left_to_it(notes: NoteTopic) -> None:
    """A replay ends where the group is: the rest runs once, when the group reads it."""
    note_receiver("one")
    notes.put_all("ab")
    notes.consume()
    notes.put("c", 2)

    assert replay().deliveries == 2
    retry_all()
    notes.consume()

    assert sorted(effects("one")) == [0, 0, 1, 1, 2]


def test_a_receiver_that_has_never_run_gets_the_past(notes: NoteTopic) -> None:
    """One that was added to a group is told what the group had read before."""
    note_receiver("one")
    notes.put_all("abc")
    notes.consume()
    note_receiver("late")
    notes.restart()
    notes.consume()
    assert effects("late") == []

    replay(ALL, "late")
    retry_all()

    assert effects("late") == [0, 1, 2]


def test_what_the_group_reads_meanwhile_is_replayed_too(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new event of a key may run between two batches; its replayed run makes it the last."""
    note_receiver("one")
    notes.put_all("aa")
    notes.consume()
    record_replayed, puts = deliveries.record_replayed, [3, 2]

    def record_and_read_on(*args: Any, **options: Any) -> None:
        record_replayed(*args, **options)
        if puts:
            notes.put("a", puts.pop())

    monkeypatch.setattr(deliveries, "record_replayed", record_and_read_on)

    def read_on(count: int) -> None:
        notes.consume()
        retry_all()

    done = replay(advance=read_on)
    retry_all()

    assert done.deliveries == 4
    assert effects("one")[-1] == 3


@pytest.mark.postgres
def test_a_batch_that_the_group_has_in_hand_is_waited_for(notes: NoteTopic) -> None:
    """An event that looked for deliveries before those of its key were made is replayed after them."""
    in_hand, go_on = threading.Event(), threading.Event()

    def linger(event: Event) -> None:
        if event.payload["number"] == 2 and not in_hand.is_set():
            in_hand.set()
            assert go_on.wait(20)

    note_receiver("one", linger)
    notes.put_all("aa")
    notes.consume()
    notes.put("a", 2)

    def consume() -> None:
        notes.consume()
        connections.close_all()

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert in_hand.wait(20)
    done: list[Replay] = []

    def run_replay() -> None:
        done.append(replay())
        connections.close_all()

    replaying = threading.Thread(target=run_replay)
    replaying.start()
    deadline = time.monotonic() + 20
    while not waits_for_a_lock() and replaying.is_alive():
        assert time.monotonic() < deadline
    go_on.set()
    consumer.join(20)
    replaying.join(20)
    retry_all()

    assert done[0].deliveries == 3
    assert effects("one")[-1] == 2


def waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)")
        return bool(cursor.fetchone()[0])


# Which events


def test_events_are_chosen_by_time(notes: NoteTopic) -> None:
    """From the one moment on and before the other, by the time of publishing."""
    note_receiver("one")
    stamps = []
    for number in range(4):
        notes.put("a", number)
        stamp = notes.broker.records(WIRE)[-1].timestamp
        stamps.append(datetime.fromtimestamp(stamp / 1000, UTC))
        while int(time.time() * 1000) <= stamp:
            time.sleep(0.001)
    notes.consume()

    done = replay(Criteria(since=stamps[1], until=stamps[3]))

    assert numbers(replay=done.pk) == [1, 2]


def test_events_are_chosen_by_id_tenant_and_type(notes: NoteTopic) -> None:
    """What is left out of the criteria does not matter; what is in them must all hold."""
    note_receiver("one")
    ids = notes.put_all("aab")
    notes.put("c", 3, type="UPDATED")
    notes.consume()

    chosen = replay(Criteria(event_ids=frozenset(ids[1:])))
    typed = replay(Criteria(types=frozenset({"UPDATE"})))
    nobodys = replay(Criteria(tenant="diku"))
    both = replay(Criteria(event_ids=frozenset(ids), types=frozenset({"UPDATE"})))

    assert numbers(replay=chosen.pk) == [1, 2]
    assert numbers(replay=typed.pk) == [3]
    assert numbers(replay=nobodys.pk) == numbers(replay=both.pk) == []


def test_an_event_that_stands_in_the_log_twice_runs_once(notes: NoteTopic) -> None:
    """The relay may publish an event again; a replay runs it once all the same."""
    note_receiver("one")
    twice = notes.put("a", 0)
    notes.put("a", 0, event_id=twice)
    notes.consume()

    replay()
    retry_all()

    assert effects("one") == [0, 0]


def test_what_is_no_event_is_counted_and_left_out(notes: NoteTopic) -> None:
    """Its dead letter is there from the first time."""
    note_receiver("one")
    notes.put_raw(b"no json")
    notes.put("b", 1)
    notes.consume()

    done = replay()

    assert (done.unreadable, numbers(replay=done.pk)) == (1, [1])


def test_a_dry_run_counts_by_topic_and_receiver_and_writes_nothing(notes: NoteTopic) -> None:
    """The count is that of the replay which follows."""
    note_receiver("one")
    note_receiver("other", types=["special"])
    notes.put_all("aab")
    notes.put("c", 3, type="special")
    notes.consume()

    count = count_events(ALL, ["one", "other"])

    assert count.events == {(WIRE, "one"): 4, (WIRE, "other"): 1}
    assert not Replay.objects.exists()
    assert not Delivery.objects.exists()
    assert replay(ALL, "one", "other").deliveries == count.deliveries == 5


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"since": datetime(2026, 1, 1)},  # noqa: DTZ001 - that is the point
        {"since": datetime(2026, 1, 2, tzinfo=UTC), "until": datetime(2026, 1, 1, tzinfo=UTC)},
        {"topic": LOGICAL, "from_offset": 3},
        {"topic": LOGICAL, "partition": 0, "from_offset": 3, "to_offset": 3},
    ],
)
def test_criteria_that_choose_nothing_or_contradict_themselves_are_refused(given: Any) -> None:
    """Above all none at all, which would be every event there is."""
    with pytest.raises(ValueError, match=r"."):
        Criteria(**given)


def test_criteria_survive_their_storage() -> None:
    """A resumed replay chooses what the first run chose."""
    criteria = Criteria(
        since=datetime(2026, 1, 1, tzinfo=UTC),
        topic=LOGICAL,
        partition=0,
        from_offset=1,
        event_ids=frozenset({uuid.uuid4()}),
        types=frozenset({"UPDATE"}),
    )

    assert Criteria.from_json(criteria.as_json()) == criteria


@pytest.mark.parametrize(
    ("names", "error"),
    [([], ValueError), (["nobody"], InvalidStateError)],
)
def test_receivers_that_cannot_run_again_are_refused(
    notes: NoteTopic, names: list[str], error: type[Exception]
) -> None:
    """A replay for nobody, or for a name that is not registered, does not begin."""
    with pytest.raises(error):
        replay_events(ALL, names, reason="why")
    assert not Replay.objects.exists()


def test_a_replay_wants_a_reason(notes: NoteTopic) -> None:
    """It stays with the replay for whoever asks later."""
    note_receiver("one")
    with pytest.raises(ValueError, match="Say why"):
        replay_events(ALL, ["one"], reason=" ")


def test_receivers_outside_transactions_are_warned_of(notes: NoteTopic) -> None:
    """Their calls are made again, under other idempotency keys."""
    note_receiver("calling", mode="after_commit")
    note_receiver("plain")

    said = warnings_about([r for r in registry if r.name in ("calling", "plain")])

    assert [("calling" in text, "plain" in text) for text in said if "idempotency" in text] == [
        (True, False)
    ]


def test_a_group_that_has_read_nothing_is_named(notes: NoteTopic) -> None:
    """What it has not read is no past event; without a word its replay would look broken."""
    note_receiver("one")
    assert any("has read nothing yet" in text for text in warnings_about(list(registry)))

    notes.put_all("a")
    notes.consume()
    assert warnings_about(list(registry)) == []


# Kills, cancelling


def killed_after(batches: int) -> Callable[[int], None]:
    """An ``advance`` that ends the process after so many batches."""
    left = [batches]

    def die(_count: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise SystemExit

    return die


def test_a_replay_that_was_killed_is_resumed_without_doubling(notes: NoteTopic) -> None:
    """It goes on behind its last batch, with the ends that it had, and each event runs once."""
    note_receiver("one")
    notes.put_all(["a", "b", "c"] * 400)
    notes.consume()
    with pytest.raises(SystemExit):
        replay(advance=killed_after(2))
    begun = Replay.objects.get()
    assert (begun.state, begun.passed) == ("running", 1000)
    retry_due(limit=10)

    done = resume_replay(begun.pk)

    assert (done.state, done.passed, done.deliveries) == ("done", 1200, 1200)
    assert numbers(replay=done.pk) == list(range(1200))
    with pytest.raises(InvalidStateError, match="only running ones"):
        resume_replay(begun.pk)


def test_one_that_was_killed_before_its_first_batch_is_resumed(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is only a number then; its ends are looked for anew."""
    note_receiver("one")
    notes.put_all("abc")
    notes.consume()
    with monkeypatch.context() as patched:
        patched.setattr(replays, "advance", lambda *_a, **_k: killed_after(1)(0))
        with pytest.raises(SystemExit):
            replay()

    assert resume_replay(Replay.objects.get().pk).deliveries == 3


def test_a_replay_that_is_taken_over_ends_where_it_was(notes: NoteTopic) -> None:
    """Of two processes at one replay the older one stops; no event runs twice."""
    note_receiver("one")
    notes.put_all(["a"] * 1100)
    notes.consume()

    def take_over(_count: int) -> None:
        resume_replay(Replay.objects.get().pk)

    with pytest.raises(InvalidStateError, match="does not go on here"):
        replay(advance=take_over)

    assert Delivery.objects.count() == 1100


def test_a_replay_that_is_told_to_stop_can_be_resumed(notes: NoteTopic) -> None:
    """The batch in hand is finished."""
    note_receiver("one")
    notes.put_all(["a"] * 600)
    notes.consume()
    stop = threading.Event()
    stop.set()

    stopped = replay(stop=stop)

    assert (stopped.state, stopped.deliveries) == ("running", 500)
    assert resume_replay(stopped.pk).deliveries == 600


def test_a_cancelled_replay_runs_nothing_more(notes: NoteTopic) -> None:
    """Its open deliveries are discarded, in whatever process it is; what took effect stays."""
    note_receiver("one")
    notes.put_all("aab")
    notes.consume()
    done = replay()
    retry_due(limit=1)

    assert cancel_replay(done.pk, reason="the wrong window") == 2
    assert cancel_replay(done.pk, reason="once more") == 0

    retry_all()
    assert len(effects("one")) == 4
    assert Replay.objects.get().state == "cancelled"
    with pytest.raises(InvalidStateError, match="no replay"):
        cancel_replay(done.pk + 1, reason="another")


def test_a_running_replay_ends_when_it_is_cancelled(notes: NoteTopic) -> None:
    """Its process hears of it with the next batch."""
    note_receiver("one")
    notes.put_all(["a"] * 600)
    notes.consume()

    def cancel(_count: int) -> None:
        cancel_replay(Replay.objects.get().pk, reason="too many")

    with pytest.raises(InvalidStateError, match="it is cancelled"):
        replay(advance=cancel)

    assert not Delivery.objects.filter(state__in=Delivery.OPEN).exists()


def test_a_rate_is_kept(notes: NoteTopic) -> None:
    """Between batches it rests, so that no more deliveries are made in a second."""
    note_receiver("one")
    notes.put_all(["a"] * 600)
    notes.consume()
    stop = threading.Event()
    rests: list[float] = []
    stop.wait = rests.append  # type: ignore[method-assign,assignment]  # a clock of the test's own

    replay(rate=100, stop=stop)

    assert len(rests) == 2
    assert 0 < rests[0] <= 5
    assert rests[1] <= 6


# Sources


def publish_notes(count: int) -> list[uuid.UUID]:
    for number in range(count):
        with transaction.atomic():
            publish(LOGICAL, key="a", payload={"number": number})
    drain()
    return list(OutboxMessage.objects.order_by("id").values_list("event_id", flat=True))


def test_the_outbox_serves_where_the_log_is_cut(notes: NoteTopic) -> None:
    """What the topic's retention has deleted comes from the outbox, with the same ids and bytes."""
    note_receiver("one")
    ids = publish_notes(5)
    notes.consume()
    logged = {record.offset: record for record in notes.broker.records(WIRE)}
    since = Publication.objects.order_by("pk").first().published_at  # type: ignore[union-attr]

    done = replay(Criteria(topic=LOGICAL, since=since), source="outbox")
    retry_all()

    assert (done.source, done.deliveries) == ("outbox", 5)
    assert effects("one") == [*range(5), *range(5)]
    for delivery in Delivery.objects.all():
        record = deliveries.record_of(delivery)
        told = logged[delivery.offset]
        assert (record.key, record.value, record.headers) == (told.key, told.value, told.headers)
    assert {delivery.event_id for delivery in Delivery.objects.all()} == set(ids)


def test_own_events_are_found_by_their_ids_in_the_outbox(notes: NoteTopic) -> None:
    """Nobody reads a whole topic for one event; those of others are looked for in the log."""
    note_receiver("one")
    ids = publish_notes(3)
    foreign = notes.put("a", 3)
    notes.consume()

    own = replay(Criteria(event_ids=frozenset({ids[1]})))
    both = replay(Criteria(event_ids=frozenset({ids[1], foreign})))

    assert (own.source, own.passed, own.deliveries) == ("outbox", 1, 1)
    assert (both.source, both.passed, both.deliveries) == ("broker", 4, 2)


def test_an_outbox_replay_that_was_killed_is_resumed(notes: NoteTopic) -> None:
    """It goes on behind the last id that it had."""
    note_receiver("one")
    publish_notes(600)
    notes.consume()
    with pytest.raises(SystemExit):
        replay(source="outbox", advance=killed_after(1))

    done = resume_replay(Replay.objects.get().pk)

    assert (done.passed, done.deliveries) == (600, 600)
    assert numbers(replay=done.pk) == list(range(600))


@pytest.mark.parametrize("reaches_back", [True, False])
def test_a_window_whose_beginning_is_deleted_is_not_replayed_in_part(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch, reaches_back: bool
) -> None:
    """The outbox serves if it holds all of it; else a person says that the rest will do."""
    note_receiver("one")
    publish_notes(5)
    notes.consume()
    since = Publication.objects.order_by("pk").first().published_at  # type: ignore[union-attr]
    states = notes.broker.partition_states
    monkeypatch.setattr(
        notes.broker,
        "partition_states",
        lambda *args: {place: state._replace(low=2) for place, state in states(*args).items()},
    )
    monkeypatch.setattr(notes.broker, "offsets_at", lambda places, _time: dict.fromkeys(places, 2))
    if not reaches_back:
        since -= timedelta(days=1)

    if reaches_back:
        assert replay(Criteria(since=since)).source == "outbox"
        return
    with pytest.raises(InvalidStateError, match="begins at offset 2"):
        replay(Criteria(since=since))
    assert replay(Criteria(since=since), source="broker").deliveries == 3


def test_a_topic_that_nobody_listens_to_is_refused(notes: NoteTopic) -> None:
    """A slip of the pen is told, instead of a replay of nothing."""
    note_receiver("one")
    with pytest.raises(InvalidStateError, match="listen to no topic"):
        replay(Criteria(topic="library.nonsense"))


def test_the_group_of_a_replay_is_that_of_its_receiver(notes: NoteTopic) -> None:
    """Receivers of two groups that are at different places get what each has read."""
    note_receiver("one")
    note_receiver("other", group="slow")
    notes.put_all("ab")
    notes.consume("slow")
    notes.put("c", 2)
    notes.consume()

    done = replay(ALL, "one", "other")

    assert done.deliveries == 5
    assert inbox.positions(Lane(group="slow", database="default"), [PLACE])[PLACE].offset == 2
