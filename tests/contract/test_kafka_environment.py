"""FOLIO's variables against a real Kafka: collections, patterns, the metadata refresh."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import environ
import pytest

from folio_events import settings_from_env
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.kafka import KafkaBroker
from tests.contract.stage import Reader, message, publish, values
from tests.real_commands import ROOT, RealCommand
from tests.services.process import Process

pytestmark = pytest.mark.kafka
NOTES = 20


class Instance:
    """A module's instance: a database of its own, and commands under its environment alone."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        folder.mkdir()
        self.file = folder / "db.sqlite3"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "HOME", "LANG", "KAFKA_HOST", "KAFKA_PORT")
        } | {
            "DJANGO_SETTINGS_MODULE": "tests.folio_instance.settings",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "TESTS_SQLITE_FILE": str(self.file),
            **environment,
        }

    def run(self, *arguments: str, module: str = "django") -> None:
        log = self.folder / f"{arguments[0]}.log"
        program = [sys.executable, "-W", "error", "-m", module]
        process = Process([*program, *arguments], cwd=ROOT, env=self.environment, log=log)
        assert process.run() == 0, log.read_text()

    def consume(self) -> RealCommand:
        return RealCommand(self.folder, "consume_events", env=self.environment)

    def ask(self, statement: str) -> list[str]:
        with closing(sqlite3.connect(self.file)) as database:
            return [str(row[0]) for row in database.execute(statement)]

    @property
    def tenants(self) -> Counter[str]:
        """Whose notes took effect here, and how many of them."""
        return Counter(self.ask("SELECT note FROM testapp_effect"))

    def has(self, count: int) -> bool:
        return self.tenants.total() >= count


@pytest.fixture
def env_name() -> str:
    return f"env-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def instances(tmp_path: Path, env_name: str) -> list[Instance]:
    """Two instances of one module, each with a collection of its own."""
    return [
        Instance(
            tmp_path / collection,
            ENV=env_name,
            KAFKA_PRODUCER_TENANT_COLLECTION=collection,
            KAFKA_EVENTS_CONSUMER_PATTERN=rf"{env_name}\.{collection}\.library\.note",
            **{"kafka.consumer.metadata.max.age.ms": "500"},
        )
        for collection in ("COLLECTIONA", "COLLECTIONB")
    ]


def test_instances_with_a_collection_each_share_a_kafka_and_no_event(
    instances: list[Instance], env_name: str
) -> None:
    """Each tenant is on one of them; both are members of one group, told apart by variables alone."""
    served = [("diku", "lib-one"), ("college", "lib-two", "lib-three")]
    for instance in instances:
        instance.run("migrate", "--run-syncdb", "-v0")
    consumers = [instance.consume() for instance in instances]
    try:
        for instance, tenants in zip(instances, served, strict=True):
            instance.run(str(NOTES), *tenants, module="tests.folio_instance")
            instance.run("relay_events", "--once")
        wanted = [Counter(dict.fromkeys(tenants, NOTES)) for tenants in served]
        for instance, consumer, whose in zip(instances, consumers, wanted, strict=True):
            consumer.wait_for(partial(instance.has, whose.total()))
        assert [instance.tenants for instance in instances] == wanted
    finally:
        for consumer in consumers:
            consumer.process.stop(signal.SIGTERM)

    # Neither has read anything of the other's topic.
    assert [
        set(instance.ask("SELECT topic FROM folio_events_consumeroffset")) for instance in instances
    ] == [{f"{env_name}.COLLECTION{letter}.library.note"} for letter in "AB"]


@pytest.fixture
def broker(env_name: str) -> Iterator[KafkaBroker]:
    """Kafka as an environment names it in which only the metadata refresh is unusual."""
    env = environ.Env()
    env.ENVIRON = {
        "KAFKA_HOST": os.environ["KAFKA_HOST"],
        "KAFKA_PORT": os.environ.get("KAFKA_PORT", ""),
        "ENV": env_name,
        "kafka.consumer.metadata.max.age.ms": "1000",
    }
    found = KafkaBroker(settings_from_env(env)["BROKER"]["OPTIONS"])
    yield found
    found.close()


def test_a_new_topic_is_picked_up_within_the_refresh_interval(
    broker: KafkaBroker, env_name: str
) -> None:
    """A second in this environment: long before the 30 seconds that are FOLIO's and our default."""
    old, new = f"{env_name}.diku.library.note", f"{env_name}.college.library.note"
    broker.create_topics([TopicSpec(old, 1, 1)])
    publish(broker, [message(old, b"old")])
    reader = Reader(broker, [rf"^{env_name}\.[^.]+\.library\.note$"])
    try:
        assert values(reader.read(1)) == [b"old"]
        broker.create_topics([TopicSpec(new, 1, 1)])
        created = time.monotonic()
        publish(broker, [message(new, b"new")])
        assert values(reader.read(1)) == [b"new"]
        took = time.monotonic() - created
    finally:
        reader.close()

    # The refresh, and a moment for the group to share out anew.
    assert took < 20
