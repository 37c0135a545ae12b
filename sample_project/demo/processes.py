"""The processes of a running library: what is started, and how it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from sample_project.demo.progress import DemoError

PROJECT_DIR = Path(__file__).resolve().parent.parent.parent

#: Name to command line behind ``python``; docker-compose.yml runs the same.
PROCESSES: Mapping[str, tuple[str, ...]] = {
    "site": ("manage.py", "runserver", "--noreload", "--insecure", "{address}"),
    "worker": (
        "-m",
        "celery",
        "-A",
        "sample_project",
        "worker",
        "--pool",
        "solo",
        "--without-mingle",
    ),
    "beat": ("-m", "celery", "-A", "sample_project", "beat"),
    "consumer": ("manage.py", "consume_events"),
}

#: Seconds that a process gets to finish what it has in hand.
_GRACE = 15.0
_LOG_LINES = 12


def command_line(name: str, *, address: str) -> list[str]:
    """The command line of a process, without the interpreter.

    Args:
        name: One of PROCESSES.
        address: Where the site listens, ``host:port``.
    """
    return [part.format(address=address) for part in PROCESSES[name]]


class Processes:
    """Starts all processes, and ends them when the block ends, however it does."""

    def __init__(self, *, address: str, logs: Path) -> None:
        self._address = address
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        try:
            for name in PROCESSES:
                self._start(name)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self, name: str) -> None:
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, *command_line(name, address=self._address)],
                cwd=PROJECT_DIR,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches the demo alone, which then ends them in order.
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def check(self) -> None:
        """Make sure that all are alive.

        Raises:
            DemoError: One has ended; shows the end of its log.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise DemoError(
                    f"The {name} has ended with code {process.returncode}. The end of {self.log(name)}:\n"
                    + self._tail(name)
                )

    def _tail(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(f"    {line}" for line in lines)

    def _stop(self) -> None:
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _GRACE
        for process in self._running.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def _end_with_parent() -> None:
    # Runs in the child: even a demo that is killed leaves nothing running.
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
