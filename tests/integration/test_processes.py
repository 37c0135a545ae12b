"""Relays and consumers tell that they live, and what they do; it never stops them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from folio_events import Event, wakeup
from folio_events.brokers.memory import MemoryBroker
from folio_events.consumer import Consumer
from folio_events.message import TopicPartition
from folio_events.models import Process
from folio_events.operations.retention import purge
from folio_events.processes import Heartbeat, is_vanished
from folio_events.relay_daemon import serve, serve_slot
from tests.faulty_broker import FaultyBroker
from tests.note_topic import NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)
State, Kind = Process.State, Process.Kind


def heartbeat() -> Heartbeat:
    return Heartbeat(Kind.CONSUMER, "events", using="default")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def in_a_thread(work: Callable[[threading.Event], object]) -> Iterator[None]:
    """Run something that ends when told so, as it is told at the end of the block."""
    stop = threading.Event()

    def run() -> None:
        try:
            work(stop)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        try:
            yield
        finally:
            stop.set()
            future.result(20)


class TestHeartbeat:
    def test_the_first_is_written_and_others_only_when_they_are_due(self) -> None:
        """However often it is called, one statement in each interval."""
        beats = heartbeat()
        with CaptureQueriesContext(connection) as queries:
            for _ in range(1000):
                beats.beat(State.WAITING)
        assert sum("INSERT" in query["sql"] for query in queries) == 1
        assert not beats.is_due
        assert Process.objects.get().state == "waiting"

    def test_a_later_one_updates_the_row(self, folio_events: Callable[..., None]) -> None:
        """One row tells the start, the last heartbeat and the batch in hand."""
        folio_events(HEARTBEAT_INTERVAL=0)
        beats = heartbeat()
        beats.beat(State.WAITING)
        first = Process.objects.get()
        since = timezone.now()
        beats.beat(
            State.WORKING,
            partitions=[TopicPartition("t", 1), TopicPartition("t", 0)],
            records=7,
            busy_since=since,
        )
        row = Process.objects.get()
        assert (row.state, row.records, row.busy_since) == ("working", 7, since)
        assert row.partitions == {"t": [0, 1]}
        assert row.started_at == first.started_at
        assert row.heartbeat_at > first.heartbeat_at

    def test_the_row_goes_at_a_clean_end(self) -> None:
        """Who ended in good order is not shown as vanished."""
        beats = heartbeat()
        beats.beat(State.WAITING)
        beats.end()
        assert not Process.objects.exists()

    def test_nothing_is_written_in_a_transaction(self) -> None:
        """It is a receiver's, and its locks are not held longer for this."""
        beats = heartbeat()
        with transaction.atomic(), CaptureQueriesContext(connection) as queries:
            beats.beat(State.WORKING)
            beats.end()
        assert len(queries) == 0

    def test_a_database_that_is_away_stops_nobody(
        self, caplog: pytest.LogCaptureFixture, folio_events: Callable[..., None]
    ) -> None:
        """It is logged once, and the row comes when the database is there again."""
        folio_events(HEARTBEAT_INTERVAL=0)
        beats = heartbeat()

        def fail(*_args: Any) -> None:
            raise OperationalError

        with connection.execute_wrapper(fail):
            beats.beat(State.WAITING)
            beats.beat(State.WAITING)
        assert caplog.text.count("has no heartbeat") == 1
        beats.beat(State.WAITING)
        assert Process.objects.count() == 1

    def test_who_misses_three_has_vanished_and_is_purged_after_a_day(self) -> None:
        """A process that was killed is seen as such; its row goes later."""
        heartbeat().beat(State.WAITING)
        row = Process.objects.get()
        assert not is_vanished(row, row.heartbeat_at + timedelta(seconds=29))
        assert is_vanished(row, row.heartbeat_at + timedelta(seconds=31))
        assert purge().processes == 0
        Process.objects.update(heartbeat_at=timezone.now() - timedelta(hours=25))
        assert purge(dry_run=True).processes == 1
        assert purge().processes == 1
        assert not Process.objects.exists()


