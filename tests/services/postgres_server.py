"""PostgreSQL: the one in DATABASE_URL, or a private cluster that is thrown away."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.services.packages import ServiceUnavailable, install, one_at_a_time
from tests.services.process import Process, failure, private_folder, reserve_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_LIMIT = 60.0  # seconds; a start after a kill replays the log first

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    # In files of the data folder, so that a killed server leaves nothing in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}
#: Tests kill a private server and count what is left: its durability is the real one. One that
#: all tests share is never killed, and need not wait for the disk when tables are emptied.
DURABLE, SHARED = {"fsync": "on"}, {"fsync": "off"}


@dataclass
class PostgresServer:
    """A PostgreSQL server; `process` is None when DATABASE_URL named it."""

    url: str
    version: str
    process: Process | None = None

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 5432

    @property
    def description(self) -> str:
        where = f"started here on port {self.port}" if self.process else "at DATABASE_URL"
        return f"PostgreSQL {self.version}{', ' if self.process else ' '}{where}"

    def start(self) -> None:
        """Starts it again on the same data and port; returns when it takes connections."""
        process = self._own()
        process.start()
        until = time.monotonic() + START_LIMIT
        while not self._ready(process):
            if not process.running or time.monotonic() > until:
                process.kill()
                raise failure("PostgreSQL did not start", _log(process))
            time.sleep(0.02)

    def stop(self) -> None:
        """A fast shutdown: sessions are cut, transactions rolled back, all is on disk."""
        self._own().stop(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the server and every backend."""
        self._own().kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _own(self) -> Process:
        if self.process is None:
            raise RuntimeError("DATABASE_URL's server is not ours; ask for postgres(private=True)")
        return self.process

    @staticmethod
    def _ready(process: Process) -> bool:
        # The server's own word, as pg_ctl reads it; an old file carries another pid.
        lines = _lock_file(process)
        return len(lines) > 7 and lines[0] == str(process.pid) and lines[7].strip() == "ready"


@contextlib.contextmanager
def postgres(*, private: bool = False) -> Iterator[PostgresServer]:
    """A real PostgreSQL for the time of the block.

    Args:
        private: Start one even if DATABASE_URL names one, because the caller stops or kills it,
            or measures it.

    Raises:
        ServiceUnavailable: There is none and none can be installed, or it does not start.
    """
    given = None if private else given_url(os.environ)
    if given:
        yield PostgresServer(given, _given_version(given))
        return
    programs = _programs()
    user = _user()
    with contextlib.ExitStack() as ended:
        folder = ended.enter_context(private_folder("postgres", owner=user))
        port, mark = reserve_port()
        ended.callback(mark.close)
        data = _initialize(programs, folder, user, port, DURABLE if private else SHARED)
        server = PostgresServer(
            f"postgres://postgres@127.0.0.1:{port}/postgres",
            _program_version(programs),
            Process(
                [str(programs / "postgres"), "-D", str(data)],
                folder=folder,
                cwd=data,
                env=_environment(),
                log=folder / "log",
                user=user,
                orphan_signal=signal.SIGQUIT,  # at once, but it gives back its shared memory
            ),
        )
        ended.callback(_end, server)
        server.start()
        yield server


def given_url(environ: Mapping[str, str]) -> str | None:
    """DATABASE_URL, if it names a PostgreSQL."""
    url = environ.get("DATABASE_URL", "")
    return url if url.startswith(("postgres://", "postgresql://", "psql://", "pgsql://")) else None


def _given_version(url: str) -> str:
    import environ
    import psycopg

    # Read as Django's settings read it, so that both mean the same server.
    parts = environ.Env.db_url_config(url)
    names = {"NAME": "dbname", "HOST": "host", "PORT": "port", "USER": "user"}
    names["PASSWORD"] = "password"
    options = {name: parts[key] for key, name in names.items() if parts.get(key)}
    try:
        with psycopg.connect(
            **options, **parts.get("OPTIONS", {}), connect_timeout=10
        ) as connection:
            version = connection.info.parameter_status("server_version") or "of unknown version"
    except psycopg.OperationalError as error:
        message = f"The PostgreSQL of DATABASE_URL does not answer: {error}"
        raise ServiceUnavailable(message) from error
    return version.split()[0]


def _programs() -> Path:
    """The folder with initdb and postgres; installs them where that is possible."""
    found = _find_programs()
    if found is None:
        with one_at_a_time("packages"):
            found = _find_programs()
            if found is None:
                install("PostgreSQL", ["postgresql"])
                found = _find_programs()
    if found is None:
        raise ServiceUnavailable("PostgreSQL was installed, but initdb cannot be found.")
    return found


def _find_programs() -> Path | None:
    candidates: list[Path] = []
    if on_path := shutil.which("initdb"):
        candidates.append(Path(on_path).resolve().parent)
    if pg_config := shutil.which("pg_config"):
        told = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        candidates.append(Path(told.stdout.strip()))
    # Debian keeps them off the PATH, one folder for each version.
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def _program_version(programs: Path) -> str:
    told = subprocess.run(
        [programs / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return told.stdout.split()[2]


def _user() -> str | None:
    """Whom to run it as: PostgreSQL refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


def _environment() -> dict[str, str]:
    # PGDATA, PGPORT and their like belong to somebody else's server.
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}


def _initialize(
    programs: Path, folder: Path, user: str | None, port: int, durability: Mapping[str, str]
) -> Path:
    data = folder / "data"
    log = folder / "log"
    initdb = Process(
        [
            *(str(programs / "initdb"), "--pgdata", str(data), "--username", "postgres"),
            # --no-sync is about initdb itself; the server syncs what it is given to keep.
            *("--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"),
        ],
        folder=folder,
        cwd=folder,
        env=_environment(),
        log=log,
        user=user,
    )
    if initdb.run() != 0:
        raise failure("initdb failed", log)
    # The path of a socket must be short; with a long TMPDIR there is TCP alone.
    sockets = str(folder) if len(str(folder)) < 80 else ""
    settings = {**SETTINGS, **durability, "port": str(port), "unix_socket_directories": sockets}
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    return data


def _end(server: PostgresServer) -> None:
    """The last stop, before the data folder goes."""
    process = server._own()
    process.stop(signal.SIGQUIT, timeout=10)
    # A killed server left its lock file, and in it the one segment that it could not give back.
    lines = _lock_file(process)
    if len(lines) > 6 and (segment := re.fullmatch(r"\s*\d+\s+(\d+)\s*", lines[6])):
        ctypes.CDLL(None).shmctl(int(segment[1]), 0, None)  # IPC_RMID


def _lock_file(process: Process) -> list[str]:
    try:
        return (process.cwd or Path()).joinpath("postmaster.pid").read_text().split("\n")
    except OSError:
        return []


def _log(process: Process) -> Path:
    return process.log or Path(os.devnull)
