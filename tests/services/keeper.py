"""Keeps a promise after a death: what was started ends, what was made is removed.

Run as a script, with the standard library only, in two forms:

    keeper.py PARENT run [options] -- ARGV...    runs ARGV, and ends all of it when PARENT is gone
    keeper.py PARENT remove FOLDER               removes FOLDER when PARENT is gone

A parent that was killed cannot clean up, so each keeper is a process of its own. It asks who its
parent is instead of using PR_SET_PDEATHSIG, which fires already when the *thread* that started the
process ends; a test may well start a broker from a thread.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LOOK = 0.2  # seconds between two looks at the parent
GRACE = 5.0  # seconds that an orphaned server has to end by itself
LIMIT = 30.0  # seconds after which the rest is left to the operating system

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
KILL = signal.SIGUSR1  # asks the keeper to kill everything it keeps

LINUX = sys.platform == "linux"
SELF = str(Path(__file__).resolve())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("parent", type=int)
    roles = parser.add_subparsers(dest="role", required=True)
    run = roles.add_parser("run")
    run.add_argument("--report", type=int, required=True, help="descriptor that gets the pid")
    run.add_argument("--user", help="run as this user")
    run.add_argument("--signal", default="SIGKILL", help="what an orphaned server gets first")
    run.add_argument("--foreground", action="store_true", help="stay on the parent's terminal")
    remove = roles.add_parser("remove")
    remove.add_argument("folder", type=Path)
    arguments, argv = split_command(sys.argv[1:])
    given = parser.parse_args(arguments)
    if given.role == "remove":
        return remove_folder(given.parent, given.folder)
    return run_process(given, argv)


def split_command(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our own arguments and, after the first `--`, the command with all of its own."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def run_process(given: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command until it ends or its owner does; returns its exit status."""
    group = os.getpgrp()
    # Away from the signals meant for the command: Ctrl-C, or a kill of the whole group.
    os.setpgid(0, 0) if given.foreground else os.setsid()
    if LINUX:  # orphans of the command become ours, so that none escapes
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)

    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    asked: list[int] = []
    for number in (*FORWARDED, KILL, signal.SIGCHLD):
        signal.signal(number, lambda number, _frame: asked.append(number))

    keeper = os.getpid()

    def before_exec() -> None:
        if LINUX:  # here it is safe: this process has one thread
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != keeper:
                os._exit(1)

    try:
        child = subprocess.Popen(
            argv,
            preexec_fn=before_exec,
            process_group=group if given.foreground else None,
            start_new_session=not given.foreground,
            user=given.user,
            group=primary_group(given.user),
            extra_groups=[] if given.user else None,
        )
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        return 127
    os.write(given.report, b"%d\n" % child.pid)
    os.close(given.report)

    status = None
    deadline = None
    while status is None:
        select.select([woken], [], [], LOOK)
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 512)
        status = reap().get(child.pid)
        while asked and status is None:
            wanted = asked.pop(0)
            if wanted == KILL:
                deadline = 0.0
            elif wanted != signal.SIGCHLD:
                os.kill(child.pid, wanted)
        if deadline is None and os.getppid() != given.parent:
            os.kill(child.pid, getattr(signal, given.signal))
            deadline = time.monotonic() + GRACE
        if status is None and deadline is not None and time.monotonic() > deadline:
            os.kill(child.pid, signal.SIGKILL)
            deadline = time.monotonic() + LIMIT
    end_descendants()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def primary_group(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid


def reap() -> dict[int, int]:
    """The statuses of the children, own and inherited, that have ended."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def end_descendants() -> None:
    """Kills what the command left behind, and waits for the keepers among it.

    They see that their owner is gone, end what they keep in its own way, and go.
    """
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        killed, keepers = descendants(os.getpid())
        if not killed and not keepers:
            return
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.02)


def descendants(ancestor: int) -> tuple[list[int], list[int]]:
    """The processes below one, without those that a keeper looks after, and these keepers."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid ...; the name may hold blanks and brackets
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    keepers: list[int] = []
    todo = list(children.get(ancestor, []))
    while todo:
        pid = todo.pop()
        if is_keeper(pid):
            keepers.append(pid)
        else:
            found.append(pid)
            todo += children.get(pid, [])
    return found, keepers


def is_keeper(pid: int) -> bool:
    try:
        return SELF.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def remove_folder(parent: int, folder: Path) -> int:
    """Waits for the owner's death, then for the keepers of its processes, then removes."""
    os.setsid()
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == parent:
        time.sleep(LOOK)
    # Each keeper holds the lock as long as something of it runs.
    with contextlib.suppress(OSError), (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
