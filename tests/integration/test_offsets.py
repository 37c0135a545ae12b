"""A group that does not run is moved, and what it did before holds unless it is to run again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connections

from folio_events import Event, RetryPolicy, deliveries, inbox
from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.database import DatabaseBroker
from folio_events.brokers.memory import MemoryBroker
from folio_events.consumer import Consumer
from folio_events.exceptions import BrokerError, ConfigurationError, InvalidStateError
from folio_events.inbox import Lane
from folio_events.message import TopicPartition
from folio_events.models import ConsumerOffset, Delivery, Replay
from folio_events.operations.offsets import Move, Target, reset_offsets
from folio_events.redelivery import retry_due
from tests.note_topic import WIRE, Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)
EARLIEST, LATEST = Target(end="earliest"), Target(end="latest")
PLACE = TopicPartition(WIRE, 0)
LANE = Lane(group="events", database="default")


def reset(to: Target, group: str = "events", **options: Any) -> list[Move]:
    return reset_offsets(group, to, reason="a test", **options)


def at() -> int | None:
    position = inbox.positions(LANE, [PLACE]).get(PLACE)
    return None if position is None else position.offset


def consumed(notes: NoteTopic, keys: str) -> None:
    """Have a group handle some notes and end."""
    notes.put_all(keys)
    notes.consume()
    notes.restart()


def test_a_group_goes_back_and_does_nothing_twice(notes: NoteTopic) -> None:
    """Databases and broker name the new offset; what took effect is read again and skipped."""
    note_receiver("one")
    note_receiver("calling", mode="after_commit")
    consumed(notes, "abc")

    moves = reset(EARLIEST)

    assert [(m.database, m.old, m.new, m.between) for m in moves] == [
        ("default", 3, 0, 3),
        ("", 3, 0, 3),
    ]
    assert at() == notes.broker.partition_states([WIRE], "events")[PLACE].committed == 0
    assert notes.consume() == 3
    assert effects("one") == effects("calling") == [0, 1, 2]


def test_what_the_inbox_has_lost_runs(notes: NoteTopic) -> None:
    """After a restore of the database the group catches up on what it no longer knows of."""
    note_receiver("one")
    consumed(notes, "abc")
    late = note_receiver("late")

    reset(EARLIEST)
    notes.consume()

    assert effects("one") == late == [0, 1, 2]


def test_again_runs_the_events_once_more_and_then_no_more(notes: NoteTopic) -> None:
    """Those up to where the group was, under the number of a replay; later ones as ever."""
    note_receiver("one")
    note_receiver("calling", mode="after_commit")
    consumed(notes, "abc")
    notes.put("d", 3)

    reset(Target(offset=1), again=True)
    notes.consume()
    notes.restart()

    for name in ("one", "calling"):
        assert effects(name) == [0, 1, 2, 1, 2, 3]
    # What is read yet again has had that effect, too.
    reset(Target(offset=1))
    notes.consume()
    assert effects("one") == [0, 1, 2, 1, 2, 3]
    kinds = Replay.objects.values_list("source", "state").distinct()
    assert list(kinds) == [("reset", "done")]


def test_again_covers_events_that_failed_before(notes: NoteTopic) -> None:
    """A settled delivery of the first time keeps its event from running twice, and not from this."""
    mood = Mood(1)
    note_receiver("one", mood, retry=RetryPolicy(attempts=1))
    consumed(notes, "abc")
    deliveries.discard([Delivery.objects.get().pk], reason="it is bad")
    mood.bad = {2}

    reset(EARLIEST, again=True)
    notes.consume()

    assert effects("one") == [0, 2, 0, 1]
    number = Replay.objects.get().pk
    states = list(Delivery.objects.order_by("id").values_list("offset", "replay", "state"))
    assert states == [(1, 0, "discarded"), (2, number, "dead")]


def test_again_pauses_the_partition_behind_a_long_chain(
    memory_broker: MemoryBroker, only_test_receivers: None, folio_events: Callable[..., None]
) -> None:
    """What the group makes of deliveries while it reads again counts as its backlog."""
    folio_events(MAX_HELD=2)
    notes = NoteTopic(get_broker())  # type: ignore[arg-type]  # the fixture's, anew
    mood = Mood()
    note_receiver("one", mood, retry=RetryPolicy(backoff=100))
    consumed(notes, "aaaaa")
    mood.bad = {0}

    reset(EARLIEST, again=True)
    notes.consume()

    assert Delivery.objects.count() == 2
    assert at() == 2


def test_two_resets_to_run_again_add_up(notes: NoteTopic) -> None:
    """The second one takes in what the first has left."""
    note_receiver("one")
    consumed(notes, "abcd")

    reset(Target(offset=2), again=True)
    reset(Target(offset=1), again=True)
    notes.consume()

    assert effects("one") == [0, 1, 2, 3, 1, 2, 3]


def test_again_fails_over_to_single_events(notes: NoteTopic) -> None:
    """The fallback of a failed batch keeps to the number of the replay, and so does the retry."""
    mood = Mood()
    note_receiver("one", mood, retry=RetryPolicy(backoff=0))
    consumed(notes, "aab")
    mood.bad = {1}
    reset(EARLIEST, again=True)
    notes.consume()
    assert effects("one") == [0, 1, 2, 0, 2]

    mood.bad.clear()
    Delivery.objects.update(next_attempt_at="2026-01-01T00:00Z")
    retry_due()
    notes.restart()
    reset(EARLIEST)
    notes.consume()

    assert effects("one") == [0, 1, 2, 0, 2, 1]


def test_a_group_skips_to_the_end(notes: NoteTopic) -> None:
    """What stands between is never brought to it; one that has not begun begins there."""
    note_receiver("one")
    note_receiver("other", group="others")
    consumed(notes, "a")
    notes.put_all("bcd")

    assert [move.between for move in reset(LATEST)] == [-3]
    assert [(move.old, move.between) for move in reset(LATEST, "others")] == [(None, -4)]
    notes.put("e", 9)
    notes.consume()
    notes.consume("others")

    assert (effects("one"), effects("other")) == ([0, 9], [9])


def test_a_group_goes_to_a_time(notes: NoteTopic) -> None:
    """The first message that was published then or later is the next."""
    note_receiver("one")
    consumed(notes, "ab")
    newest = notes.broker.records(WIRE)[-1].timestamp
    while int(time.time() * 1000) <= newest:
        time.sleep(0.001)
    notes.put("c", 2)
    stamp = notes.broker.records(WIRE)[-1].timestamp
    moment = datetime.fromtimestamp(stamp / 1000, UTC)

    assert [move.new for move in reset(Target(time=moment))] == [2]


def test_a_dry_run_moves_nothing(notes: NoteTopic) -> None:
    """It says what would move, also while members are there."""
    note_receiver("one")
    notes.put_all("abc")
    notes.consume()

    moves = reset_offsets("events", EARLIEST, dry_run=True)

    assert [(m.place, m.old, m.new, m.between) for m in moves] == [(PLACE, 3, 0, 3)]
    assert at() == 3


def test_a_group_with_members_is_left_alone(notes: NoteTopic) -> None:
    """They are named, and nothing moves."""
    note_receiver("one")
    notes.put_all("abc")
    notes.consume()

    with pytest.raises(InvalidStateError, match="has members: member 0"):
        reset(EARLIEST)

    assert at() == 3


def test_only_the_partitions_that_are_named_move(notes: NoteTopic) -> None:
    """By topic on the broker, by logical topic or pattern, by number."""
    other = "folio.library.letter"
    notes.broker.create_topics([TopicSpec(other, 2, 1)])
    note_receiver("one", topic="library.*")

    def moved(**options: Any) -> set[TopicPartition]:
        return {move.place for move in reset(LATEST, **options)}

    letters = {TopicPartition(other, 0), TopicPartition(other, 1)}
    assert moved(topic=other) == moved(topic="library.let*") == letters
    assert moved(topic="library.letter", partitions=[1]) == {TopicPartition(other, 1)}
    assert moved() == {*letters, PLACE}


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        (Target(offset=4), {}, "has the offsets 0 to 3, not 4"),
        (EARLIEST, {"topic": "library.nonsense"}, "listens to no topic"),
        (EARLIEST, {"partitions": [0, 7]}, "with partition 7"),
    ],
)
def test_what_is_not_there_is_refused_whole(
    notes: NoteTopic, to: Target, options: dict[str, Any], said: str
) -> None:
    """A slip of the pen moves nothing."""
    note_receiver("one")
    consumed(notes, "abc")

    with pytest.raises(InvalidStateError, match=said):
        reset(to, **options)

    assert at() == 3


def test_a_group_without_receivers_is_refused(notes: NoteTopic) -> None:
    """The groups that there are are named."""
    note_receiver("one")
    with pytest.raises(ConfigurationError, match="Groups with receivers: events"):
        reset(EARLIEST, "event")


def test_a_reset_wants_one_target_and_a_reason(notes: NoteTopic) -> None:
    """Two targets, none, a time without a zone, no reason: nothing of it is guessed."""
    note_receiver("one")
    for given in (
        {},
        {"end": "first"},
        {"end": "latest", "offset": 3},
        {"time": datetime(2026, 1, 1)},  # noqa: DTZ001 - that is the point
    ):
        with pytest.raises(ValueError, match=r"."):
            Target(**given)
    with pytest.raises(ValueError, match="Say why"):
        reset_offsets("events", EARLIEST)


def test_a_kill_between_databases_and_broker_does_no_harm(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The databases' offsets are the ones that count; doing it again ends it."""
    note_receiver("one")
    consumed(notes, "abc")

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(notes.broker, "set_group_offsets", die)
        with pytest.raises(SystemExit):
            reset(EARLIEST, again=True)
    notes.consume()
    assert effects("one") == [0, 1, 2, 0, 1, 2]


