"""A fresh instance: a directory, a migrated database, an admin user."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sample_project.demo.collection import TENANTS
from sample_project.demo.processes import PROJECT_DIR
from sample_project.demo.progress import DemoError

ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """Where a demo keeps its state."""

    directory: Path
    #: Of the admin user.
    password: str

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def manage(self) -> Path:
        """A manage.py that any shell can call: it brings the environment of this instance."""
        return self.directory / "manage"


def choose_environment(broker: str) -> None:
    """Set the variables that the settings and all processes read.

    Args:
        broker: "database" or "kafka".

    Raises:
        DemoError: Kafka was asked for, and it or PostgreSQL is not named.
    """
    run = secrets.token_hex(3)
    if broker == "kafka":
        missing = [name for name in ("KAFKA_HOST", "DATABASE_URL") if not os.environ.get(name)]
        if missing:
            raise DemoError(
                f"The demo on Kafka needs {' and '.join(missing)}: KAFKA_HOST and KAFKA_PORT name a broker, "
                "DATABASE_URL an empty PostgreSQL database. 'make demo BROKER=kafka' starts both."
            )
        # Topics and group of this run alone, whatever else lives on the broker.
        os.environ["ENV"] = f"demo-{run}"
        os.environ["SAMPLE_PROJECT_GROUP"] = f"demo-{run}"
    else:
        # Whatever database and broker the shell names, the demo leaves them alone.
        for name in ("KAFKA_HOST", "DATABASE_URL", "CELERY_BROKER_URL"):
            os.environ.pop(name, None)
    os.environ.setdefault("SAMPLE_PROJECT_DIR", str(PROJECT_DIR / ".demo" / run))
    os.environ["DJANGO_SETTINGS_MODULE"] = "sample_project.settings"
    os.environ["SECRET_KEY"] = secrets.token_urlsafe(50)


@contextmanager
def fresh_instance(*, keep: bool) -> Iterator[Instance]:
    """Build an instance in SAMPLE_PROJECT_DIR; remove it if the block succeeds.

    Raises:
        DemoError: The directory or the database is not empty.
    """
    directory = Path(os.environ["SAMPLE_PROJECT_DIR"])
    if directory.exists() and any(directory.iterdir()):
        raise DemoError(f"{directory} is not empty: name another SAMPLE_PROJECT_DIR, or remove it.")
    instance = Instance(directory=directory, password=secrets.token_urlsafe(9))
    instance.logs.mkdir(parents=True)
    _prepare(instance)
    _write_manage(instance.manage)
    yield instance
    if not keep:
        shutil.rmtree(directory)


def _prepare(instance: Instance) -> None:
    import django
    from django.core.management import call_command

    django.setup()
    # The processes log; the demo itself shows what it does.
    logging.getLogger().setLevel(logging.WARNING)
    with (instance.logs / "migrate.log").open("w") as log:
        call_command("migrate", interactive=False, verbosity=1, stdout=log)
        # As when FOLIO enables a module for a tenant; a consumer finds topics that come later
        # only when it next asks the broker.
        call_command("create_topics", tenant=list(TENANTS), stdout=log)

    from django.contrib.auth.models import User

    from folio_events.models import OutboxMessage

    if OutboxMessage.objects.exists() or User.objects.exists():
        raise DemoError("The database is not empty: name a fresh one in DATABASE_URL.")
    User.objects.create_superuser(ADMIN, password=instance.password)


def _write_manage(script: Path) -> None:
    own = ("SAMPLE_PROJECT_", "KAFKA_", "DATABASE_URL", "CELERY_BROKER_URL", "SECRET_KEY")
    lines = ["#!/bin/sh", "unset KAFKA_HOST DATABASE_URL CELERY_BROKER_URL"]
    lines.append("export DJANGO_SETTINGS_MODULE=sample_project.settings")
    lines += [
        f"export {name}={shlex.quote(value)}"
        for name, value in os.environ.items()
        if name == "ENV" or name.startswith(own)
    ]
    lines.append(f'exec {shlex.join([sys.executable, str(PROJECT_DIR / "manage.py")])} "$@"')
    # Only the user may read it: it holds what the environment holds.
    with os.fdopen(os.open(script, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "w") as file:
        file.write("\n".join(lines) + "\n")


def free_address() -> str:
    """An address of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
