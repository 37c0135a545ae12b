"""The real parts that all scenarios of a run share, started when the first one asks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psycopg

from tests.faults.proxy import Proxy
from tests.services import KafkaCluster, PostgresServer, kafka, postgres
from tests.services.process import private_folder, reserve_port

ROOT = Path(__file__).resolve().parents[2]
_TEMPLATE = "faults_template"
#: A killed consumer's partitions go to others after two seconds instead of 45.
_QUICK = {"group.min.session.timeout.ms": "1000"}


class Parts:
    """PostgreSQL, Kafka in three forms, and a folder for what processes leave behind."""

    def __init__(self) -> None:
        self._ended = contextlib.ExitStack()
        self.folder = self._ended.enter_context(private_folder("faults"))
        self._postgres: PostgresServer | None = None
        self._clusters: dict[str, tuple[KafkaCluster, contextlib.ExitStack]] = {}
        self.proxy: Proxy | None = None

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
        """A cluster: "one" broker, "three", or one "behind" the proxy."""
        if form not in self._clusters:
            ended = contextlib.ExitStack()
            if form == "behind":
                port, mark = reserve_port()
                ended.callback(mark.close)
                self.proxy = ended.enter_context(Proxy(port))
                # Clients leave the bootstrap address at once: what they are sent to is the proxy.
                settings = {**_QUICK, "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}"}
                cluster = ended.enter_context(kafka(private=True, settings=settings))
                self.proxy.target = cluster.brokers[0].port
            else:
                count = 3 if form == "three" else 1
                cluster = ended.enter_context(kafka(brokers=count, private=True, settings=_QUICK))
            self._clusters[form] = cluster, ended
        return self._clusters[form][0]

    def drop_kafka(self, form: str) -> None:
        """End a cluster that no further scenario needs."""
        if form in self._clusters:
            self._clusters.pop(form)[1].close()


def database_url(server: PostgresServer, name: str) -> str:
    return server.url.rpartition("/")[0] + f"/{name}"
