"""The command ``consume_events``: groups, ends, and events that end it."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from django.core.management import CommandError, call_command

from folio_events import publish
from folio_events.models import BrokerRecord, ConsumerOffset, Delivery, InboxEntry
from folio_events.relay import drain
from tests.note_topic import effects, note_receiver
from tests.outbox_writer import database_address
from tests.real_commands import RealCommand, environment
from tests.testapp.models import Book, Effect

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("only_test_receivers"),
]


def consume_once(*arguments: str, idle: float = 0.3) -> str:
    out = io.StringIO()
    call_command("consume_events", "--once", "--idle", str(idle), *arguments, stdout=out)
    return out.getvalue()


def append(count: int) -> None:
    for number in range(count):
        publish("library.note", key=f"k{number % 3}", payload={"number": number})
    drain()


@pytest.fixture
def consumer(tmp_path: Path) -> Iterator[Callable[..., RealCommand]]:
    """Starts the daemon with obstinate receivers; what still runs at the end is killed."""
    started: list[RealCommand] = []

    def start(*arguments: str, **options: object) -> RealCommand:
        env = environment(
            apps=["tests.obstinate"], folio_events=options, OBSTINATE_FOLDER=str(tmp_path)
        )
        started.append(RealCommand(tmp_path, "consume_events", *arguments, env=env))
        return started[-1]

    yield start
    for command in started:
        command.process.kill()


def books(*titles: str) -> None:
    for title in titles:
        Book.objects.create(title=title)
    drain()


def noted() -> list[str]:
    return list(Effect.objects.order_by("id").values_list("note", flat=True))


def test_once_runs_every_group_of_the_project() -> None:
    """And says how many records that were."""
    note_receiver("here")
    note_receiver("there", group="another")
    append(4)
    assert consume_once() == "dispatched 8\n"
    assert sorted(effects("here")) == sorted(effects("there")) == [0, 1, 2, 3]


def test_a_group_can_be_named() -> None:
    """The others do not run."""
    note_receiver("here")
    note_receiver("there", group="another")
    append(2)
    assert consume_once("--group", "another") == "dispatched 2\n"
    assert effects("here") == []
    assert consume_once("--group", "another", "--group", "events") == "dispatched 2\n"


def test_an_unknown_group_is_refused() -> None:
    """Naming those that there are."""
    note_receiver("here")
    with pytest.raises(CommandError, match="No receiver is in group 'yours'"):
        consume_once("--group", "yours")


def test_a_project_without_receivers_is_told_so() -> None:
    """Instead of running for nothing."""
    with pytest.raises(CommandError, match=r"receivers\.py"):
        consume_once()


@pytest.mark.postgres
def test_once_waits_for_a_partition_that_another_consumer_is_at(
    folio_events: Callable[..., None],
) -> None:
    """It ends when nothing came for a while, not when another member was quicker."""
    folio_events(TOPIC_PARTITIONS=1)
    note_receiver("here")
    append(1)
    consume_once()
    append(2)
    with psycopg.connect(**database_address()) as holder:
        holder.execute("SELECT 1 FROM folio_events_consumeroffset FOR UPDATE")
        timer = threading.Timer(0.3, holder.rollback)
        timer.start()
        assert consume_once(idle=3) == "dispatched 2\n"
        timer.join()


def test_sigterm_finishes_the_batch_in_hand(
    consumer: Callable[..., RealCommand], tmp_path: Path, folio_events: Callable[..., None]
) -> None:
    """The process ends with status 0 when the receiver has returned and all is committed."""
    folio_events(TOPIC_PARTITIONS=1)
    books("before", "wait", "after")
    daemon = consumer()
    daemon.wait_for((tmp_path / "inside").exists)
    daemon.process.send(signal.SIGTERM)
    assert daemon.process.running
    assert noted() == []
    (tmp_path / "go on").touch()
    assert daemon.wait() == 0, daemon.output
    assert noted() == ["before", "wait", "after"]
    assert InboxEntry.objects.count() == 3
    assert ConsumerOffset.objects.get().offset == 3


def test_an_idle_consumer_ends_on_sigterm(consumer: Callable[..., RealCommand]) -> None:
    """Without waiting for an event."""
    books("plain")
    daemon = consumer()
    daemon.wait_for(lambda: noted() == ["plain"])
    daemon.process.send(signal.SIGTERM)
    assert daemon.wait(20) == 0, daemon.output


def test_a_killed_consumer_loses_and_doubles_nothing(
    consumer: Callable[..., RealCommand], tmp_path: Path
) -> None:
    """What it was at is done by the next one."""
    books("plain", "wait", "plain too")
    daemon = consumer()
    daemon.wait_for((tmp_path / "inside").exists)
    daemon.process.kill()
    (tmp_path / "go on").touch()
    successor = consumer()
    successor.wait_for(lambda: len(noted()) >= 3)
    successor.process.kill()
    assert sorted(noted()) == ["plain", "plain too", "wait"]


def test_an_event_that_ends_the_process_becomes_a_dead_letter(
    consumer: Callable[..., RealCommand],
) -> None:
    """After three beginnings; the events around it take effect once."""
    books("before", "die", "after")
    ends = 0
    for _ in range(6):
        daemon = consumer()
        daemon_ended = False

        def done() -> bool:
            return sorted(noted()) == ["after", "before"] and Delivery.objects.exists()

        try:
            daemon.wait_for(done)
        except AssertionError:
            assert not daemon.process.running
            daemon_ended = True
        if not daemon_ended:
            break
        ends += 1
    daemon.process.kill()
    assert sorted(noted()) == ["after", "before"]
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.receiver) == ("dead", "obstinate")
    assert "process" in delivery.error
    assert 2 <= ends <= 4


def test_the_limit_of_errors_ends_the_process_with_an_error(
    consumer: Callable[..., RealCommand],
) -> None:
    """So that whoever keeps it running sees it."""
    daemon = consumer(
        BROKER={"BACKEND": "tests.faulty_broker.AbsentBroker"},
        POLL_FAILURE_SLEEP=0.01,
        CONSECUTIVE_ERRORS_LIMIT=3,
    )
    assert daemon.wait() == 1
    assert "error 2 in a row" in daemon.output
    assert "CommandError: BrokerUnavailableError" in daemon.output
    assert BrokerRecord.objects.count() == ConsumerOffset.objects.count() == 0
