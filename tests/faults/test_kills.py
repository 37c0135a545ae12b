"""Writers, relay and consumer are killed again and again, and nothing is lost or done twice."""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from folio_events import deliveries
from folio_events.brokers.base import Broker
from folio_events.models import Delivery, OutboxMessage, Publication
from tests.conftest import kafka_options
from tests.faults.oracle import Change, breaches_of_effects, breaches_of_log
from tests.real_commands import RealCommand, environment
from tests.testapp.models import Book, Effect

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.kafka,
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(300),
]

SEED = 7
BOOKS = 20
CHANGES = 2000
#: Least kills of each kind of process.
KILLS = {"writer": 3, "relay_events": 6, "consume_events": 3}


class Deployment:
    """One process of each kind, two of the writers; what is killed is started again."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._folder = folder
        self._rng = rng
        self._env = environment(
            apps=["tests.faults"],
            folio_events={
                "WAKE_UP": True,
                "TOPIC_PARTITIONS": 3,
                # Small ones, so that kills find many seams.
                "RELAY_BATCH_SIZE": 50,
                "CONSUMER_BATCH_SIZE": 40,
                "POLL_FAILURE_SLEEP": 0.1,
            },
        )
        self.processes = [
            self._start(n) for n in ("writer", "writer", "relay_events", "consume_events")
        ]

    def _start(self, name: str) -> tuple[str, RealCommand]:
        if name != "writer":
            return name, RealCommand(self._folder, name, env=self._env)
        program = (sys.executable, "-m", "tests.faults.writer")
        seed = str(self._rng.random())
        return name, RealCommand(self._folder, seed, env=self._env, program=program)

    def kill(self, name: str) -> None:
        """SIGKILL one of them, and start another in its place."""
        found = self._rng.choice([item for item in self.processes if item[0] == name])
        found[1].process.kill()
        self.processes[self.processes.index(found)] = self._start(name)

    def kill_writers(self) -> None:
        for name, command in self.processes:
            if name == "writer":
                command.process.kill()

    def the(self, name: str) -> RealCommand:
        return next(command for known, command in self.processes if known == name)

    def retry(self) -> None:
        command = RealCommand(self._folder, "retry_deliveries", "--limit", "5000", env=self._env)
        assert command.wait() == 0, command.output

    def close(self) -> None:
        for _name, command in self.processes:
            command.process.kill()


@pytest.fixture
def kafka_with_short_sessions(kafka_broker: Broker, settings: Any) -> None:
    """A group notices soon that a member was killed."""
    options = kafka_options(consumer={"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000})
    broker = {**settings.FOLIO_EVENTS["BROKER"], "OPTIONS": options}
    settings.FOLIO_EVENTS = {**settings.FOLIO_EVENTS, "BROKER": broker}


def committed_changes() -> dict[str, int]:
    """Key to the number of committed changes, from the books themselves."""
    return {str(pk): copies for pk, copies in Book.objects.values_list("pk", "copies")}


def changes_in_topic(topic: str) -> list[Change]:
    """All that stands in a topic, partition after partition, read by nobody's group."""
    options = kafka_options(**{"group.id": "the oracle", "enable.auto.commit": False})
    found: list[Change] = []
    with closing(Consumer(options)) as reader:
        for number in reader.list_topics(topic, timeout=20).topics[topic].partitions:
            place = TopicPartition(topic, number, 0)
            _low, high = reader.get_watermark_offsets(place, timeout=20)
            reader.assign([place])
            offset = 0
            while offset < high:
                message = reader.poll(20)
                assert message is not None
                assert message.error() is None
                body = json.loads(message.value() or b"")
                found.append(Change((message.key() or b"").decode(), body["new"]["copies"]))
                offset = (message.offset() or 0) + 1
    return found


def changes_in_effect(receiver: str) -> list[Change]:
    rows = Effect.objects.filter(receiver=receiver).order_by("id").values_list("key", "note")
    return [Change(key, int(note)) for key, note in rows]


@pytest.fixture
def deployment(tmp_path: Path, kafka_with_short_sessions: None) -> Iterator[Deployment]:
    for _ in range(BOOKS):
        Book.objects.create(title="shared", copies=1)
    with closing(Deployment(tmp_path, random.Random(SEED))) as made:
        yield made


def test_kills_at_random_moments_lose_and_double_nothing(
    deployment: Deployment, settings: Any
) -> None:
    """Every committed change is in the log, in order, and took effect once; no other did."""
    rng = random.Random(SEED)
    victims = [name for name, count in KILLS.items() for _ in range(count)]
    rng.shuffle(victims)
    pause = threading.Event()
    for victim in victims:
        if victim == "consume_events":
            # One that has not got its partitions yet would be killed for nothing.
            before = Effect.objects.count()
            deployment.the(victim).wait_for(lambda n=before: Effect.objects.count() > n)  # type: ignore[misc]
        pause.wait(rng.uniform(0.1, 0.8))
        deployment.kill(victim)
    deployment.the("writer").wait_for(lambda: sum(committed_changes().values()) >= CHANGES)
    deployment.kill_writers()

    relay, consumer = deployment.the("relay_events"), deployment.the("consume_events")
    relay.wait_for(lambda: Publication.objects.count() == OutboxMessage.objects.count())
    committed = committed_changes()
    total = sum(committed.values())

    def all_is_settled() -> bool:
        # Three kills at one event park it, as one that ends the process; then a person retries.
        parked = Delivery.objects.filter(state="dead", error_class__endswith="ProcessEndedError")
        deliveries.retry(list(parked.values_list("pk", flat=True)))
        if Delivery.objects.filter(state="retrying").exists():
            deployment.retry()
        return all(
            Effect.objects.filter(receiver=name).count() >= total for name in ("steady", "shaky")
        )

    consumer.wait_for(all_is_settled, 120)
    for command in (relay, consumer):
        command.process.send(signal.SIGTERM)
        assert command.wait() == 0, command.output

    topic = f"{settings.FOLIO_EVENTS['ENV']}.library.book"
    log = changes_in_topic(topic)
    assert breaches_of_log(committed, log) == []
    assert breaches_of_effects(committed, changes_in_effect("steady")) == []
    assert breaches_of_effects(committed, changes_in_effect("shaky")) == []
    assert set(Delivery.objects.values_list("state", flat=True)) <= {"resolved"}
    assert OutboxMessage.objects.count() == total
