"""The Celery tasks: called by hand, and run by a real worker with beat."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from celery import current_app
from django.db import connection, connections
from django.utils import timezone

from folio_events import RetryPolicy, publish, tasks
from folio_events.brokers import get_broker
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import BrokerRecord, Delivery, OutboxMessage, Publication
from folio_events.topics import wire_topic
from folio_events.wakeup import CHANNEL
from tests.conftest import kafka_options
from tests.faulty_broker import FaultyBroker
from tests.note_topic import Mood, NoteTopic, effects, note_receiver
from tests.real_commands import RealCommand, environment
from tests.testapp.models import Book, Effect
from tests.watched_broker import batches_in

pytestmark = pytest.mark.django_db(transaction=True)


def append(count: int) -> None:
    for number in range(count):
        publish("library.note", key=f"k{number % 3}", payload={"number": number})


def test_tasks_are_registered_by_their_names() -> None:
    """What a beat schedule says is found."""
    names = {
        f"folio_events.tasks.{n}" for n in ("relay_events", "retry_deliveries", "purge_events")
    }
    assert names <= set(current_app.tasks)


def test_the_relay_task_publishes_all_there_is(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """In as many drains as it takes."""
    append(10)
    folio_events(RELAY_BATCH_SIZE=3)
    assert tasks.relay_events.apply().get() == 10
    assert tasks.relay_events.apply().get() == 0


def test_the_relay_task_ends_with_its_slot(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """The next tick goes on."""
    append(10)
    folio_events(RELAY_BATCH_SIZE=3, RELAY_SLOT=0)
    assert [tasks.relay_events.apply().get() for _ in range(5)] == [3, 3, 3, 1, 0]


def test_the_relay_task_returns_at_once_while_another_relay_is_at_work(
    faulty_broker: FaultyBroker, folio_events: Callable[..., None]
) -> None:
    """A slow broker holds one run up, not those of the next ticks."""
    folio_events(RELAY_SLOT=60)
    broker = get_broker()
    assert isinstance(broker, FaultyBroker)
    during: list[int] = []

    def tick() -> int:
        try:
            return int(tasks.relay_events(wait=True))
        finally:
            connections.close_all()

    append(1)
    with ThreadPoolExecutor(1) as pool:
        broker.before_publish = lambda: during.append(pool.submit(tick).result(timeout=20))
        assert tasks.relay_events() == 1
    assert during == [0]


def test_the_relay_task_does_not_stay_while_the_broker_is_away(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """The next tick asks again."""
    append(1)
    memory_broker.available = False
    assert tasks.relay_events(wait=True) == 0


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    pause, until = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        pause.wait(0.02)


class WaitingTask:
    """The task in a slot of a minute, in a thread of its own, on a broker of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._task = self._pool.submit(self._run)

    @staticmethod
    def _run() -> int:
        try:
            return int(tasks.relay_events(wait=True))
        finally:
            connections.close_all()

    @property
    def is_over(self) -> bool:
        return self._task.done()

    def end(self) -> None:
        """A broker that is away ends the slot at the next drain that has something."""
        broker = get_broker()
        assert isinstance(broker, MemoryBroker)
        broker.available = False
        append(1)
        wait_until(self._hinted)
        self._pool.shutdown()

    def _hinted(self) -> bool:
        hint()
        return self.is_over


def hint() -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}")


