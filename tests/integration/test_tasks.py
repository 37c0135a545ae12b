"""The Celery tasks: called by hand, and run by a real worker with beat."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from celery import current_app
from django.utils import timezone

from folio_events import RetryPolicy, publish, tasks
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import BrokerRecord, Delivery, OutboxMessage, Publication
from tests.note_topic import Mood, NoteTopic, effects, note_receiver
from tests.real_commands import RealCommand, environment
from tests.testapp.models import Book, Effect

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
