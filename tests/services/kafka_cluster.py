"""Apache Kafka: the one at KAFKA_HOST, or private brokers (KRaft) that are thrown away."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.services.kafka_security import PROTOCOLS, Security
from tests.services.packages import ServiceUnavailable, cache_folder, install, one_at_a_time
from tests.services.process import Process, failure, private_folder, reserve_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION = "4.3.1"  # pom.xml names it too
START_LIMIT = 120.0  # seconds, for a machine that is busy with other things
STOP_LIMIT = 20.0  # seconds; the last brokers of a cluster may wait for a lost quorum for minutes

HERE = Path(__file__).parent
MACHINE = (
    # Small and quickly there. UsePerfData would leave a file behind when a broker is killed.
    *("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"),
    f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
)

# librdkafka says on stderr what every start looks like: a connection refused, a load in progress.
_silent = logging.getLogger(f"{__name__}.client")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


@dataclass
class KafkaBroker:
    """One broker, which is a controller as well."""

    id: int
    host: str
    port: int
    process: Process | None = None
    _seen: int = field(default=0, init=False, repr=False)  # length of the log before this start

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Starts it again on the same data and port; returns when it answers clients."""
        self.launch()
        self.await_ready()

    def stop(self) -> None:
        """A controlled shutdown: leadership moves to the other brokers first."""
        self._own().stop(signal.SIGTERM, STOP_LIMIT)

    def kill(self) -> None:
        """SIGKILL."""
        self._own().kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def launch(self) -> None:
        """Starts it and does not wait; several brokers need each other to come up."""
        process = self._own()
        self._seen = _log(process).stat().st_size if _log(process).exists() else 0
        process.start()

    def await_ready(self) -> None:
        process = self._own()
        until = time.monotonic() + START_LIMIT
        while not self._ready(process):
            if not process.running or time.monotonic() > until:
                process.kill()
                raise failure(f"Kafka broker {self.id} did not start", _log(process))
            time.sleep(0.1)

    def _ready(self, process: Process) -> bool:
        with _log(process).open("rb") as log:
            log.seek(self._seen)
            return b"Kafka Server started" in log.read() and self.id in _brokers(self.address)

    def _own(self) -> Process:
        if self.process is None:
            raise RuntimeError("KAFKA_HOST's broker is not ours; ask for kafka(private=True)")
        return self.process


@dataclass
class KafkaCluster:
    """One or more brokers; `version` is None for a cluster that KAFKA_HOST named."""

    brokers: list[KafkaBroker]
    version: str | None = None
    #: The listeners with TLS, if there are any.
    security: Security | None = None

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.address for broker in self.brokers)

    @property
    def description(self) -> str:
        if self.version is None:  # the protocol does not tell the version
            return f"Apache Kafka at KAFKA_HOST, {self.bootstrap}"
        ports = ", ".join(str(broker.port) for broker in self.brokers)
        return f"Apache Kafka {self.version}, started here on port {ports}"

    def start(self) -> None:
        """Starts all brokers again on the same data and ports."""
        for broker in self.brokers:
            broker.launch()
        for broker in self.brokers:
            broker.await_ready()

    def stop(self) -> None:
        for broker in self.brokers:
            broker._own().send(signal.SIGTERM)
        for broker in self.brokers:
            broker.stop()

    def kill(self) -> None:
        for broker in self.brokers:
            broker.kill()

    def restart(self) -> None:
        self.stop()
        self.start()


@contextlib.contextmanager
def kafka(
    brokers: int = 1,
    *,
    private: bool = False,
    settings: Mapping[str, str] | None = None,
    secured: bool = False,
) -> Iterator[KafkaCluster]:
    """A real Apache Kafka for the time of the block.

    Args:
        brokers: How many to start; more than one are always private.
        private: Start one even if KAFKA_HOST names one, because the caller stops or kills it.
        settings: Broker settings on top of those here; they make the cluster private too.
        secured: Have listeners with TLS as well, which makes the cluster private.

    Raises:
        ServiceUnavailable: There is none and none can be installed, or it does not start.
    """
    given = None if private or settings or secured or brokers > 1 else given_address(os.environ)
    if given:
        if not _brokers(":".join(map(str, given)), timeout=10):
            message = f"The Kafka of KAFKA_HOST, {given[0]}:{given[1]}, does not answer."
            raise ServiceUnavailable(message)
        yield KafkaCluster([KafkaBroker(0, *given)])
        return
    java = _java()
    jars = _jars()
    with contextlib.ExitStack() as ended:
        folder = ended.enter_context(private_folder("kafka"))
        ports: list[int] = []
        security = Security(folder) if secured else None
        listeners = ("PLAINTEXT", "CONTROLLER", *(PROTOCOLS if security else ()))
        for _ in range(len(listeners) * brokers):
            port, mark = reserve_port()
            ended.callback(mark.close)
            ports.append(port)
        command = [java, *MACHINE, f"-Djava.io.tmpdir={folder}", "-cp", f"{jars}/*"]
        ports_of = {
            name: ports[number * brokers : (number + 1) * brokers]
            for number, name in enumerate(listeners)
        }
        more: dict[str, object] = dict(settings or {})
        if security:
            security.make_keys()
            security.addresses = {
                name: ",".join(f"127.0.0.1:{port}" for port in ports_of[name]) for name in PROTOCOLS
            }
            more |= security.settings()
        _write_settings(folder, ports_of, more)
        _format(folder, command, brokers)
        cluster = KafkaCluster(
            [
                KafkaBroker(
                    number + 1,
                    "127.0.0.1",
                    ports[number],
                    Process(
                        [*command, "kafka.Kafka", f"{number + 1}.properties"],
                        folder=folder,
                        cwd=folder,
                        log=folder / f"{number + 1}.log",
                    ),
                )
                for number in range(brokers)
            ],
            VERSION,
            security,
        )
        ended.callback(cluster.kill)  # nobody needs the data: no reason to wait for a good end
        cluster.start()
        if security:
            security.add_user(cluster.bootstrap)
        yield cluster


