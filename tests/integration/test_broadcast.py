"""Broadcast receivers: every process sees every event, and nothing is kept of it."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from folio_events import Event, broadcast, claim, current_tenant, publish, receiver
from folio_events.broadcast import Broadcast, start_broadcast, stop_broadcast
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.exceptions import ConfigurationError
from folio_events.models import ConsumerOffset, Delivery, InboxEntry
from folio_events.receivers import broadcasts
from folio_events.relay import drain
from folio_events.retry import CircuitBreaker, RetryPolicy
from folio_events.topics import wire_topic
from tests.note_topic import NoteTopic, note_receiver
from tests.real_commands import RealCommand, environment

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _own_broadcasts() -> Iterator[None]:
    """Broadcast receivers that a test registers are forgotten after it."""
    before = {known.name for known in broadcasts}
    yield
    stop_broadcast()
    broadcast.failures.clear()
    for known in broadcasts:
        if known.name not in before:
            broadcasts.remove(known.name)


def heard(name: str = "cache", **options: Any) -> list[int]:
    """Register a broadcast receiver; the numbers of the notes that it is told of."""
    numbers: list[int] = []

    def function(event: Event) -> None:
        numbers.append(event.payload["number"])

    receiver("library.note", name=name, broadcast=True, **options)(function)
    return numbers


def follow(broadcast: Broadcast) -> None:
    """Bring all that is there."""
    while broadcast.step(timeout=0):
        pass


class TestEvents:
    def test_each_process_sees_every_event(self, notes: NoteTopic) -> None:
        """Where a group would share the events out, two that listen have all of them."""
        numbers = heard()
        one, two = Broadcast("latest"), Broadcast("latest")
        one.start()
        two.start()
        notes.put_all(["a", "b", "a"])

        follow(one)
        assert numbers == [0, 1, 2]
        follow(two)
        assert numbers == [0, 1, 2, 0, 1, 2]

    def test_nothing_is_kept(self, notes: NoteTopic) -> None:
        """Neither inbox, offset nor delivery, whether the receiver returns or fails."""
        heard()

        @receiver("library.note", name="fails", broadcast=True)
        def fails(event: Event) -> None:
            raise ValueError

        listener = Broadcast("latest")
        listener.start()
        notes.put_all(["a", "b"])
        follow(listener)

        assert broadcast.failures == {"fails": 2}
        for model in (InboxEntry, ConsumerOffset, Delivery):
            assert not model.objects.exists()

    def test_it_is_no_member_of_a_group(self, notes: NoteTopic) -> None:
        """Receivers of groups have their events beside it, each of them once."""
        numbers, shared = heard(), note_receiver("shared")
        listener = Broadcast("latest")
        listener.start()
        notes.put_all(["a", "b"])

        assert notes.consume() == 2
        follow(listener)
        assert (numbers, shared) == ([0, 1], [0, 1])

    def test_the_latest_leave_out_what_was_before(self, notes: NoteTopic) -> None:
        """A cache that is filled after the start needs nothing older."""
        numbers = heard()
        notes.put("a", 1)
        listener = Broadcast("latest")
        listener.start()
        notes.put("a", 2)
        follow(listener)

        assert numbers == [2]

    def test_the_earliest_begin_with_what_is_there(self, notes: NoteTopic) -> None:
        """For state that a process builds up from the topic."""
        latest, earliest = heard("latest"), heard("earliest", start="earliest")
        notes.put("a", 1)
        assert Broadcast.starts() == ["earliest", "latest"]
        for start in Broadcast.starts():
            follow(Broadcast(start))

        assert (latest, earliest) == ([], [1])

    def test_it_goes_on_where_an_error_of_the_broker_ended_it(self, notes: NoteTopic) -> None:
        """What is published meanwhile is not left out."""
        numbers = heard()
        listener = Broadcast("latest")
        listener.start()
        notes.put("a", 1)
        follow(listener)
        listener.close()
        notes.put("a", 2)
        follow(listener)

        assert numbers == [1, 2]

    def test_it_runs_as_the_events_tenant(
        self, notes: NoteTopic, folio_events: Callable[..., None]
    ) -> None:
        """As every receiver does."""
        folio_events(TENANCY="folio")
        seen: list[object] = []
        receiver("library.note", name="t", broadcast=True)(lambda _e: seen.append(current_tenant()))
        listener = Broadcast("latest", broker=notes.broker)
        listener.start()
        tenants_topic = NoteTopic(notes.broker, wire="folio.diku.library.note")
        body = {"id": str(uuid.uuid4()), "type": "n", "tenant": "diku", "timestamp": 1, "data": {}}
        tenants_topic.put_raw(json.dumps(body).encode())
        tenants_topic.put_raw(b"no JSON")
        follow(listener)

        assert seen == ["diku"]

    def test_a_late_repeat_is_left_out_where_the_topic_is_compacted(
        self, notes: NoteTopic, folio_events: Callable[..., None]
    ) -> None:
        """A relay that was taken for dead repeats what it had in hand; state must not go back."""
        folio_events(TOPICS={"library.note": {"CLEANUP_POLICY": "compact"}})
        numbers = heard()
        listener = Broadcast("latest", broker=notes.broker)
        listener.start()
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        for number, sequence, minutes in ((1, 5, 0), (2, 9, 1), (1, 5, 0), (3, 2, 2)):
            stamp = (moment + timedelta(minutes=minutes)).isoformat().encode()
            headers = [("ce_sequence", b"%d" % sequence), ("ce_time", stamp)]
            notes.put("a", number, headers=headers)
        follow(listener)

        assert numbers == [1, 2, 3], "the last one's database was set up anew"


class TestFailures:
    def test_a_failure_is_logged_without_the_payload_and_counted(
        self, notes: NoteTopic, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With the place in the code, so that it can be mended; the next event goes on."""
        numbers = heard()

        @receiver("library.note", name="fails", broadcast=True)
        def fails(event: Event) -> None:
            raise ValueError(event.payload["secret"])

        listener = Broadcast("latest")
        listener.start()
        event_id = notes.put("a", 1, data={"secret": "hunter2"})
        notes.put("a", 2, data={"secret": "hunter2"})
        with caplog.at_level(logging.ERROR, "folio_events.broadcast"):
            follow(listener)

        assert numbers == [1, 2]
        assert f"event={event_id} receiver=fails error=ValueError" in caplog.text
        assert "failure 1 of this process" in caplog.text
        assert 'event.payload["secret"]' in caplog.text
        assert "hunter2" not in caplog.text

    def test_claim_is_refused(self, notes: NoteTopic, caplog: pytest.LogCaptureFixture) -> None:
        """There is no inbox to claim an event in."""
        receiver("library.note", name="claims", broadcast=True)(lambda _event: claim())
        listener = Broadcast("latest")
        listener.start()
        notes.put("a", 1)
        follow(listener)

        assert broadcast.failures == {"claims": 1}
        assert not InboxEntry.objects.exists()

    @pytest.mark.parametrize(
        ("word", "given"),
        [
            ("group", "mod-cache"),
            ("retry", RetryPolicy()),
            ("order", "partition"),
            ("mode", "after_commit"),
            ("using", "other"),
            ("timeout", 3.0),
            ("breaker", None),
            ("breaker", CircuitBreaker()),
        ],
    )
    def test_what_means_nothing_to_it_is_refused_by_name(self, word: str, given: Any) -> None:
        """It would be believed to hold."""
        with pytest.raises(ConfigurationError, match=f": {word} mean"):
            receiver("library.note", broadcast=True, **{word: given})(print)
        assert len(broadcasts) == 0

    def test_a_start_without_broadcast_is_refused(self) -> None:
        """A group goes on where it ended."""
        with pytest.raises(ConfigurationError, match="start='earliest' is for broadcast"):
            receiver("library.note", start="earliest")(print)

    def test_an_unknown_start_is_refused(self) -> None:
        """The message lists the two there are."""
        start: Any = "newest"
        with pytest.raises(ConfigurationError, match="'latest', 'earliest', not 'newest'"):
            receiver("library.note", broadcast=True, start=start)(print)


