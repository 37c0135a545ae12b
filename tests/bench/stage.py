"""The real parts, the databases on them, and programs beside the one that measures."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.services import kafka, postgres
from tests.services.process import Process, private_folder

ROOT = Path(__file__).parents[2]
#: Kafka as it runs for users: the services of the tests keep Java's better compiler off.
_JAVA = "-XX:TieredStopAtLevel=4 -Xmx1g"


@contextlib.contextmanager
def parts() -> Iterator[list[str]]:
    """A private PostgreSQL and Kafka, with Django set up on them; yields what they are."""
    with contextlib.ExitStack() as ended:
        server = ended.enter_context(postgres(private=True))
        os.environ["_JAVA_OPTIONS"] = _JAVA
        cluster = ended.enter_context(kafka(private=True))
        java = cluster.brokers[0].process
        folder = ended.enter_context(private_folder("bench"))
        os.environ |= {
            "DATABASE_URL": server.url,
            "KAFKA_HOST": cluster.brokers[0].host,
            "KAFKA_PORT": str(cluster.brokers[0].port),
            "BENCH_KAFKA_PID": str(java.pid if java else ""),
            "BENCH_SQLITE": str(folder / "bench.sqlite3"),
            "BENCH_ENV": f"bench-{secrets.token_hex(4)}",
            "DJANGO_SETTINGS_MODULE": "tests.bench.settings",
        }
        _create_databases()
        # Commit times of both sides by one clock; takes a restart.
        _execute(server.url, "ALTER SYSTEM SET track_commit_timestamp = on")
        server.restart()
        _migrate()
        yield [server.description, cluster.description]
        _close()


def _execute(url: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(url.replace("postgres://", "postgresql://"), autocommit=True) as session:
        session.execute(statement)


def _create_databases() -> None:
    _execute(os.environ["DATABASE_URL"], "CREATE DATABASE bench_large")


def _migrate() -> None:
    import django
    from django.core.management import call_command

    django.setup()
    for alias in ("default", "large", "sqlite"):
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)


def _close() -> None:
    from django.db import connections

    from folio_events.brokers import get_broker

    get_broker().close()
    connections.close_all()


@contextlib.contextmanager
def program(*arguments: str, **settings: object) -> Iterator[None]:
    """Run ``python -m`` something beside us, with keys of FOLIO_EVENTS changed."""
    with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log") as log:
        process = Process(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, "BENCH_SETTINGS": json.dumps(settings)},
            log=Path(log.name),
        )
        process.start()
        try:
            yield
            if not process.running:
                raise RuntimeError(f"{arguments} ended: {Path(log.name).read_text()[-2000:]}")
        finally:
            process.kill()


@contextlib.contextmanager
def no_wake_up() -> Iterator[None]:
    """One factor at a time: what the wake-up costs has a figure of its own."""
    from django.conf import settings
    from django.test.utils import override_settings

    with override_settings(FOLIO_EVENTS={**settings.FOLIO_EVENTS, "WAKE_UP": False}):
        yield


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.02)


def execute(statement: str, *parameters: Any, using: str = "default") -> list[Any]:
    """Run one statement through Django's connection; returns its rows."""
    from django.db import connections

    with connections[using].cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def empty(*tables: str, using: str = "default") -> None:
    execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY", using=using)


OUTBOX = (
    "folio_events_outboxmessage",
    "folio_events_publication",
    "folio_events_withheldmessage",
    "folio_events_relaycursor",
    "folio_events_relaygap",
)
