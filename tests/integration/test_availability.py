"""Several processes of one kind: they share the work, take over from each other, and wait."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from django.db import connections, transaction

from folio_events import Event, publish
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.brokers.memory import MemoryBroker, MemorySubscription
from folio_events.conf import KAFKA_BROKER
from folio_events.consumer import Consumer
from folio_events.message import Record
from folio_events.models import Publication
from folio_events.relay import drain
from folio_events.relay_daemon import serve
from tests.conftest import kafka_options
from tests.note_topic import NoteTopic, effects, note_receiver
from tests.services import kafka
from tests.testapp.models import Effect

pytestmark = pytest.mark.django_db(transaction=True)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    pause, until = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        pause.wait(0.05)


@contextmanager
def running(consumer: Consumer) -> Iterator[None]:
    """A consumer as a process has it, in a thread; it ends with the block."""
    stop = threading.Event()

    def serve() -> None:
        try:
            consumer.run(stop)
        finally:
            consumer.close()
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(serve)
        try:
            yield
        finally:
            stop.set()
            future.result(timeout=60)


def put(start: int, stop: int) -> None:
    for number in range(start, stop):
        publish("library.note", key=f"k{number % 12}", payload={"number": number})
    while drain().more:
        pass


@pytest.mark.kafka
def test_a_second_worker_halves_the_partitions_and_hands_them_over(
    kafka_broker: Broker, only_test_receivers: None, settings: Any
) -> None:
    """Of six each has three; when it stops the first has all, and nothing is lost or repeated."""
    note_receiver("writer")
    group = str(settings.FOLIO_EVENTS["GROUP"])
    admin = AdminClient(kafka_options())

    def shares() -> list[int]:
        found = admin.describe_consumer_groups([group])[group].result(timeout=20)
        return sorted(len(member.assignment.topic_partitions) for member in found.members)

    put(0, 60)
    with running(Consumer(group)):
        wait_until(lambda: Effect.objects.count() == 60)
        assert shares() == [6]
        with running(Consumer(group)):
            wait_until(lambda: shares() == [3, 3])
            put(60, 180)
            wait_until(lambda: Effect.objects.count() >= 120)
        # It may have stopped in the midst of what was left.
        put(180, 240)
        wait_until(lambda: Effect.objects.count() == 240)
        wait_until(lambda: shares() == [6])
    assert sorted(effects("writer")) == list(range(240))
    for key in range(12):
        made = Effect.objects.filter(key=f"k{key}").order_by("id").values_list("note", flat=True)
        assert [int(note) for note in made] == list(range(key, 240, 12))


@pytest.mark.kafka
def test_an_import_goes_on_over_a_restart_of_the_broker(
    only_test_receivers: None, folio_events: Callable[..., None]
) -> None:
    """Writing goes on while Kafka is away; in the end each event took effect once, in order."""
    note_receiver("writer")
    stop = threading.Event()

    def relay() -> None:
        try:
            serve(stop, using="default")
        finally:
            connections.close_all()

    def write(start: int, end: int) -> None:
        for number in range(start, end):
            publish("library.note", key=f"k{number % 12}", payload={"number": number})

    with kafka(private=True) as cluster, ThreadPoolExecutor(1) as pool:
        options = {"bootstrap.servers": cluster.bootstrap}
        folio_events(
            ENV="import",
            GROUP="import",
            POLL_FAILURE_SLEEP=0.1,
            RELAY_DEADLINE=2,
            RELAY_BATCH_SIZE=10,
            CONSUMER_BATCH_SIZE=10,
            BROKER={"BACKEND": KAFKA_BROKER, "OPTIONS": options},
        )
        write(0, 60)
        relaying = pool.submit(relay)
        wait_until(lambda: Publication.objects.count() == 60)
        try:
            with running(Consumer("import")):
                wait_until(lambda: Effect.objects.count() > 10)
                write(60, 120)
                cluster.brokers[0].stop()
                write(120, 180)
                cluster.start()
                write(180, 240)
                wait_until(lambda: Effect.objects.count() == 240, 120)
        finally:
            stop.set()
            relaying.result(timeout=60)
        get_broker().close()
    assert sorted(effects("writer")) == list(range(240))
    for key in range(12):
        made = Effect.objects.filter(key=f"k{key}").order_by("id").values_list("note", flat=True)
        assert [int(note) for note in made] == list(range(key, 240, 12))


def test_a_slow_receiver_keeps_the_consumer_from_fetching_more_than_a_batch(
    notes: NoteTopic, folio_events: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pauses with one batch in hand, however much waits on the broker, and goes on after it."""
    folio_events(CONSUMER_BATCH_SIZE=5, CONSUMER_POLL_INTERVAL=0.05)
    is_in, may_go_on = threading.Event(), threading.Event()

    def be_slow(_event: Event) -> None:
        is_in.set()
        assert may_go_on.wait(60)

    note_receiver("slow", be_slow)
    fetched: list[int] = []
    kept_alive = threading.Event()
    poll = MemorySubscription.poll

    def counting(self: MemorySubscription, limit: int, timeout: float) -> list[Record]:
        records = poll(self, limit, timeout)
        fetched.append(len(records))
        return records

    monkeypatch.setattr(MemorySubscription, "poll", counting)
    monkeypatch.setattr(MemorySubscription, "keep_alive", lambda _self: kept_alive.set())
    notes.put_all(["a", "b"] * 10)
    with running(Consumer("events", broker=notes.broker)):
        assert is_in.wait(60)
        for number in range(20, 200):
            notes.put("a", number)
        assert kept_alive.wait(60)
        assert sum(fetched) == 5
        may_go_on.set()
        wait_until(lambda: Effect.objects.count() == 200)
    assert max(fetched) == 5
    assert effects("slow") == list(range(200))


@pytest.mark.postgres
def test_relays_that_take_over_from_each_other_all_the_time_invert_no_key(
    memory_broker: MemoryBroker,
) -> None:
    """Three compete for each drain, over eight writers, a hundred hot keys and rolled-back events."""
    writers, count, keys = 8, 250, 100
    committed: dict[str, list[str]] = defaultdict(list)
    drains: Counter[int] = Counter()
    over = threading.Event()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(count):
                key = f"k{chance.randrange(keys) if chance.random() < 0.8 else 0}"
                with transaction.atomic():
                    event = publish("library.note", key=key, payload={})
                    if chance.random() < 0.1:
                        transaction.set_rollback(True)
                    else:
                        # The key is locked until the commit: this is the order of commits.
                        committed[key].append(str(event.id))
        finally:
            connections.close_all()

    def relay(name: int) -> None:
        try:
            while not over.is_set():
                drains[name] += drain(broker=memory_broker, limit=20).published > 0
        finally:
            connections.close_all()

    with ThreadPoolExecutor(writers + 3) as pool:
        relays = [pool.submit(relay, name) for name in range(3)]
        for writing in [pool.submit(write, seed) for seed in range(writers)]:
            writing.result(timeout=120)
        total = sum(map(len, committed.values()))
        wait_until(lambda: Publication.objects.count() == total)
        over.set()
        for relaying in relays:
            relaying.result(timeout=60)
    log: dict[str, list[str]] = defaultdict(list)
    for record in memory_broker.records("folio.library.note"):
        log[(record.key or b"").decode()].append(json.loads(record.value or b"")["id"])
    assert log == committed
    assert len(drains) == 3
    assert min(drains.values()) > 5