class TestThreads:
    def test_a_process_may_listen_in_the_background(self, notes: NoteTopic) -> None:
        """What is published after the call has returned arrives; a second call changes nothing."""
        came = threading.Event()
        numbers = heard()
        receiver("library.note", name="last", broadcast=True)(
            lambda event: came.set() if event.payload["number"] == 2 else None
        )
        start_broadcast()
        start_broadcast()
        notes.put_all(["a", "b", "c"])

        assert came.wait(20)
        stop_broadcast()
        assert numbers == [0, 1, 2]
        assert not [t for t in threading.enumerate() if t.name.startswith("broadcast")]

    def test_a_broker_that_is_away_keeps_no_process_from_starting(
        self,
        notes: NoteTopic,
        folio_events: Callable[..., None],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is logged, and the threads begin when the broker answers."""
        folio_events(POLL_FAILURE_SLEEP=0.01, CONSECUTIVE_ERRORS_LIMIT=2)
        broker = get_broker()
        assert isinstance(broker, MemoryBroker)
        notes = NoteTopic(broker)
        came = threading.Event()
        receiver("library.note", name="n", broadcast=True, start="earliest")(lambda _e: came.set())
        notes.put("a", 1)
        broker.available = False
        with caplog.at_level(logging.WARNING):
            start_broadcast()
            while "error 5 in a row" not in caplog.text:
                threading.Event().wait(0.01)
        broker.available = True

        assert came.wait(20)
        assert "begins when the broker answers" in caplog.text


class TestCommand:
    @pytest.mark.parametrize("broker", ["database", pytest.param("kafka", marks=pytest.mark.kafka)])
    def test_two_processes_both_see_each_event(
        self, tmp_path: Path, broker: str, request: pytest.FixtureRequest
    ) -> None:
        """And the shared receiver beside them has each event once."""
        if broker == "kafka":
            request.getfixturevalue("kafka_broker")
        env = environment(apps=["tests.crier"], CRIER_FOLDER=str(tmp_path))
        commands = [
            RealCommand(
                tmp_path,
                "consume_events",
                "--health-file",
                str(tmp_path / f"health-{n}"),
                env=env,
            )
            for n in range(2)
        ]
        try:
            topics_ready(get_broker())
            for number, command in enumerate(commands):
                command.wait_for((tmp_path / f"health-{number}").exists)
            for number in range(10):
                publish("library.cry", key=f"k{number % 3}", payload={"number": number})
            drain()
            files = {
                kind: [tmp_path / f"{kind}-{command.process.pid}" for command in commands]
                for kind in ("broadcast", "shared")
            }
            for number, command in enumerate(commands):
                command.wait_for(lambda n=number: len(told(files["broadcast"][n])) >= 10)  # type: ignore[misc]
            commands[0].wait_for(lambda: sum(len(told(f)) for f in files["shared"]) >= 10)

            for file in files["broadcast"]:
                assert sorted(told(file)) == list(range(10))
            assert sorted(n for f in files["shared"] for n in told(f)) == list(range(10))
        finally:
            for command in commands:
                command.process.kill()

    def test_once_is_without_broadcast(self, notes: NoteTopic) -> None:
        """Who works off what is there and ends has nothing to keep up to date."""
        heard()
        with pytest.raises(CommandError, match="No receiver is registered"):
            call_command("consume_events", "--once", "--idle", "0")


def topics_ready(broker: Broker) -> None:
    """Create the topic of the criers, so that nobody waits until it is found."""
    broker.create_topics([TopicSpec(wire_topic("library.cry", None), 3, 1)])


def told(file: Path) -> list[int]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
