"""A drill: the README's project on PostgreSQL and Kafka, and a runbook that is followed in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.bare_project import PATIENCE, BareProject, shows
from tests.pages import Block, Command, commands, page
from tests.services import KafkaCluster

PROJECT, APP = "mysite", "library"
TOPIC, GROUP, RECEIVER = "folio.library.book", "library", "library.receivers.announce"

_SETTINGS = """
import environ

DATABASES["default"] = environ.Env().db("DATABASE_URL")
FOLIO_EVENTS |= {"CONSUMER_POLL_INTERVAL": 0.2, "POLL_FAILURE_SLEEP": 0.1, "RELAY_DEADLINE": 5}
# What takes Kafka's clients minutes, they notice in seconds.
FOLIO_EVENTS["BROKER"]["OPTIONS"] |= {
    "topic.metadata.refresh.interval.ms": 1000,
    "consumer": {"session.timeout.ms": 6000},
}
"""


def readme_blocks() -> list[Block]:
    """The files of the README's project, on Kafka."""
    blocks = page("README.md").blocks("python")
    return [b for b in blocks if b.path and b.when in (None, "Kafka") and "accession" not in b.path]


def build(folder: Path, database: str, kafka: KafkaCluster) -> BareProject:
    """Build the README's project and its tables."""
    project = BareProject(folder, DATABASE_URL=database)
    project.start(PROJECT, APP)
    for block in readme_blocks():
        if block.when == "Kafka":
            block = Block(block.language, block.text.replace("localhost:9092", kafka.bootstrap))
        if "OPTIONS" in block.text and "sqlite" in block.text.lower():
            block = Block(block.language, block.text.partition("\n\n# On SQLite")[0] + "\n")
        project.write(block)
    project.add(f"{PROJECT}/settings.py", _SETTINGS)
    project.run(Command(f"python manage.py makemigrations {APP}"))
    project.run(Command("python manage.py migrate"))
    return project