def test_a_member_that_joins_in_between_follows(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker refuses then, which is told; the member goes on where the databases say."""
    note_receiver("one")
    consumed(notes, "abc")
    monkeypatch.setattr(notes.broker, "group_members", lambda _group: [])
    late = Consumer("events", broker=notes.broker)
    late.step(timeout=0)

    with pytest.raises(BrokerError, match="has members"):
        reset(EARLIEST, again=True)
    notes.put("d", 3)
    for _ in range(3):
        late.step(timeout=0.3)  # once it finds out, it leaves the partition aside for a moment

    assert effects("one") == [0, 1, 2, 0, 1, 2, 3]
    late.close()


# The database broker, which has no members


def database_notes(count: int) -> DatabaseBroker:
    broker = DatabaseBroker({})
    broker.create_topics([TopicSpec(WIRE, 1, 1)])
    stage = NoteTopic(broker)  # type: ignore[arg-type]  # it takes any broker to publish
    for number in range(count):
        stage.put("a", number)
    return broker


def test_a_running_consumer_of_the_database_broker_follows_a_reset(
    only_test_receivers: None,
) -> None:
    """It reads its position with each poll, backwards too."""
    note_receiver("one")
    broker = database_notes(3)
    consumer = Consumer("events", broker=broker)
    assert consumer.step(timeout=0) == 3

    reset(Target(offset=1), again=True, broker=broker)

    assert consumer.step(timeout=0) == 2
    assert effects("one") == [0, 1, 2, 1, 2]


@pytest.mark.postgres
def test_a_batch_in_hand_keeps_a_reset_away(only_test_receivers: None) -> None:
    """The consumer holds the lock of its offsets; nothing is moved under it."""
    in_hand, go_on = threading.Event(), threading.Event()

    def linger(_event: Event) -> None:
        in_hand.set()
        assert go_on.wait(20)

    note_receiver("one", linger)
    broker = database_notes(1)

    def consume() -> None:
        Consumer("events", broker=broker).step(timeout=0)
        connections.close_all()

    thread = threading.Thread(target=consume)
    thread.start()
    assert in_hand.wait(20)
    with pytest.raises(InvalidStateError, match="is at work"):
        reset(EARLIEST, broker=broker)
    go_on.set()
    thread.join(20)

    assert [move.old for move in reset(EARLIEST, broker=broker)] == [1]


# Stopped partitions


def test_a_stopped_partition_names_the_command_and_goes_on_after_it(
    notes: NoteTopic, caplog: pytest.LogCaptureFixture
) -> None:
    """Its records were lost: the consumer says what to do, and that is enough."""
    note_receiver("one")
    consumed(notes, "abc")
    ConsumerOffset.objects.update(offset=9)

    with caplog.at_level(logging.ERROR, "folio_events.consumer"):
        assert notes.consume() == 0
    assert f"reset_offsets --group events --topic {WIRE} --partition 0" in caplog.text
    notes.restart()

    assert [move.between for move in reset(LATEST)] == [0]
    notes.put("d", 3)
    notes.consume()
    assert effects("one") == [0, 1, 2, 3]