class TestRelay:
    def test_a_daemon_tells_how_it_is_woken_up(self, memory_broker: MemoryBroker) -> None:
        """Without wake-ups it polls, and says why."""
        with in_a_thread(lambda stop: serve(stop, using="default")):
            until(Process.objects.exists)
            row = Process.objects.get()
        assert (row.kind, row.name, row.state) == ("relay", "default", "polling")
        assert "WAKE_UP" in row.detail or "PostgreSQL" in row.detail
        assert not Process.objects.exists()

    @pytest.mark.postgres
    def test_a_daemon_tells_that_it_listens(
        self, memory_broker: MemoryBroker, folio_events: Callable[..., None]
    ) -> None:
        """And, when its connection for hints is lost, that it polls."""
        folio_events(WAKE_UP=True, HEARTBEAT_INTERVAL=0)

        def state() -> str:
            return Process.objects.values_list("state", flat=True).first() or ""

        with in_a_thread(lambda stop: serve(stop, using="default")):
            until(lambda: state() == "listening")
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = %s",
                    [f"LISTEN {wakeup.CHANNEL}"],
                )
            until(lambda: state() == "polling")
            assert "no wake-ups are heard" in Process.objects.get().detail

    def test_a_daemon_tells_that_the_broker_is_away(
        self, faulty_broker: FaultyBroker, folio_events: Callable[..., None]
    ) -> None:
        """The page names who keeps it from work."""
        from folio_events import publish

        folio_events(BROKER={"BACKEND": "tests.faulty_broker.AbsentBroker"}, HEARTBEAT_INTERVAL=0)
        publish("library.note", key="k", payload={"number": 1})
        with in_a_thread(lambda stop: serve(stop, using="default")):
            until(lambda: Process.objects.filter(state="stalled").exists())
            assert Process.objects.get().detail

    def test_the_celery_task_has_one_row_for_all_slots(self, memory_broker: MemoryBroker) -> None:
        """The row is the worker's, which lives on between the slots."""
        from folio_events.relay_daemon import _task_heartbeat

        _task_heartbeat.cache_clear()
        serve_slot(using="default")
        serve_slot(using="default")
        assert list(Process.objects.values_list("kind", "name")) == [("task", "default")]


class TestConsumer:
    def test_a_consumer_tells_its_partitions(
        self, notes: NoteTopic, folio_events: Callable[..., None]
    ) -> None:
        """While it waits for records."""
        folio_events(HEARTBEAT_INTERVAL=0)
        note_receiver("writer")
        consumer = Consumer("events", broker=notes.broker)
        with in_a_thread(consumer.run):
            until(lambda: Process.objects.exclude(partitions={}).exists())
            row = Process.objects.get()
        consumer.close()
        assert (row.kind, row.name, row.state) == ("consumer", "events", "waiting")
        assert row.partitions == {notes.wire: [0]}
        assert not Process.objects.exists()

    @pytest.mark.postgres
    def test_a_consumer_tells_how_long_it_has_had_a_batch(
        self, notes: NoteTopic, folio_events: Callable[..., None]
    ) -> None:
        """From the thread that polls, beside the transaction that the receivers work in."""
        folio_events(HEARTBEAT_INTERVAL=0)
        free = threading.Event()

        def block(_event: Event) -> None:
            assert free.wait(20)

        note_receiver("slow", block)
        notes.put_all("abc")
        consumer = Consumer("events", broker=notes.broker)
        try:
            with in_a_thread(consumer.run):
                until(lambda: Process.objects.filter(state="working").exists())
                row = Process.objects.get()
                free.set()
        finally:
            free.set()
            consumer.close()
        assert row.records == 3
        assert row.busy_since is not None
        assert row.busy_since <= row.heartbeat_at