class Server:
    """The PostgreSQL server of the tests; makes databases from a template."""

    def __init__(self, url: str) -> None:
        self.url = url

    def of(self, name: str) -> str:
        """The address of a database."""
        parts = urlsplit(self.url)
        return parts._replace(path=f"/{name}").geturl()

    def run(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    @contextmanager
    def database(self, name: str, template: str = "template1") -> Iterator[str]:
        """A database for the time of the block."""
        self.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self.of(name)
        finally:
            self.run(f'DROP DATABASE "{name}" WITH (FORCE)')


class Drill(BareProject):
    """A copy of the project in which a runbook's blocks are typed in, section by section.

    Args:
        name: Of the runbook.
        folder: Where the copy goes.
        template: The project that is copied.
        database: Its own database.
        kafka: The cluster, for what nobody does by a command of the project.
    """

    def __init__(
        self, name: str, folder: Path, template: Path, database: str, kafka: KafkaCluster
    ) -> None:
        parts = urlsplit(database)
        super().__init__(
            folder,
            DATABASE_URL=database,
            PGHOST=parts.hostname or "",
            PGPORT=str(parts.port or 5432),
            PGUSER=parts.username or "",
            PGPASSWORD=parts.password or "",
            PGDATABASE=parts.path.removeprefix("/"),
        )
        shutil.copytree(template, folder, dirs_exist_ok=True)
        self.database = database
        self.kafka = kafka
        self.admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        self.page = page(f"docs/runbooks/{name}.md")
        self._left = self.page.sections("console", "text")

    def follow_page(self, section: str, blocks: int | None = None) -> None:
        """Do what the next blocks of a section say: run commands, find lines of logs.

        Args:
            section: Its heading.
            blocks: How many of those that are left; None: all.
        """
        left = self._left[section]
        assert left, f"{self.page.name} has no more blocks in {section!r}"
        todo = left[: len(left) if blocks is None else blocks]
        self._left[section] = left[len(todo) :]
        for block in todo:
            if block.language == "text":
                self.await_log(block.text.splitlines())
                continue
            for command in commands(block):
                self.run(command)

    def export(self, name: str, value: object) -> None:
        """Export a variable that the page names."""
        self._environment[name] = str(value)

    def restart(self, *names: str) -> None:
        """End the processes and start these."""
        assert set(self.stop()) <= {0}
        self.start_daemons(*names)

    def finish(self) -> None:
        """See that nothing of the page was left out, and that the processes end well."""
        assert not any(self._left.values()), f"not followed: {self._left}"
        assert set(self.stop()) <= {0}

    def start_daemons(self, *names: str) -> None:
        """Start management commands that go on."""
        for name in names:
            self.run(Command(f"python manage.py {name} &"))

    def await_log(self, lines: list[str]) -> None:
        """Wait until the daemons have written these lines; ``...`` stands for anything."""
        deadline = time.monotonic() + PATIENCE
        while True:
            logs = [path.read_text() for path in sorted(self.directory.glob("daemon-*.log"))]
            if any(shows(log, lines) for log in logs):
                return
            said = "\n---\n".join(logs)
            assert time.monotonic() < deadline, f"no log has\n{lines}\nbut\n{said}"
            time.sleep(0.05)

    def shell(self, code: str, *shown: str) -> str:
        """Run Python in the project."""
        return self.run(Command(f'python manage.py shell -v 0 -c "{code}"', list(shown)))

    def add_books(self, *titles: str) -> None:
        listed = "; ".join(f"Book.objects.create(title='{title}')" for title in titles)
        self.shell(f"from library.models import Book; {listed}")

    def ask(self, statement: str) -> list[Any]:
        """The rows that the drill's database answers, single columns as values."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            rows = connection.execute(statement).fetchall()
        return [row[0] if len(row) == 1 else row for row in rows]

    def await_arrivals(self, *titles: str) -> None:
        """Wait until the receiver has taken exactly these books."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.arrivals()) != sorted(titles):
            assert time.monotonic() < deadline, f"arrived: {found}"
            self._check_daemons()
            time.sleep(0.05)

    def arrivals(self) -> list[str]:
        return self.ask('SELECT title FROM library_arrival ORDER BY title COLLATE "C"')

    def await_rows(self, table: str, count: int) -> None:
        """Wait until a table has as many rows."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.ask(f"SELECT count(*) FROM {table}")) != [count]:
            assert time.monotonic() < deadline, f"{table} has {found}"
            self._check_daemons()
            time.sleep(0.05)

    def await_end(self) -> None:
        """Wait until one of the daemons has ended with an error, and count it out."""
        deadline = time.monotonic() + PATIENCE
        while not (ended := [daemon for daemon in self._daemons if daemon.poll() == 1]):
            assert time.monotonic() < deadline, "no daemon has ended"
            time.sleep(0.05)
        self._daemons.remove(ended[0])

    def retry_until_arrived(self, *titles: str) -> None:
        """Make retry passes until the receiver has taken exactly these books."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.arrivals()) != sorted(titles):
            assert time.monotonic() < deadline, f"arrived: {found}"
            self.run(Command("python manage.py retry_deliveries"))

    @contextmanager
    def session(self, name: str) -> Iterator[psycopg.Connection]:
        """Another session of the drill's database; what it has not committed is rolled back."""
        connection = psycopg.connect(self.database, application_name=name)
        try:
            yield connection
        finally:
            connection.close()

    def one_partition(self) -> None:
        """Have the topic in one piece, so that all events are behind each other."""
        for made in self.admin.create_topics([NewTopic(TOPIC, 1, 1)]).values():
            made.result(30)

    def deploy(self, old: str, new: str, path: str = "library/receivers.py") -> None:
        """Change a file of the project; processes that run have the old one."""
        file = self.directory / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def produce(self, value: bytes, key: bytes | None = None) -> None:
        """Put a foreign record into the topic."""
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap})
        producer.produce(TOPIC, value, key)
        assert producer.flush(30) == 0

    def delete_topic(self) -> None:
        for deleted in self.admin.delete_topics([TOPIC]).values():
            deleted.result(30)
        self._await_topics(set())

    def clean_up(self) -> None:
        """Leave Kafka as it was found."""
        self.stop()
        topics = self._topics()
        if topics:
            for deleted in self.admin.delete_topics(list(topics)).values():
                deleted.result(30)
        self._await_topics(set())
        deadline = time.monotonic() + PATIENCE
        while groups := self.admin.list_consumer_groups().result().valid:
            for gone in self.admin.delete_consumer_groups([g.group_id for g in groups]).values():
                # The member of a process that ended badly is there until its session ends.
                if gone.exception(30) is not None:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)

    def _topics(self) -> set[str]:
        known = self.admin.list_topics(timeout=30).topics
        return {name for name in known if not name.startswith("__")}

    def _await_topics(self, wanted: set[str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while self._topics() != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.05)
