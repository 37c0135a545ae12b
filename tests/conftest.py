"""Fixtures of all tiers: which real parts there are, brokers, receivers of one test."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection

from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.brokers.memory import MemoryBroker
from folio_events.conf import KAFKA_BROKER
from folio_events.receivers import broadcasts, registry
from folio_events.topics.declared import declared_topics

_PARTS = {
    "postgres": ("PostgreSQL", "DATABASE_URL"),
    "kafka": ("Apache Kafka", "KAFKA_HOST"),
}


def pytest_configure() -> None:
    database = django_settings.DATABASES["default"]
    if database["ENGINE"].endswith("sqlite3"):
        Path(database["NAME"]).parent.mkdir(exist_ok=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark, (part, variable) in _PARTS.items():
        if item.get_closest_marker(mark) and not os.environ.get(variable):
            # On SQLite's own run of the suite, what needs PostgreSQL has run already.
            if os.environ.get("CI") == "true" and not os.environ.get("TESTS_WITHOUT_SERVICES"):
                pytest.fail(f"{part} is missing: {variable} is not set", pytrace=False)
            pytest.skip(f"needs {part}: set {variable}, or run 'make test'")
    if item.get_closest_marker("once") and os.environ.get("DATABASE_URL"):
        pytest.skip("shows the same on every database: runs in the pass without DATABASE_URL")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("real parts")
    database = "PostgreSQL" if os.environ.get("DATABASE_URL") else "SQLite"
    terminalreporter.line(f"database: {database}")
    kafka = os.environ.get("KAFKA_HOST")
    terminalreporter.line(f"broker: {'Apache Kafka and ' if kafka else ''}database, memory")


def pytest_unconfigure() -> None:
    database = django_settings.DATABASES["default"]
    if database["ENGINE"].endswith("sqlite3"):
        shutil.rmtree(Path(database["NAME"]).parent, ignore_errors=True)


def is_postgres() -> bool:
    return connection.vendor == "postgresql"


@pytest.fixture(autouse=True)
def _own_receivers() -> Iterator[None]:
    """Receivers that a test registers are forgotten after it."""
    before = {receiver.name for receiver in (*registry, *broadcasts)}
    yield
    for home in (registry, broadcasts):
        for receiver in home:
            if receiver.name not in before:
                home.remove(receiver.name)


@pytest.fixture(autouse=True)
def _own_topics() -> Iterator[None]:
    """Topics that a test declares are forgotten after it."""
    before = declared_topics.in_code()
    yield
    for name in declared_topics.in_code() - before:
        declared_topics.remove(name)


@pytest.fixture
def only_test_receivers() -> Iterator[None]:
    """The sample project's receivers are away during the test."""
    before = list(registry)
    for receiver in before:
        registry.remove(receiver.name)
    yield
    for receiver in registry:
        registry.remove(receiver.name)
    for receiver in before:
        registry.add(receiver)


@pytest.fixture
def folio_events(settings: Any) -> Callable[..., None]:
    """Change keys of FOLIO_EVENTS for one test."""

    def change(**keys: object) -> None:
        settings.FOLIO_EVENTS = {**settings.FOLIO_EVENTS, **keys}

    return change


@pytest.fixture
def memory_broker(folio_events: Callable[..., None]) -> MemoryBroker:
    """The setting BROKER names a memory broker of the test's own."""
    folio_events(BROKER={"BACKEND": "folio_events.brokers.memory.MemoryBroker"})
    broker = get_broker()
    assert isinstance(broker, MemoryBroker)
    return broker


def kafka_options(**options: Any) -> dict[str, Any]:
    """Options for the Kafka that runs for the tests."""
    port = os.environ.get("KAFKA_PORT", "9092")
    return {"bootstrap.servers": f"{os.environ['KAFKA_HOST']}:{port}", **options}


@pytest.fixture
def kafka_broker(folio_events: Callable[..., None]) -> Iterator[Broker]:
    """The setting BROKER names the real Kafka, under an ENV of the test's own."""
    folio_events(
        ENV=f"test-{uuid.uuid4().hex[:12]}",
        GROUP=f"group-{uuid.uuid4().hex[:12]}",
        BROKER={"BACKEND": KAFKA_BROKER, "OPTIONS": kafka_options()},
    )
    broker = get_broker()
    yield broker
    broker.close()
