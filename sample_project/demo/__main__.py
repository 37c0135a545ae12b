"""``python -m sample_project.demo``: the whole story, or with --up a library to play with."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from types import FrameType

from sample_project.demo.client import LibraryClient
from sample_project.demo.collection import read_books
from sample_project.demo.instance import (
    ADMIN,
    Instance,
    choose_environment,
    free_address,
    fresh_instance,
)
from sample_project.demo.processes import Processes
from sample_project.demo.progress import DemoError, wait_for

_FEWEST_BOOKS = 3


def main() -> int:
    options = _parse()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        choose_environment(options.broker)
        with fresh_instance(keep=options.keep) as instance:
            _run(instance, options)
    except DemoError as error:
        print(f"\nThe demo failed. {error}", file=sys.stderr)
        print(f"Logs are in {os.environ.get('SAMPLE_PROJECT_DIR', '')}/logs.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sample_project.demo", description=__doc__)
    parser.add_argument(
        "--broker",
        choices=("database", "kafka"),
        default=os.environ.get("BROKER") or "database",
        help="kafka needs KAFKA_HOST, KAFKA_PORT and DATABASE_URL",
    )
    parser.add_argument("--up", action="store_true", help="leave the library running until Ctrl-C")
    parser.add_argument("--books", type=int, metavar="N", help="load only the first N books")
    parser.add_argument("--keep", action="store_true", help="keep database and logs afterwards")
    options = parser.parse_args()
    if options.books is not None and options.books < _FEWEST_BOOKS:
        parser.error(f"--books: the story needs at least {_FEWEST_BOOKS}")
    return options


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(instance: Instance, options: argparse.Namespace) -> None:
    # Only now: these modules need the settings of the instance.
    from sample_project.demo import report
    from sample_project.demo.story import Story

    began = time.monotonic()
    books = read_books()[: options.books]
    address = free_address()
    admin_url = f"http://{address}/admin/"
    print(f"A library on the {options.broker} broker in {instance.directory}")
    with Processes(address=address, logs=instance.logs) as processes:
        client = LibraryClient(address)
        wait_for("site started", lambda: (int(client.is_up()), 1), alive=processes.check)
        print(f"  Admin: {admin_url} - user {ADMIN}, password {instance.password}", flush=True)
        story = Story(books, client, alive=processes.check, admin_url=admin_url)
        print("Loading books", flush=True)
        story.load()
        print("Editing both sides", flush=True)
        story.edit()
        print("A receiver fails", flush=True)
        story.break_and_repair()
        report.print_table(repaired=story.repaired)
        faults = report.find_faults(books, repaired=story.repaired)
        if faults:
            raise DemoError("\n".join(["It does not add up:", *faults[:20]]))
        print(f"Both sides are equal and every count adds up ({time.monotonic() - began:.0f} s).")
        if options.up:
            print("Something fails again, and stays so for you to find", flush=True)
            story.leave_broken()
            print(f"The library stays up until Ctrl-C. Admin: {admin_url}")
            print(f"Login: user {ADMIN}, password {instance.password}")
            print(f"What is wrong, and whose fault is it? {admin_url}folio_events/dashboard/")
            print(f"Commands, in another terminal: {instance.manage} events_status", flush=True)
            _stay(processes)


def _stay(processes: Processes) -> None:
    try:
        while not threading.Event().wait(1):
            processes.check()
    except KeyboardInterrupt:
        print("\nStopped.")


if __name__ == "__main__":
    sys.exit(main())
