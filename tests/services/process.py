"""Processes, folders and ports that belong to one run and end with it, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.services import keeper
from tests.services.packages import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass
class Process:
    """A command under a keeper: all of it ends when this process does, even by SIGKILL."""

    argv: Sequence[str]
    folder: Path | None = None  # a private folder, kept until the command has ended
    cwd: Path | None = None
    env: Mapping[str, str] | None = None
    log: Path | None = None  # where its output goes, added to what is there
    user: str | None = None
    orphan_signal: signal.Signals = signal.SIGKILL
    foreground: bool = False  # on our terminal, in our process group
    pid: int = field(default=0, init=False)
    _keeper: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def start(self) -> None:
        if self.running:
            message = f"{self.argv[0]} runs already"
            raise RuntimeError(message)
        reported, report = os.pipe()
        options = ["--report", str(report), "--signal", self.orphan_signal.name]
        options += ["--user", self.user] if self.user else []
        options += ["--foreground"] if self.foreground else []
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, reported)
            kept = [report]
            if self.folder:
                lock = opened.enter_context((self.folder / ".lock").open())
                fcntl.flock(lock, fcntl.LOCK_SH)
                kept.append(lock.fileno())
            output = opened.enter_context(self.log.open("ab")) if self.log else None
            try:
                self._keeper = subprocess.Popen(
                    [*_keeper_command(), "run", *options, "--", *self.argv],
                    cwd=self.cwd,
                    env=self.env,
                    stdin=None if self.foreground else subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=kept,
                )
            finally:
                os.close(report)
            # The keeper answers once the command runs, or closes without an answer.
            self.pid = int(os.read(reported, 32) or 0)

    @property
    def running(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Passes a signal on to the command, if it still runs."""
        if self._keeper:
            self._keeper.send_signal(number)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the command and all it started; returns its status, 128 + n for signal n."""
        if self._keeper is None:
            return 0
        return self._keeper.wait(timeout)

    def run(self) -> int:
        """Starts it and waits for its end; returns its status."""
        try:
            self.start()
            return self.wait()
        finally:
            self.kill()

    def stop(self, number: signal.Signals, timeout: float = 30) -> None:
        """Asks the command to end, and kills it when it takes too long."""
        self.send(number)
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the command, then to everything it started; returns when all are gone."""
        self.send(keeper.KILL)
        self.wait()


def _keeper_command() -> list[str]:
    # -I -S: nothing of the project is imported, so it starts in an instant and stays small.
    return [sys.executable, "-I", "-S", keeper.SELF, str(os.getpid())]


@contextlib.contextmanager
def private_folder(
    part: str, *, owner: str | None = None, within: Path | None = None
) -> Iterator[Path]:
    """A temporary folder that is removed in the end, also after a SIGKILL of this process."""
    within = within or Path(tempfile.gettempdir())
    if owner and not all(folder.stat().st_mode & stat.S_IXOTH for folder in _and_above(within)):
        within = Path("/tmp")  # TMPDIR lets in root alone
    folder = Path(tempfile.mkdtemp(prefix=f"folio-events-{part}-", dir=within))
    guard = subprocess.Popen(
        [*_keeper_command(), "remove", str(folder)],
        stdin=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        (folder / ".lock").touch()
        if owner:
            shutil.chown(folder, owner)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        guard.kill()
        guard.wait()


def _and_above(folder: Path) -> list[Path]:
    return [folder.resolve(), *folder.resolve().parents]


def reserve_port() -> tuple[int, socket.socket]:
    """A free TCP port, and a socket that keeps other runs away from it until it is closed.

    The port lies outside the range that the kernel hands to clients: a client that tries again
    and again to reach a stopped server could otherwise be given that very port and connect to
    itself, and the server could not come back.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        mark = socket.socket(socket.AF_UNIX)
        try:
            if sys.platform == "linux":
                # An abstract name: all runs see it, no file is left, and it goes with its holder.
                mark.bind(f"\0folio-events-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
        else:
            return port, mark


def failure(what: str, log: Path) -> ServiceUnavailable:
    """The error for a server that did not come up, with the end of its log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return ServiceUnavailable("\n    ".join([f"{what}. The end of its log:", *lines[-15:]]))
