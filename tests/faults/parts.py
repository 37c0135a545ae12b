"""The real parts that all scenarios of a run share, started when the first one asks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.faults.proxy import Proxy
from tests.services import KafkaCluster, PostgresServer, ServiceUnavailable, kafka, postgres
from tests.services.process import private_folder, reserve_port

ROOT = Path(__file__).resolve().parents[2]
_TEMPLATE = "faults_template"
#: A killed consumer's partitions go to others after two seconds instead of 45.
_QUICK = {"group.min.session.timeout.ms": "1000"}
#: Whoever comes may do everything, until a rule says otherwise.
_GUARDED = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
#: Megabytes of the broker with a small disk.
_DISK = 150


class Parts:
    """PostgreSQL, Kafka in three forms, and a folder for what processes leave behind."""

    def __init__(self) -> None:
        self._ended = contextlib.ExitStack()
        self.folder = self._ended.enter_context(private_folder("faults"))
        self._postgres: PostgresServer | None = None
        self._clusters: dict[str, tuple[KafkaCluster, contextlib.ExitStack]] = {}
        #: Before the broker "behind" it.
        self.proxy: Proxy | None = None
        #: Of the "small" broker.
        self.disk: Path | None = None

    def close(self) -> None:
        for form in list(self._clusters):
            self.drop_kafka(form)
        self._ended.close()

    @property
    def postgres(self) -> PostgresServer:
        if self._postgres is None:
            server = self._ended.enter_context(postgres(private=True))
            with psycopg.connect(server.url, autocommit=True) as session:
                # By the time of its commit the oracle tells which entry of a key was first.
                session.execute("ALTER SYSTEM SET track_commit_timestamp = on")
                session.execute("ALTER SYSTEM SET log_min_messages = 'fatal'")
                session.execute(f"CREATE DATABASE {_TEMPLATE}")
            server.restart()
            self._postgres = server
            self._migrate(server)
        return self._postgres

    def _migrate(self, server: PostgresServer) -> None:
        environment = {
            "DATABASE_URL": database_url(server, _TEMPLATE),
            "DJANGO_SETTINGS_MODULE": "tests.faults.settings",
            "FAULTS_ENV": "faults",
            "FAULTS_KAFKA": "nowhere:9",
            "FAULTS_FOLDER": str(self.folder),
            "PATH": "",
        }
        command = [
            sys.executable,
            "-m",
            "django",
            "migrate",
            "--run-syncdb",
            "-v0",
            "--skip-checks",
        ]
        subprocess.run(command, check=True, cwd=ROOT, env=environment)

    def create_database(self, name: str) -> str:
        """A new database with all tables; returns its URL."""
        with psycopg.connect(self.postgres.url, autocommit=True) as session:
            session.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return database_url(self.postgres, name)

    def kafka(self, form: str) -> KafkaCluster:
        """A cluster: "one" broker, "three", one "behind" the proxy, or one with a "small" disk.

        Raises:
            ServiceUnavailable: It cannot be had here.
        """
        if form not in self._clusters:
            with contextlib.ExitStack() as ended:
                cluster = self._start_kafka(form, ended)
                self._clusters[form] = cluster, ended.pop_all()
        return self._clusters[form][0]

    def _start_kafka(self, form: str, ended: contextlib.ExitStack) -> KafkaCluster:
        if form == "three":
            return ended.enter_context(kafka(brokers=3, private=True, settings=_QUICK))
        settings = {**_QUICK, **_GUARDED}
        if form == "small":
            self.disk = ended.enter_context(small_disk(_DISK))
            settings["log.dirs"] = str(self.disk / "data")
        if form != "behind":
            return ended.enter_context(kafka(private=True, settings=settings))
        port, mark = reserve_port()
        ended.callback(mark.close)
        self.proxy = ended.enter_context(Proxy(port))
        # Clients leave the bootstrap address at once: what they are sent to is the proxy.
        settings["advertised.listeners"] = f"PLAINTEXT://127.0.0.1:{port}"
        cluster = ended.enter_context(kafka(private=True, settings=settings))
        self.proxy.target = cluster.brokers[0].port
        return cluster

    def drop_kafka(self, form: str) -> None:
        """End a cluster that no further scenario needs."""
        if form in self._clusters:
            self._clusters.pop(form)[1].close()


@contextlib.contextmanager
def small_disk(megabytes: int, *, owner: str | None = None) -> Iterator[Path]:
    """A folder with so much space and no more, for the time of the block.

    Raises:
        ServiceUnavailable: It cannot be mounted here; names the command.
    """
    with private_folder("disk", owner=owner) as folder:
        small = folder / "small"
        small.mkdir()
        given = f"size={megabytes}m" + (f",uid={owner}" if owner else "")
        command = ["mount", "-t", "tmpfs", "-o", given, "tmpfs", str(small)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceUnavailable(f"{' '.join(command)}: {done.stderr.strip()}")
        try:
            yield small
        finally:
            subprocess.run(["umount", "-l", str(small)], check=False)


def fill(folder: Path) -> Path:
    """Leave no space where a folder lies; returns the file to be removed again."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65_536))
    return filler


def database_url(server: PostgresServer, name: str) -> str:
    return server.url.rpartition("/")[0] + f"/{name}"
