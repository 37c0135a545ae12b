"""What the real parts promise to the tests that run on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.services import KafkaCluster, ServiceUnavailable, kafka, packages, postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
GIVEN = {"DATABASE_URL", "KAFKA_HOST", "KAFKA_PORT", "CI"}


@contextmanager
def run(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The runner, with no part given but those in `environment`."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.services", "run", *arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in GIVEN} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as runner:
        try:
            yield runner
        finally:
            runner.kill()


def processes_of(folder: Path) -> list[str]:
    """The command lines of the processes that work in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def count(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
        assert row is not None
        return int(row[0])


def create_topic(cluster: KafkaCluster, name: str) -> None:
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})  # must outlive the future
    client.create_topics([NewTopic(name, 1)])[name].result(20)


def topics(cluster: KafkaCluster) -> set[str]:
    return set(AdminClient({"bootstrap.servers": cluster.bootstrap}).list_topics(timeout=5).topics)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder for TMPDIR that PostgreSQL's user may enter; pytest's own are closed."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.postgres
def test_two_postgres_servers_live_side_by_side_and_keep_what_was_committed() -> None:
    with postgres(private=True) as one, postgres(private=True) as other:
        with psycopg.connect(one.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 7) AS id")
        one.kill()
        with psycopg.connect(other.url) as connection:
            assert connection.execute("SELECT to_regclass('kept')").fetchone() == (None,)
        one.start()
        assert count(one.url) == 7
        assert one.process is not None
        folder = one.process.folder
        assert folder is not None
        assert processes_of(folder)

    assert processes_of(folder) == []
    assert not folder.exists()


@pytest.mark.kafka
def test_two_kafka_clusters_live_side_by_side_and_keep_what_was_acknowledged() -> None:
    with kafka() as other, kafka(private=True) as one:
        create_topic(one, "kept")
        producer = Producer({"bootstrap.servers": one.bootstrap, "acks": "all"})
        producer.produce("kept", b"still here")
        assert producer.flush(10) == 0
        del producer  # or it complains about the restart
        assert other.bootstrap != one.bootstrap
        assert "kept" not in topics(other)

        one.brokers[0].restart()
        # Without commits: closing would wait for the group's coordinator.
        consumer = Consumer(
            {
                "bootstrap.servers": one.bootstrap,
                "group.id": "readers",
                "enable.auto.commit": False,
            }
        )
        consumer.assign([TopicPartition("kept", 0, 0)])
        message = consumer.poll(20)
        consumer.close()
        assert message is not None
        assert message.value() == b"still here"
        process = one.brokers[0].process
        assert process is not None
        folder = process.folder
        assert folder is not None

    assert processes_of(folder) == []
    assert not folder.exists()


@pytest.mark.kafka
@pytest.mark.postgres
def test_a_killed_runner_leaves_no_process_and_no_folder(open_folder: Path) -> None:
    command = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with run(
        *("--postgres", "--kafka", "--", sys.executable, "-c", command), TMPDIR=str(open_folder)
    ) as runner:
        assert runner.stdout is not None
        pid = int(runner.stdout.readline())
        folders = list(open_folder.iterdir())
        assert len(folders) == 2
        assert all(processes_of(folder) for folder in folders)
        runner.kill()

    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert wait_until(lambda: not any(processes_of(folder) for folder in folders))
    assert wait_until(lambda: list(open_folder.iterdir()) == [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_runner_reaches_the_command(number: signal.Signals) -> None:
    with run("--", "sh", "-c", "trap 'exit 42' TERM INT; echo; sleep 600 & wait") as runner:
        assert runner.stdout is not None
        runner.stdout.readline()
        runner.send_signal(number)
        assert runner.wait(10) == 42


def test_a_part_that_does_not_answer_is_named_and_left_out() -> None:
    show = "import os; print(os.environ.get('KAFKA_HOST'))"
    with run("--kafka", "--", sys.executable, "-c", show, KAFKA_HOST="localhost.invalid") as runner:
        output, errors = runner.communicate()

    assert (runner.returncode, output) == (0, "None\n")
    assert "NO Apache Kafka. The Kafka of KAFKA_HOST, localhost.invalid:9092" in errors


def test_a_missing_part_is_an_error_under_ci() -> None:
    with run("--kafka", "--", "echo", CI="true", KAFKA_HOST="localhost.invalid") as runner:
        output, errors = runner.communicate()

    assert (runner.returncode, output) == (1, "")
    assert "does not answer" in errors


def test_what_cannot_be_installed_is_named_with_the_command_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(ServiceUnavailable, match="sudo apt-get install postgresql"):
        packages.install("PostgreSQL", ["postgresql"])
