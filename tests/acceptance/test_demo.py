"""The demo runs as separate processes, tells its story, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sample_project.demo.collection import TENANTS, read_books
from sample_project.demo.processes import PROCESSES, command_line

pytestmark = pytest.mark.once  # the demo has a database of its own

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(tmp_path):
    """Start the demo with a few books; returns a function that gives the process."""
    started = []

    def start(*options):
        environment = {
            n: v for n, v in os.environ.items() if n not in ("KAFKA_HOST", "DATABASE_URL")
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "sample_project.demo", "--books", "5", *options],
            cwd=ROOT,
            env={
                **environment,
                "SAMPLE_PROJECT_DIR": str(tmp_path / "library"),
                "BROKER": "database",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def children(process):
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listed.read_text().split()]


def is_alive(pid):
    try:
        # A zombie has ended, though nobody has asked for its result yet.
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def read_until(process, word):
    for line in process.stdout:
        if word in line:
            return line
    pytest.fail(f"the demo ended without {word!r}")


class TestStory:
    def test_the_whole_story_ends_with_a_table_in_which_everything_adds_up(self, demo, tmp_path):
        process = demo()
        output, _ = process.communicate(timeout=150)
        assert process.returncode == 0, output
        table = {
            name: int(count)
            for name, count in re.findall(r"^  (\S.*?)  +(\d+)$", output, re.MULTILINE)
        }
        assert table["events recorded"] == table["events published"] > 0
        assert table["dead: letters left"] == 0
        assert table["resolved: deliveries that took effect later"] == 2
        assert "OrderLineLockedError" in output
        assert re.search(r"from commit to handled +\d+\.\d\d +\d+\.\d\d", output)
        assert "Both sides are equal and every count adds up" in output
        assert not (tmp_path / "library").exists()

    def test_any_shell_reaches_the_library_by_its_own_command(self, demo, tmp_path):
        process = demo()
        read_until(process, "Admin:")
        asked = subprocess.run(
            [tmp_path / "library" / "manage", "events_status", "--json"],
            env={"KAFKA_HOST": "elsewhere", "DATABASE_URL": "sqlite:////elsewhere"},
            capture_output=True,
            text=True,
        )
        process.kill()
        assert '"topic": "folio.diku.inventory.item"' in asked.stdout, asked.stderr

    def test_left_up_it_has_a_failure_to_find(self, demo, tmp_path):
        def ask(*command):
            manage = tmp_path / "library" / "manage"
            return subprocess.run([manage, *command], capture_output=True, text=True).stdout

        process = demo("--up")
        read_until(process, "stays up")
        status = ask("events_status", "--json")
        (letter,) = json.loads(ask("dead_letters", "list", "--json"))
        shown = ask("dead_letters", "show", str(letter["id"]))
        process.kill()
        assert '"state": "dead", "count": 1}' in status
        # It is the receiver that fails, not the event.
        assert "the payload fits" in shown

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    def test_all_processes_end_with_the_demo_however_it_ends(self, demo, number):
        process = demo()
        site = read_until(process, "Admin:")
        port = int(re.findall(r":(\d+)/", site)[0])
        running = children(process)
        assert len(running) == len(PROCESSES)
        process.send_signal(number)
        process.wait(timeout=30)
        # After a kill they end by themselves, a moment later.
        for pid in running:
            wait_until(lambda pid=pid: not is_alive(pid))
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0

    def test_a_directory_that_holds_something_is_not_touched(self, demo, tmp_path):
        (tmp_path / "library").mkdir()
        (tmp_path / "library" / "thesis.txt").write_text("three years of work")
        process = demo()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "is not empty" in output
        assert (tmp_path / "library" / "thesis.txt").read_text() == "three years of work"

    def test_kafka_without_a_broker_is_refused_by_the_variables_name(self, demo):
        process = demo("--broker", "kafka")
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "KAFKA_HOST and DATABASE_URL" in output


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestProcesses:
    def test_the_compose_file_runs_the_same_commands(self):
        services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        for name in PROCESSES:
            expected = ["python", *command_line(name, address="0.0.0.0:8000")]
            assert services[name]["command"] == expected


class TestCollection:
    def test_there_are_at_least_500_items_of_both_tenants_each_with_a_piece(self):
        books = read_books()
        volumes = [volume for book in books for volume in book.volumes]
        assert len(volumes) >= 500
        assert all(volume.pieces for volume in volumes)
        assert {book.tenant for book in books} == set(TENANTS)

    def test_every_record_has_an_id_of_its_own_and_barcodes_differ(self):
        books = read_books()
        ids = [record["id"] for book in books for _path, record in book.records()]
        barcodes = [v.pieces[0]["barcode"] for book in books for v in book.volumes]
        assert len(set(ids)) == len(ids)
        assert len(set(barcodes)) == len(barcodes)
