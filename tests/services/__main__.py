"""Runs a command on real parts: python -m tests.services run [--postgres] [--kafka] -- COMMAND."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.services import ServiceUnavailable, kafka, postgres
from tests.services.keeper import split_command
from tests.services.process import Process

if TYPE_CHECKING:
    from types import FrameType

PATIENCE = 30.0  # seconds that the command has to end after a SIGTERM


class Stopped(BaseException):
    """A signal came while there was no command yet to pass it on to."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> int:
    options, command = _options()
    signals = _Signals()
    try:
        with contextlib.ExitStack() as ended:
            lines, environment = _parts(options, ended)
            ended.callback(signals.ignore)  # runs first: nothing interrupts the end
            _say("Running on", lines)
            status = signals.run(Process(command, env=environment, foreground=True))
            _say("Ran on", lines)
            return status
    except Stopped as stopped:
        return 128 + stopped.number
    except ServiceUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m tests.services")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser(
        "run",
        usage="%(prog)s [--postgres] [--kafka] [--require] -- COMMAND ...",
        help="run a command on real parts, and stop afterwards what was started for it",
    )
    run.add_argument("--postgres", action="store_true", help="give it DATABASE_URL")
    run.add_argument("--kafka", action="store_true", help="give it KAFKA_HOST and KAFKA_PORT")
    run.add_argument(
        "--require",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="fail when a part cannot be had, as with CI=true, instead of running without it",
    )
    arguments, command = split_command(sys.argv[1:])
    options = parser.parse_args(arguments)
    if not command:
        run.error("no COMMAND after --")
    return options, command


def _parts(
    options: argparse.Namespace, ended: contextlib.ExitStack
) -> tuple[list[str], dict[str, str]]:
    """What is said about the parts, and the environment that leads the command to them."""
    lines: list[str] = []
    environment = dict(os.environ)
    if options.postgres:
        try:
            server = ended.enter_context(postgres())
        except ServiceUnavailable as error:
            lines.append(_missing("PostgreSQL", error, required=options.require))
            environment.pop("DATABASE_URL", None)
        else:
            lines.append(server.description)
            environment["DATABASE_URL"] = server.url
    if options.kafka:
        try:
            cluster = ended.enter_context(kafka())
        except ServiceUnavailable as error:
            lines.append(_missing("Apache Kafka", error, required=options.require))
            environment.pop("KAFKA_HOST", None)
            environment.pop("KAFKA_PORT", None)
        else:
            lines.append(cluster.description)
            environment["KAFKA_HOST"] = cluster.brokers[0].host
            environment["KAFKA_PORT"] = str(cluster.brokers[0].port)
    return lines, environment


def _missing(part: str, error: ServiceUnavailable, *, required: bool) -> str:
    if required:
        raise error
    return f"NO {part}. {error}"


def _say(verb: str, lines: list[str]) -> None:
    # On stderr: the command's own output may be read by a program.
    sys.stderr.write("".join(f"{verb} {line}\n" for line in lines))


class _Signals:
    """What a signal to the runner means: before, during and after the command."""

    def __init__(self) -> None:
        self._command: Process | None = None
        self._early: list[signal.Signals] = []  # came while the command was being started
        self._deadline: float | None = None
        self._over = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        self._over = True

    def run(self, command: Process) -> int:
        self._command = command
        command.start()
        for number in self._early:
            command.send(number)
        while True:
            try:
                return command.wait(timeout=1)
            except subprocess.TimeoutExpired:
                if self._deadline and time.monotonic() > self._deadline:
                    command.kill()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._over:
            return
        if self._command is None:
            raise Stopped(number)
        if number == signal.SIGINT and _on_terminal():
            return  # Ctrl-C reached the command as well
        if self._command.pid:
            self._command.send(signal.Signals(number))
        else:
            self._early.append(signal.Signals(number))
        if number != signal.SIGINT:  # what an interrupt means is the command's affair
            self._deadline = self._deadline or time.monotonic() + PATIENCE


def _on_terminal() -> bool:
    """Whether our process group is the one that the terminal's keys go to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


if __name__ == "__main__":
    sys.exit(main())