def given_address(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """KAFKA_HOST and KAFKA_PORT, if they are set."""
    host = environ.get("KAFKA_HOST")
    return (host, int(environ.get("KAFKA_PORT") or 9092)) if host else None


def _write_settings(
    folder: Path, ports: Mapping[str, list[int]], more: Mapping[str, object]
) -> None:
    """Write each broker's settings; the ports are by listener, one for each broker."""
    copies = min(len(ports["CONTROLLER"]), 3)
    voters = [f"{n}@127.0.0.1:{port}" for n, port in enumerate(ports["CONTROLLER"], start=1)]
    protocols = {name: "PLAINTEXT" if name == "CONTROLLER" else name for name in ports}
    for number in range(1, len(voters) + 1):
        urls = {name: f"{name}://127.0.0.1:{own[number - 1]}" for name, own in ports.items()}
        settings = {
            "process.roles": "broker,controller",
            "node.id": number,
            "controller.quorum.voters": ",".join(voters),
            "listeners": ",".join(urls.values()),
            "advertised.listeners": ",".join(u for n, u in urls.items() if n != "CONTROLLER"),
            "listener.security.protocol.map": ",".join(f"{n}:{p}" for n, p in protocols.items()),
            "controller.listener.names": "CONTROLLER",
            "log.dirs": folder / f"{number}.data",
            # A topic that nobody created is an error to be seen, not a topic.
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            # Of three brokers one may be away, and an acknowledged record is still kept twice.
            "min.insync.replicas": max(1, copies - 1),
            "offsets.topic.num.partitions": 5,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.num.partitions": 5,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": max(1, copies - 1),
            "share.coordinator.state.topic.num.partitions": 5,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": max(1, copies - 1),
            "group.initial.rebalance.delay.ms": 0,
            # A killed broker may come back once its old session is over; by default after 9 s.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            **more,
        }
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        (folder / f"{number}.properties").write_text("".join(lines))


def _format(folder: Path, command: list[str], brokers: int) -> None:
    """Writes the cluster's id into the data folders, one Java for each at the same time."""
    cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
    runs = [
        Process(
            [
                *(*command, "kafka.tools.StorageTool", "format"),
                *(f"--cluster-id={cluster_id}", "-c", f"{number}.properties"),
            ],
            folder=folder,
            cwd=folder,
            log=folder / f"{number}.format.log",
        )
        for number in range(1, brokers + 1)
    ]
    with contextlib.ExitStack() as ended:
        for run in runs:
            ended.callback(run.kill)
            run.start()
        for run in runs:
            if run.wait() != 0:
                raise failure("Kafka's storage could not be formatted", _log(run))


def _brokers(address: str, timeout: float = 2) -> set[int]:
    """The brokers that the one at this address knows of; none while it does not answer."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout).close()
        client = AdminClient({"bootstrap.servers": address}, logger=_silent)
        return set(client.list_topics(timeout=timeout).brokers)
    except (OSError, KafkaException):
        return set()


def _java() -> str:
    """The Java to run it with; installs what is missing where that is possible."""
    if _missing():
        with one_at_a_time("packages"):
            if missing := _missing():
                install("Apache Kafka", missing)
    found = _find_java()
    if found is None:
        raise ServiceUnavailable("Java was installed, but the java command cannot be found.")
    return found


def _missing() -> list[str]:
    """The Debian packages without which Kafka can be neither run nor fetched."""
    packages = [] if _find_java() else ["default-jre-headless"]
    if not _cached_jars().exists() and not shutil.which("mvn"):
        packages.append("maven")
    return packages


def _cached_jars() -> Path:
    return cache_folder() / f"kafka-{VERSION}"


def _find_java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=f"{home}/bin") if home else None) or shutil.which("java")


def _jars() -> Path:
    """Kafka's jars, from Maven Central on the first run and from the cache ever after."""
    jars = _cached_jars()
    if jars.exists():
        return jars
    with one_at_a_time(f"kafka-{VERSION}"):
        if jars.exists():
            return jars
        sys.stderr.write(f"Fetching Apache Kafka {VERSION} from Maven Central (43 MB, once)\n")
        with private_folder("jars", within=jars.parent) as folder:
            fetched = folder / "jars"
            maven = Process(
                [
                    *("mvn", "-B", "-q", "-f", str(HERE / "pom.xml")),
                    *("dependency:copy-dependencies", "-DincludeScope=runtime"),
                    f"-DoutputDirectory={fetched}",
                ],
                folder=folder,
                log=folder / "log",
            )
            if maven.run() != 0:
                raise failure(f"Apache Kafka {VERSION} could not be fetched", _log(maven))
            # In one step, so that a half-filled folder is never taken for the whole.
            fetched.rename(jars)
    return jars


def _log(process: Process) -> Path:
    return process.log or Path(os.devnull)
