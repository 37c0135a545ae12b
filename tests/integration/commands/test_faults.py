"""What stands in the way of a command, and Ctrl-C, end it in one line; a bug in a traceback."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command, get_commands, load_command_class
from django.db import DatabaseError, connections
from pytest_django import DjangoDbBlocker

from folio_events.brokers.memory import MemoryBroker
from folio_events.management.command import EventsCommand
from folio_events.management.progress import Progress
from folio_events.relay_daemon import serve

OWN = sorted(name for name, app in get_commands().items() if app == "folio_events")
#: Those that read a database which --database names, but for what looks at its faults itself.
ASK_A_DATABASE = {
    "backfill_events": ["--list"],
    "dead_letters": ["list"],
    "erase_events": ["--tenant=diku", "--dry-run"],
    "event_catalog": [],
    "purge_events": [],
    "relay_events": ["--once"],
    "replay_events": ["--resume=1"],
    "republish_events": ["--topic=library.book", "--since=2026-01-01", "--dry-run"],
    "retry_deliveries": [],
}
ASK_THE_BROKER = {
    "create_topics": ["--check"],
    "event_catalog": ["--broker"],
    "ghost_events": ["--since=2026-01-01"],
    "old_topics": [],
    "topic_report": [],
}


@pytest.fixture
def other(tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[dict[str, Any]]:
    """Settings of a database "other", which is a new file of SQLite."""
    plain = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "new.sqlite3")}
    filled = connections.configure_settings({"default": {}, "other": plain})["other"]
    connections.settings["other"] = filled
    with django_db_blocker.unblock():
        yield filled
        connections["other"].close()
    del connections["other"]
    del connections.settings["other"]


def ended(name: str, *arguments: str) -> str:
    """The line that a command ends with."""
    with pytest.raises(CommandError) as caught:
        call_command(name, *arguments, stdout=io.StringIO(), stderr=io.StringIO())
    assert caught.value.returncode == 1
    assert caught.value.__cause__ is not None, "--traceback has nothing to show"
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", OWN)
def test_every_command_ends_like_the_others(name: str) -> None:
    """What ends one in a line ends all."""
    assert isinstance(load_command_class("folio_events", name), EventsCommand)


@pytest.mark.parametrize("name", ASK_A_DATABASE)
def test_a_database_that_is_not_migrated_is_named(
    name: str, other: dict[str, Any], memory_broker: MemoryBroker
) -> None:
    """With its place, what it lacks, and the command that mends it."""
    said = ended(name, *ASK_A_DATABASE[name], "--database=other")
    assert said.startswith(f"Database 'other' ({other['NAME']}) is not migrated: no such table")
    assert said.endswith("Run 'manage.py migrate --database other'.")


@pytest.mark.parametrize("name", ASK_A_DATABASE)
def test_a_database_that_cannot_be_opened_is_named(
    name: str, other: dict[str, Any], memory_broker: MemoryBroker, tmp_path: Path
) -> None:
    """With its place and what the driver says."""
    other["NAME"] = str(tmp_path / "nowhere" / "new.sqlite3")
    said = ended(name, *ASK_A_DATABASE[name], "--database=other")
    assert f"({other['NAME']}) cannot be used: unable to open database file." in said
    assert "DATABASES" in said


def test_a_server_that_is_away_is_named(other: dict[str, Any]) -> None:
    """Host and port are told, the password is not."""
    other |= {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "library",
        "HOST": "127.0.0.1",
        "PORT": 1,
        "PASSWORD": "deep secret",
    }
    said = ended("dead_letters", "list", "--database=other")
    assert said.startswith("Database 'other' (library on 127.0.0.1) cannot be used: ")
    assert "port 1 failed: Connection refused" in said
    assert "secret" not in said


def test_a_relay_says_what_it_waits_for(
    other: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon goes on trying, with the same line in its log."""

    class OneRound(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            return True

    serve(OneRound(), using="other")
    assert "is not migrated: no such table" in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ASK_THE_BROKER)
def test_a_broker_that_is_away_is_told_of(name: str, memory_broker: MemoryBroker) -> None:
    """In one line."""
    memory_broker.available = False
    assert ended(name, *ASK_THE_BROKER[name]).startswith("BrokerUnavailableError: ")


class Ending(EventsCommand):
    """Ends in an error."""

    def __init__(self, error: type[BaseException] | None = None, sql: str = "") -> None:
        super().__init__()
        self.error, self.sql = error, sql

    def handle(self, *_args: Any, **_options: Any) -> None:
        with Progress(io.StringIO(), 10_000, "rows") as bar:
            bar.advance(2500)
            if self.error is not None:
                raise self.error
        with connections["default"].cursor() as cursor:
            cursor.execute(self.sql)


@pytest.mark.django_db
def test_a_bug_keeps_its_traceback() -> None:
    """A statement that is wrong is no fault of the database, nor is any other error."""
    with pytest.raises(DatabaseError):
        call_command(Ending(sql="SELECTED"))
    with pytest.raises(ZeroDivisionError):
        call_command(Ending(ZeroDivisionError))


def test_an_interrupt_says_how_far_it_came() -> None:
    """As Ctrl-C does, with the exit code that shells give it."""
    with pytest.raises(CommandError) as caught:
        call_command(Ending(KeyboardInterrupt))
    assert str(caught.value) == "Stopped at 2,500 of 10,000 rows; run it again to go on."
    assert caught.value.returncode == 130
