"""A streaming replica of a PostgreSQL server, which can take its place."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.services import PostgresServer
from tests.services.process import Process, failure, private_folder, reserve_port


@contextmanager
def replica(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A hot standby of a server of ours, for the time of the block.

    Raises:
        ServiceUnavailable: It could not be made, or does not start.
    """
    original = primary.process
    assert original is not None
    programs = Path(original.argv[0]).parent
    port, mark = reserve_port()
    with closing(mark), private_folder("replica", owner=original.user) as folder:
        data, log = folder / "data", folder / "log"
        copy = Process(
            [
                *(str(programs / "pg_basebackup"), "--pgdata", str(data), "--host", "127.0.0.1"),
                *("--port", str(primary.port), "--username", "postgres"),
                *("--write-recovery-conf", "--checkpoint", "fast", "--no-sync"),
            ],
            folder=folder,
            cwd=folder,
            env=original.env,
            log=log,
            user=original.user,
        )
        if copy.run() != 0:
            raise failure("pg_basebackup failed", log)
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"port = {port}\n")
        server = PostgresServer(
            f"postgres://postgres@127.0.0.1:{port}/postgres",
            primary.version,
            Process(
                [original.argv[0], "-D", str(data)],
                folder=folder,
                cwd=data,
                env=original.env,
                log=log,
                user=original.user,
                orphan_signal=signal.SIGQUIT,
            ),
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()
