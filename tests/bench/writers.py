"""What the wake-up costs eight client processes that write at once."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Iterator

import psycopg
from django.db import connections

from folio_events.wakeup import CHANNEL
from tests.bench.harness import Bench, Figure, Goal, Sample
from tests.bench.stage import OUTBOX, ROOT, empty, program

CLIENTS = 8


class Writers:
    """Client processes that write at the same time."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def write(self, seconds: float, *, rate: float = 0, wake_up: bool) -> int:
        """Have all write for some seconds, at a rate in turns; returns how many rows they wrote."""
        order = {"seconds": seconds, "rate": rate / len(self._processes), "wake_up": wake_up}
        for number, process in enumerate(self._processes):
            order["delay"] = number / rate if rate else 0
            assert process.stdin is not None
            process.stdin.write(f"{json.dumps(order)}\n")
            process.stdin.flush()
        total = 0
        for process in self._processes:
            assert process.stdout is not None
            total += int(process.stdout.readline())
        return total


@contextlib.contextmanager
def writers(count: int) -> Iterator[Writers]:
    """Start client processes; they end with their standard input."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.writer"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        yield Writers(processes)
    finally:
        for process in processes:
            process.communicate()


@contextlib.contextmanager
def _listener() -> Iterator[None]:
    """Somebody who listens, as a relay does, and does nothing else."""
    connections["default"].ensure_connection()
    parameters = connections["default"].get_connection_params()
    with psycopg.connect(
        **{name: parameters[name] for name in ("dbname", "user", "host", "port")}, autocommit=True
    ) as session:
        session.execute(f"LISTEN {CHANNEL}")
        yield


def run(bench: Bench) -> None:
    """Measure throughput with and without the wake-up, beside a listener and beside a relay."""
    seconds = bench.size(4, 1)
    empty(*OUTBOX, "bench_captureditem")
    with writers(CLIENTS) as clients:

        def throughput(name: str, *, wake_up: bool) -> Sample:
            return {name: clients.write(seconds, wake_up=wake_up) / seconds}

        def listened(name: str, *, wake_up: bool) -> Sample:
            with _listener():
                return throughput(name, wake_up=wake_up)

        clients.write(1, wake_up=True)  # connections, and the threads that wake up
        bench.measure(
            [
                functools.partial(listened, "woken", wake_up=True),
                functools.partial(listened, "quiet", wake_up=False),
            ],
            [
                Figure(
                    f"{CLIENTS} writers with the wake-up",
                    "events/s",
                    "woken",
                    "quiet",
                    Goal("ratio", "at least", 0.9),
                    "without it",
                )
            ],
        )
        empty(*OUTBOX, "bench_captureditem")
        with program("django", "relay_events"):
            clients.write(2, wake_up=True)
            bench.measure(
                [
                    functools.partial(throughput, "woken", wake_up=True),
                    functools.partial(throughput, "quiet", wake_up=False),
                ],
                [
                    Figure(
                        f"{CLIENTS} writers with the wake-up, beside a relay",
                        "events/s",
                        "woken",
                        "quiet",
                        None,
                        "without it",
                    )
                ],
            )
