"""The command ``relay_events``: once, or as a daemon that ends when it is asked to."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.core.management import call_command

from folio_events import publish
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import BrokerRecord, OutboxMessage, Publication, RelayCursor, RelayGap
from folio_events.relay import drain
from tests.outbox_writer import outbox_writers
from tests.real_commands import RealCommand, environment
from tests.testapp.models import Book

pytestmark = pytest.mark.django_db(transaction=True)


def relay_once() -> str:
    out = io.StringIO()
    call_command("relay_events", "--once", stdout=out)
    return out.getvalue()


def append(count: int) -> None:
    for number in range(count):
        publish("library.note", key=f"k{number % 3}", payload={"number": number})


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Callable[..., RealCommand]]:
    """Starts the daemon; what still runs at the end is killed."""
    started: list[RealCommand] = []

    def start(*arguments: str, **options: object) -> RealCommand:
        env = environment(folio_events=options)
        started.append(RealCommand(tmp_path, "relay_events", *arguments, env=env))
        return started[-1]

    yield start
    for command in started:
        command.process.kill()


def test_once_publishes_all_there_is(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """In as many drains as it takes, and says how many."""
    append(10)
    folio_events(RELAY_BATCH_SIZE=4)
    assert relay_once() == "published 10, withheld 0\n"
    assert relay_once() == "published 0, withheld 0\n"


def test_once_says_that_the_broker_is_away(memory_broker: MemoryBroker) -> None:
    """It does not wait for it."""
    append(1)
    memory_broker.available = False
    output = relay_once()
    assert "published 0" in output
    assert "wait for the broker" in output


def test_the_daemon_publishes_what_comes_and_ends_on_sigterm(
    relay: Callable[..., RealCommand],
) -> None:
    """With status 0, and nothing half done."""
    daemon = relay()
    append(5)
    daemon.wait_for(lambda: BrokerRecord.objects.count() == 5)
    append(5)
    daemon.wait_for(lambda: BrokerRecord.objects.count() == 10)
    daemon.process.send(signal.SIGTERM)
    assert daemon.wait() == 0, daemon.output
    assert Publication.objects.count() == OutboxMessage.objects.count() == 10
    append(1)
    assert drain().published == 1


def test_the_daemon_ends_on_an_interrupt(relay: Callable[..., RealCommand]) -> None:
    """As from a terminal."""
    daemon = relay()
    append(1)
    daemon.wait_for(BrokerRecord.objects.exists)
    daemon.process.send(signal.SIGINT)
    assert daemon.wait() == 0, daemon.output


def test_a_killed_daemon_is_replaced_by_another(relay: Callable[..., RealCommand]) -> None:
    """On a broker in the same database nothing is repeated."""
    daemon = relay()
    append(3)
    daemon.wait_for(lambda: BrokerRecord.objects.count() == 3)
    daemon.process.kill()
    append(3)
    successor = relay()
    successor.wait_for(lambda: BrokerRecord.objects.count() == 6)


def test_a_health_file_lives_as_long_as_the_daemon(
    relay: Callable[..., RealCommand], tmp_path: Path
) -> None:
    """It comes with the first drain and goes with SIGTERM."""
    path = tmp_path / "alive"
    daemon = relay("--health-file", str(path))
    daemon.wait_for(path.exists)
    daemon.process.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not path.exists()


@pytest.mark.parametrize("wake_up", [True, False], ids=["woken up", "polling"])
def test_daemons_stand_by_and_take_over(relay: Callable[..., RealCommand], wake_up: bool) -> None:
    """Each event is published once, whoever is alive."""
    one, other = relay(WAKE_UP=wake_up), relay(WAKE_UP=wake_up)
    append(4)
    one.wait_for(lambda: BrokerRecord.objects.count() == 4)
    one.process.kill()
    append(4)
    other.wait_for(lambda: BrokerRecord.objects.count() == 8)
    assert Publication.objects.count() == 8


@pytest.mark.postgres
def test_another_process_takes_over_position_and_gaps(relay: Callable[..., RealCommand]) -> None:
    """A row that committed late is published by it, and afterwards not again by us."""
    Book.objects.create(title="first")
    drain()
    with outbox_writers(2) as (late, quick):
        below, above = late.append("late"), quick.append("quick")
        quick.commit()
        assert drain().published == 1
        late.commit()
        assert relay("--once").wait() == 0
        published = Publication.objects.filter(outbox_message__gte=below)
        assert set(published.values_list("outbox_message", flat=True)) == {below, above}
        Book.objects.create(title="last")
        assert drain().published == 1
    assert not RelayGap.objects.exists()
    assert RelayCursor.objects.count() == 1


def test_the_daemon_outlives_a_broker_that_is_away(relay: Callable[..., RealCommand]) -> None:
    """It warns and tries again; SIGTERM does not wait for the pause to end."""
    append(1)
    daemon = relay(BROKER={"BACKEND": "tests.faulty_broker.AbsentBroker"}, POLL_FAILURE_SLEEP=0.1)
    daemon.wait_for(lambda: daemon.output.count("1 messages wait for the broker") >= 3)
    daemon.process.send(signal.SIGTERM)
    assert daemon.wait() == 0, daemon.output
    assert not Publication.objects.exists()
