"""The stage of one scenario: a database, topics, processes, and what is seen of them."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from tests.faults.parts import ROOT, Parts
from tests.faults.proxy import Proxy
from tests.services.process import Process, reserve_port

ACCOUNTS = 24
TOPICS = ("bank.account", "bank.entry", "bank.notice")
PARTITIONS = 4


#: For the clients of the harness itself: that brokers are away is what it is about.
silent = logging.getLogger(f"{__name__}.client")
silent.addHandler(logging.NullHandler())
silent.propagate = False


class ScenarioError(Exception):
    """A scenario did not come about as it was meant: it proves nothing."""


@dataclass
class Actor:
    """A process of the scenario."""

    role: str
    process: Process
    log: Path
    #: Whether it is started again when it ends by itself, as a supervisor would.
    supervised: bool = False
    #: How often it ended without being told to.
    ends: int = 0
    stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.running

    def crash(self) -> None:
        """SIGKILL; a supervised one is started again."""
        self.process.kill()

    def kill(self) -> None:
        """SIGKILL, and nobody starts it again."""
        with self._lock:
            self.stopped = True
        self.process.kill()

    def stop(self, timeout: float = 30) -> float:
        """SIGTERM; returns the seconds until it had ended."""
        with self._lock:
            self.stopped = True
        began = time.monotonic()
        if self.frozen:
            self.thaw()
        self.process.stop(signal.SIGTERM, timeout)
        return time.monotonic() - began

    def revive(self) -> None:
        """Start it again if it ended and is supervised."""
        with self._lock:
            if self.supervised and not self.stopped and not self.running:
                self.ends += 1
                self.process.start()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @property
    def frozen(self) -> bool:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def said(self, words: str) -> bool:
        return self.count(words) > 0

    def count(self, words: str) -> int:
        """How often it said so."""
        return self.log.read_text(errors="replace").count(words) if self.log.exists() else 0

    @property
    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-500:] if self.log.exists() else ""


@dataclass
class Stage:
    """Where a scenario plays.

    Attributes:
        size: Committed events that it needs.
        chance: The seeded schedule.
    """

    parts: Parts
    name: str
    size: int
    seed: int
    kafka_form: str = "one"
    defect: str = ""
    patience: float = 90.0
    chance: random.Random = field(init=False)
    actors: list[Actor] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    #: Offsets that no receiver will ever reach, and other things that are not to be waited for.
    forgiven: set[str] = field(default_factory=set)
    #: Called with the evidence once all is settled.
    checks: list[Callable[[Any], None]] = field(default_factory=list)
    #: What the scenario has set up; taken down when all is judged and its processes are gone.
    ended: ExitStack = field(default_factory=ExitStack)
    recovery_s: float = 0.0

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed}/{self.name}")
        self.id = f"f{uuid.uuid4().hex[:10]}"
        self.folder = self.parts.folder / self.id
        self.folder.mkdir()
        self.url = self.parts.create_database(self.id)
        #: What the processes connect to: the same, or a proxy or pooler before it.
        self.front_url = self.url
        self.kafka = self.parts.kafka(self.kafka_form)
        self._session: psycopg.Connection[Any] | None = None
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._closed = threading.Event()
        self.execute(
            "INSERT INTO bank_account (number, note) SELECT 0, '' FROM generate_series(1, %s)",
            ACCOUNTS,
        )
        self.execute("INSERT INTO bank_till (total) VALUES (0), (0)")
        self.admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap}, logger=silent)
        self._supervisor.start()

    # The database

    def execute(self, statement: str, *parameters: object) -> Any:
        """Run a statement as somebody outside; returns the first column of the first row."""
        rows = self.rows(statement, *parameters)
        return rows[0][0] if rows else None

    def rows(self, statement: str, *parameters: object) -> list[Any]:
        """Run a statement as somebody outside, also across a restart of the server."""
        left = 3
        while True:
            left -= 1
            try:
                if self._session is None:
                    self._session = psycopg.connect(self.url, autocommit=True)
                cursor = self._session.execute(statement, parameters or None)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                self._session = None
                if not left:
                    raise
                time.sleep(0.5)

    def move(self, url: str) -> None:
        """Look at the database of another server from now on."""
        self.url, self._session = url, None

    def committed(self) -> int:
        """How many changes have been committed."""
        return int(
            self.execute(
                "SELECT (SELECT coalesce(sum(number), 0) FROM bank_account)"
                " + (SELECT count(*) FROM bank_entry)"
            )
        )

    def terminate_backends(self, role: str) -> int:
        """``pg_terminate_backend`` for the connections of a role; returns how many."""
        return int(
            self.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = %s",
                role,
            )
        )

    # Topics

    def topic(self, name: str) -> str:
        return f"{self.id}.{name}"

    def create_topics(
        self, names: tuple[str, ...] = TOPICS, config: Mapping[str, str] | None = None
    ) -> None:
        new = [NewTopic(self.topic(name), PARTITIONS, config=dict(config or {})) for name in names]
        for future in self.admin.create_topics(new).values():
            try:
                future.result(30)
            except KafkaException as error:
                # A relay or consumer may have been quicker.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise

    # Processes

    def start(
        self,
        role: str,
        *arguments: str,
        program: tuple[str, ...] = ("-m", "django"),
        failpoints: str = "",
        supervised: bool = False,
    ) -> Actor:
        """Start a process; it writes to a log of its own in the scenario's folder."""
        log = self.folder / f"{len(self.actors)}-{role}.log"
        process = Process(
            [sys.executable, *program, *arguments],
            folder=self.parts.folder,
            cwd=ROOT,
            env={**self._environment(role, failpoints), **self.environment},
            log=log,
        )
        actor = Actor(role, process, log, supervised)
        process.start()
        self.actors.append(actor)
        return actor

    def _environment(self, role: str, failpoints: str) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": self.front_url,
            "DJANGO_SETTINGS_MODULE": "tests.faults.settings",
            "FAULTS_ENV": self.id,
            "FAULTS_ROLE": role,
            "FAULTS_FOLDER": str(self.folder),
            "FAULTS_KAFKA": self.kafka.bootstrap,
            "FAULTS_DEFECT": self.defect,
            "FAULTS_FAILPOINTS": failpoints,
            "FAULTS_SETTINGS": json.dumps(self.settings),
            "FAULTS_OPTIONS": json.dumps(self.options),
        }

    def relay(self, failpoints: str = "", *, supervised: bool = True) -> Actor:
        return self.start("relay", "relay_events", failpoints=failpoints, supervised=supervised)

    def consumer(self, failpoints: str = "", *, supervised: bool = True) -> Actor:
        return self.start(
            "consumer", "consume_events", failpoints=failpoints, supervised=supervised
        )

    def repeat(self, command: str, every: float = 0.3) -> Actor:
        return self.start(command, "repeat", command, f"--every={every}", supervised=True)

    def writer(self, **options: float) -> Actor:
        given = [f"--{name}={value}" for name, value in options.items()]
        seed = self.chance.randrange(2**32)
        return self.start("writer", "write_changes", f"--seed={seed}", *given, supervised=True)

    def open(
        self, *, relays: int = 1, consumers: int = 1, writers: int = 1, retries: bool = False
    ) -> None:
        """The usual cast, at work: returns when the first changes are committed."""
        self.create_topics()
        for _ in range(writers):
            self.writer()
        for _ in range(relays):
            self.relay()
        for _ in range(consumers):
            self.consumer()
        if retries:
            self.repeat("retry_deliveries")
        if writers:
            self.await_(lambda: self.committed() > 20, "the first changes")

    def cast(self, role: str) -> list[Actor]:
        return [actor for actor in self.actors if actor.role == role and not actor.stopped]

    def one(self, role: str) -> Actor:
        return self.cast(role)[0]

    def command(self, *arguments: str) -> str:
        """Run a command to its end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            cwd=ROOT,
            env={**self._environment("command", ""), **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise ScenarioError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def _supervise(self) -> None:
        while not self._closed.wait(0.2):
            for actor in list(self.actors):
                actor.revive()

    # Time

    def pause(self, least: float, most: float) -> None:
        """Let things run for a while that the schedule chooses."""
        time.sleep(self.chance.uniform(least, most))

    def await_(self, condition: Callable[[], object], what: str, within: float = 120.0) -> float:
        """Wait until something is so; returns the seconds that it took.

        Raises:
            ScenarioError: It has not come about in time.
        """
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > within:
                raise ScenarioError(f"{what} did not come about within {within:.0f} s")
            time.sleep(0.1)
        return time.monotonic() - began

    def await_end(self, actor: Actor, why: str) -> None:
        """Wait until a process has killed itself."""
        self.await_(lambda: not actor.running, why)
        actor.stopped = True
        if (status := actor.process.wait()) != 128 + signal.SIGKILL:
            raise ScenarioError(f"instead of {why}, it ended with {status}: {actor.last_words}")

    def await_freeze(self, actor: Actor, why: str) -> None:
        """Wait until a process has stopped itself by SIGSTOP."""
        self.await_(lambda: actor.frozen or not actor.running, why)
        if not actor.frozen:
            raise ScenarioError(f"instead of {why}, it ended: {actor.last_words}")

    def await_word(self, actor: Actor, words: str) -> None:
        """Wait until a process has logged something."""
        self.await_(lambda: actor.said(words), f"a {actor.role}'s word {words!r}")

    def await_published(self, more: int) -> None:
        """Wait until so many more rows are recorded as published."""
        before = self.published()
        self.await_(lambda: self.published() >= before + more, f"{more} publications")

    def write_until(self, share: float = 1.0) -> None:
        """Let the writers go on until so much of the size is committed."""
        wanted = self.size * share
        self.await_(lambda: self.committed() >= wanted, f"{wanted:.0f} changes", 240)

    def stop_writers(self) -> None:
        for writer in self.cast("writer"):
            writer.stop()

    @contextmanager
    def held(self, place: str) -> Iterator[None]:
        """Have a process wait at a place that holds; the block runs while one waits there."""
        hold, held = self.folder / f"hold-{place}", self.folder / f"held-{place}"
        held.unlink(missing_ok=True)
        hold.touch()
        try:
            self.await_(held.exists, f"somebody at {place}")
            yield
        finally:
            hold.unlink()

    def behind_proxy(self) -> Proxy:
        """Lead all processes to the database through a proxy."""
        port, mark = reserve_port()
        self.ended.callback(mark.close)
        proxy = self.ended.enter_context(Proxy(port, self.parts.postgres.port))
        self.front_url = f"postgres://postgres@127.0.0.1:{port}/{self.id}"
        return proxy

    def published(self) -> int:
        """How many rows the relay has recorded as published."""
        return int(self.execute("SELECT count(*) FROM folio_events_publication"))

    def relay_is_done(self) -> bool:
        """Whether the relay has passed all that is visible in the outbox."""
        return bool(
            self.execute(
                "SELECT coalesce((SELECT max(position) FROM folio_events_relaycursor), 0)"
                " >= coalesce(max(id), 0) FROM folio_events_outboxmessage"
            )
        )

    def effects(self) -> int:
        return int(self.execute("SELECT count(*) FROM bank_effect"))

    def happened(self, count: int, what: str, least: int = 1) -> None:
        """Note how often the fault struck; struck too seldom, the scenario proves nothing."""
        self.remarks.append(f"{count:,} {what}")
        if count < least:
            self.failures.append(f"{count:,} {what}: at least {least:,} are needed")

    def expect(self, holds: object, what: str) -> None:
        """Note a promise of this scenario's own that was not kept."""
        if not holds:
            self.failures.append(what)

    def heal(self) -> None:
        """The receivers' troubles are over."""
        (self.folder / "healed").touch()

    def dump_stacks(self) -> None:
        """Have each process write to its log where it is."""
        for actor in self.actors:
            if not actor.stopped and actor.running:
                os.kill(actor.pid, signal.SIGUSR2)
        time.sleep(0.5)

    def close(self) -> None:
        """End all processes and forget the database."""
        self._closed.set()
        self._supervisor.join()
        enders = [threading.Thread(target=actor.kill) for actor in self.actors]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()
        self.ended.close()
        if self._session is not None:
            self._session.close()
        if keep := os.environ.get("FAULTS_KEEP"):
            shutil.copytree(
                self.folder, Path(keep) / self.name.replace(" ", "-"), dirs_exist_ok=True
            )
        with psycopg.connect(self.parts.postgres.url, autocommit=True) as session:
            session.execute(f"DROP DATABASE {self.id} WITH (FORCE)")
        shutil.rmtree(self.folder, ignore_errors=True)