@pytest.fixture
def waiting_task(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> Iterator[Callable[..., WaitingTask]]:
    """Starts the task, which publishes one message and waits."""
    started: list[WaitingTask] = []

    def start(**keys: object) -> WaitingTask:
        folio_events(RELAY_SLOT=60, **keys)
        append(1)
        started.append(WaitingTask())
        wait_until(lambda: Publication.objects.count() == 1)
        return started[0]

    yield start
    for task in started:
        task.end()


def test_a_task_that_waits_publishes_what_comes_within_its_slot(
    waiting_task: Callable[..., WaitingTask],
) -> None:
    """An event need not wait for the next tick."""
    task = waiting_task(RELAY_POLL_INTERVAL=0.02)
    append(1)
    wait_until(lambda: Publication.objects.count() == 2)
    assert not task.is_over


@pytest.mark.postgres
def test_a_task_that_waits_is_woken_up_by_a_hint(
    waiting_task: Callable[..., WaitingTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the daemon is; by itself it would not look again in this test."""
    # The hint is the test's own: a waker's thread would hold a connection to its database.
    monkeypatch.setattr("folio_events.outbox.wake_after_commit", lambda _using: None)
    task = waiting_task(RELAY_POLL_INTERVAL=50, WAKE_UP=True)
    append(1)

    def is_published_after_a_hint() -> bool:
        hint()
        return Publication.objects.count() == 2

    wait_until(is_published_after_a_hint)
    assert not task.is_over


def test_the_retry_task_runs_what_is_due(notes: NoteTopic) -> None:
    """And returns how many took effect."""
    mood = Mood(0, 1)
    note_receiver("one", mood, retry=RetryPolicy(backoff=0), order="none")
    notes.put_all("ab")
    notes.consume()
    mood.bad = {1}
    assert tasks.retry_deliveries.apply().get() == 1
    assert effects("one") == [0]


def test_the_purge_task_deletes_what_is_past_its_time(memory_broker: MemoryBroker) -> None:
    """Published rows only."""
    append(2)
    for _ in range(3):  # after the first, ids that other tests have used up are forgotten
        tasks.relay_events.apply()
    append(1)
    OutboxMessage.objects.update(occurred_at=timezone.now() - timedelta(days=1000))
    assert tasks.purge_events.apply().get() == 2
    assert (OutboxMessage.objects.count(), Publication.objects.count()) == (1, 0)


def test_a_real_worker_with_beat_relays_and_retries(
    tmp_path: Path, notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """Beat alone is a complete deployment of relay and retry."""
    # The receiver fails here; in the worker its namesake of an installed app succeeds.
    wire = NoteTopic(notes.broker, wire="folio.library.book")
    note_receiver("obstinate", Mood(0), topic="library.book", retry=RetryPolicy(backoff=0))
    wire.consumers = notes.consumers
    wire.put("a", 0)
    wire.consume()
    assert Delivery.objects.get().state == "retrying"
    folio_events(BROKER={"BACKEND": "folio_events.brokers.database.DatabaseBroker"})
    env = environment(
        apps=["tests.obstinate"],
        OBSTINATE_FOLDER=str(tmp_path),
        TESTS_CELERY_FOLDER=str(tmp_path),
    )
    argv = [sys.executable, "-m", "celery", "-A", "tests.celery_app"]
    worker = RealCommand(
        tmp_path,
        *("worker", "--beat", "--concurrency", "1", "--loglevel", "INFO"),
        env=env,
        program=argv,
    )
    try:
        Book.objects.create(title="first")
        worker.wait_for(lambda: BrokerRecord.objects.count() == 1)
        worker.wait_for(lambda: Delivery.objects.get().state == "resolved")
        assert Effect.objects.get().receiver == "obstinate"
        Book.objects.create(title="second")
        worker.wait_for(lambda: BrokerRecord.objects.count() == 2)
        worker.process.send(signal.SIGTERM)
        assert worker.wait() == 0, worker.output
    finally:
        worker.process.kill()
    assert Publication.objects.count() == 2


NOTES = "library.note"


class Worker:
    """A worker of four processes with beat, the tick every fifth of a second."""

    def __init__(self, folder: Path, **folio_events: object) -> None:
        env = environment(
            folio_events=folio_events,
            TESTS_CELERY_FOLDER=str(folder),
            TESTS_BEAT="relay_events",
            TESTS_TICK="0.2",
        )
        self.command = RealCommand(
            folder,
            *("worker", "--beat", "--concurrency", "4", "--loglevel", "INFO"),
            env=env,
            program=[sys.executable, "-m", "celery", "-A", "tests.celery_app"],
        )

    def most_in_flight(self) -> int:
        """Most runs of the task that were received and not over at one moment."""
        seen = re.findall(r"relay_events\[[^]]+\] (received|succeeded)", self.command.output)
        most = now = 0
        for word in seen:
            now += 1 if word == "received" else -1
            most = max(most, now)
        return most


@pytest.fixture(
    params=["database", pytest.param("kafka", marks=[pytest.mark.postgres, pytest.mark.kafka])]
)
def start_worker(
    request: pytest.FixtureRequest, tmp_path: Path, folio_events: Callable[..., None]
) -> Iterator[Callable[..., Worker]]:
    """Starts workers on a watched broker; what still runs at the end is killed."""
    backend, options = "tests.watched_broker.WatchedDatabaseBroker", {}
    if request.param == "kafka":
        request.getfixturevalue("kafka_broker")
        backend, options = "tests.watched_broker.WatchedKafkaBroker", kafka_options()
    started: list[Worker] = []

    def start(*, slowness: float = 0, **keys: object) -> Worker:
        given = {**options, "folder": str(tmp_path), "slowness": slowness}
        keys["BROKER"] = {"BACKEND": backend, "OPTIONS": given}
        folio_events(**keys)
        started.append(Worker(tmp_path, **keys))
        return started[-1]

    yield start
    for worker in started:
        worker.command.process.kill()


def first_arrivals(count: int) -> dict[str, list[int]]:
    """Numbers of each key in the order in which the log has them first; waits for them all."""
    broker = get_broker()
    wire = wire_topic(NOTES, None)
    found: dict[str, list[int]] = defaultdict(list)
    with closing(broker.subscribe(f"reader-{uuid.uuid4().hex}", [wire], lambda _states: {})) as log:
        until = time.monotonic() + 60
        while sum(map(len, found.values())) < count:
            assert time.monotonic() < until, "not all is in the log"
            for record in log.poll(1000, 1.0):
                key = (record.key or b"").decode()
                number = json.loads(record.value or b"")["data"]["number"]
                if number not in found[key]:
                    found[key].append(number)
    return found


def append_in_turn(keys: int, count: int, start: int = 0) -> dict[str, list[int]]:
    """One event after another, the keys in turn; returns what each key's log has to be."""
    expected: dict[str, list[int]] = defaultdict(list)
    for number in range(start, start + count):
        key = f"k{number % keys}"
        publish(NOTES, key=key, payload={"number": number})
        expected[key].append(number)
    return expected


def test_ticks_do_not_pile_up_and_never_reorder_on_a_slow_broker(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """Of four processes one publishes at a time; the others' runs are over at once."""
    worker = start_worker(slowness=0.3, RELAY_BATCH_SIZE=20, RELAY_SLOT=0.8)
    expected = append_in_turn(keys=5, count=240)
    worker.command.wait_for(lambda: Publication.objects.count() == 240)
    assert first_arrivals(240) == expected
    batches = batches_in(tmp_path)
    assert len(batches) >= 12
    assert len({batch.pid for batch in batches}) > 1
    assert all(before.ended <= after.began for before, after in pairwise(batches))
    assert worker.most_in_flight() <= 4, worker.command.output


@pytest.mark.parametrize("victim", ["process", "worker"])
def test_a_worker_that_is_killed_within_a_drain_loses_nothing(
    start_worker: Callable[..., Worker], tmp_path: Path, victim: str
) -> None:
    """The next tick goes on, of the worker's other processes or of the next worker."""
    worker = start_worker(RELAY_BATCH_SIZE=7)
    (tmp_path / "hold").touch()
    append_in_turn(keys=3, count=40)
    held = tmp_path / "held"
    worker.command.wait_for(lambda: held.exists() and held.read_text() != "")
    assert not Publication.objects.exists()
    if victim == "process":
        os.kill(int(held.read_text()), signal.SIGKILL)
    else:
        worker.command.process.kill()
        worker = start_worker(RELAY_BATCH_SIZE=7)
    (tmp_path / "hold").unlink()
    append_in_turn(keys=3, count=20, start=40)
    worker.command.wait_for(lambda: Publication.objects.count() == 60)
    assert first_arrivals(60) == {f"k{key}": list(range(key, 60, 3)) for key in range(3)}
