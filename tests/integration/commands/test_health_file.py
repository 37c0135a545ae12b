"""A file's age says whether a daemon works, for probes of a process that has no port."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import connections

from folio_events.consumer import Consumer
from folio_events.exceptions import BrokerUnavailableError
from folio_events.management import health_file as module
from folio_events.management.health_file import health_file
from folio_events.relay_daemon import serve
from tests.faulty_broker import AbsentBroker, FaultyBroker
from tests.note_topic import NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
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
            future.result(30)


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.01)


@pytest.fixture(autouse=True)
def every_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INTERVAL", 0.0)


def test_the_file_is_as_old_as_the_part_that_is_silent_longest(tmp_path: Path) -> None:
    """It comes with the last part's first word and goes with the process."""
    path = tmp_path / "alive"
    path.write_text("left by a process that was killed")
    with health_file(str(path), ["one", "two"]) as health:
        assert not path.exists()
        health.alive("one")
        assert not path.exists()
        health.alive("two")
        first = path.stat().st_mtime
        for _ in range(3):
            health.alive("two")
        assert path.stat().st_mtime == first
        health.alive("one")
        assert path.stat().st_mtime > first
    assert not path.exists()


def test_a_relay_that_works_touches_it(tmp_path: Path, faulty_broker: FaultyBroker) -> None:
    """Also where nothing is to be published."""
    path = tmp_path / "alive"
    with (
        health_file(str(path), ["default"]) as health,
        in_background(
            lambda stop: serve(stop, using="default", alive=lambda: health.alive("default"))
        ),
    ):
        await_true(path.exists)
        os.utime(path, (1, 1))
        await_true(lambda: path.stat().st_mtime > 1)


def test_a_consumer_that_works_touches_it(tmp_path: Path, notes: NoteTopic) -> None:
    """Also where nothing comes."""
    path = tmp_path / "alive"
    note_receiver("one")
    consumer = Consumer("events", broker=notes.broker)
    with (
        health_file(str(path), ["events"]) as health,
        in_background(lambda stop: consumer.run(stop, alive=lambda: health.alive("events"))),
    ):
        await_true(path.exists)
        os.utime(path, (1, 1))
        await_true(lambda: path.stat().st_mtime > 1)
    consumer.close()


def test_a_consumer_whose_broker_is_away_goes_red_and_ends(
    notes: NoteTopic, settings: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No word of life comes between its errors, and after so many in a row it raises the last."""
    note_receiver("one")
    broker = AbsentBroker({})
    consumer = Consumer("events", broker=broker)
    heard: list[int] = []
    errors: list[int] = []

    def refuse(*_arguments: object, **_options: object) -> int:
        errors.append(1)
        raise BrokerUnavailableError("nobody is there")

    monkeypatch.setattr(consumer, "step", refuse)
    settings.FOLIO_EVENTS = {  # type: ignore[attr-defined]  # pytest-django's
        **settings.FOLIO_EVENTS,  # type: ignore[attr-defined]
        "CONSECUTIVE_ERRORS_LIMIT": 3,
        "POLL_FAILURE_SLEEP": 0.01,
    }
    with pytest.raises(BrokerUnavailableError):
        consumer.run(threading.Event(), alive=lambda: heard.append(1))
    assert (len(errors), heard) == (3, [])
