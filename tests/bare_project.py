"""A bare Django project that is built by following a page literally."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.pages import ROOT, Block, Command, commands

#: Seconds that a command may take, and that a daemon's effect may need to show.
PATIENCE = 60.0


class BareProject:
    """A directory in which the blocks of a page are typed in.

    The package comes from the working copy, so ``pip install`` is taken for done.
    """

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "KAFKA_HOST", "KAFKA_PORT")
        }
        self._environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            # Standard output and error in the order in which a terminal shows them.
            "PYTHONUNBUFFERED": "1",
            **environment,
        }

    def start(self, project: str, *apps: str) -> None:
        """Do what every Django project begins with."""
        self.run(Command(f"django-admin startproject {project} ."))
        for app in apps:
            self.run(Command(f"python manage.py startapp {app}"))

    def follow(self, blocks: Iterable[Block]) -> None:
        """Write the files and run the commands of blocks in their order."""
        for block in blocks:
            if block.language == "console":
                for command in commands(block):
                    self.run(command)
            elif block.path is not None:
                self.write(block)

    def write(self, block: Block) -> None:
        assert block.path is not None
        path = self.directory / block.path
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() + "\n" if block.is_addition else ""
        path.write_text(before + block.text)

    def add(self, path: str, text: str) -> None:
        """Add what only the test needs to a file."""
        with (self.directory / path).open("a") as file:
            file.write(f"\n{text}\n")

    def run(self, command: Command) -> str:
        """Run a command; the lines that the page shows for it must come, in their order."""
        if command.line.startswith(("python -m pip install ", "python -m venv ", "source ")):
            return ""
        if command.is_daemon:
            self._start(command.line.removesuffix(" &"))
            return ""
        deadline = time.monotonic() + PATIENCE
        while True:
            result = subprocess.run(
                command.line,
                shell=True,
                executable="/bin/bash",
                cwd=self.directory,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            output = result.stdout
            fails = any(line.startswith("CommandError: ") for line in command.shown)
            if (result.returncode != 0) == fails and shows(output, command.shown):
                return output
            # What a daemon does needs a moment; nothing else does.
            if not (self._daemons and command.shown) or time.monotonic() > deadline:
                raise AssertionError(
                    f"$ {command.line}\nexited with {result.returncode} and printed\n{output}\n"
                    f"where the page shows\n{chr(10).join(command.shown)}"
                )
            self._check_daemons()

    def _start(self, line: str) -> None:
        log = (self.directory / f"daemon-{len(self._daemons)}.log").open("wb")
        with log:
            self._daemons.append(
                subprocess.Popen(
                    ["/bin/bash", "-c", f"exec {line}"],
                    cwd=self.directory,
                    env=self._environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def _check_daemons(self) -> None:
        for number, daemon in enumerate(self._daemons):
            if daemon.poll() is not None:
                log = (self.directory / f"daemon-{number}.log").read_text()
                raise AssertionError(f"daemon {number} ended with {daemon.returncode}:\n{log}")

    def stop(self) -> list[int]:
        """Ask the daemons to end.

        Returns:
            Their exit codes.
        """
        daemons, self._daemons = self._daemons, []
        for daemon in daemons:
            daemon.send_signal(signal.SIGTERM)
        codes = []
        for daemon in daemons:
            try:
                codes.append(daemon.wait(PATIENCE))
            except subprocess.TimeoutExpired:
                daemon.kill()
                codes.append(daemon.wait())
        return codes


def shows(output: str, shown: Sequence[str]) -> bool:
    lines = iter([line.strip() for line in output.splitlines()])
    return all(any(_is_like(line, wanted.strip()) for line in lines) for wanted in shown)


def _is_like(line: str, wanted: str) -> bool:
    # A page writes ... for what differs from run to run.
    return re.fullmatch(".*".join(map(re.escape, wanted.split("..."))), line) is not None
