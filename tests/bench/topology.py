"""What a topic for each tenant costs its clients and the broker, against a tenant collection."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from folio_events.brokers.base import Acknowledgement, TopicSpec
from folio_events.brokers.kafka import KafkaBroker
from folio_events.message import Message
from tests.bench.harness import Bench, Figure, Form, Sample, say
from tests.bench.stage import ROOT, wait_until

#: Logical topics, and partitions of each.
TOPICS, PARTITIONS = 5, 2
#: Seconds for one client.
_LIMIT = 300


def _memory() -> float:
    """Resident memory of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _broker() -> KafkaBroker:
    address = f"{os.environ['KAFKA_HOST']}:{os.environ['KAFKA_PORT']}"
    return KafkaBroker({"bootstrap.servers": address})


def _publish(broker: KafkaBroker, names: list[str]) -> None:
    messages = [Message(name, b"key", b"x" * 500, []) for name in names]
    reports = broker.publish(messages, timeout=_LIMIT)
    if not all(isinstance(report, Acknowledgement) for report in reports):
        raise RuntimeError("not all was acknowledged")


def _consume(broker: KafkaBroker, prefix: str, count: int) -> None:
    pattern = f"^{prefix}\\..*$"
    subscription = broker.subscribe(f"bench-{uuid.uuid4().hex}", [pattern], lambda _places: {})
    until = time.monotonic() + _LIMIT
    while count > 0:
        if time.monotonic() > until:
            raise TimeoutError(f"{count} records did not come")
        count -= len(subscription.poll(1000, 1.0))


def _client(kind: str, prefix: str) -> None:
    """What a process of its own does: be one client, and say what it takes."""
    broker = _broker()
    names = sorted(broker.list_topics(f"{prefix}."))
    before, start = _memory(), time.perf_counter()
    if kind == "producer":
        _publish(broker, names)
    else:
        _consume(broker, prefix, len(names))
    taken = {"MB": _memory() - before, "s": time.perf_counter() - start}
    sys.stdout.write(json.dumps(taken))
    sys.stdout.flush()
    os._exit(0)  # leaving a group of many partitions is not what is measured


def _form(name: str, kind: str, prefix: str) -> Sample:
    command = [sys.executable, "-m", "tests.bench.topology", kind, prefix]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=_LIMIT)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    taken = json.loads(done.stdout)
    return {f"{name} {kind}: {unit}": value for unit, value in taken.items()}


def _handles() -> int:
    """Files that the Kafka broker has open."""
    return len(list(Path(f"/proc/{os.environ['BENCH_KAFKA_PID']}/fd").iterdir()))


def _create(broker: KafkaBroker, names: list[str]) -> float:
    """Create topics with a record each; how many more files the broker has open."""
    before = _handles()
    for first in range(0, len(names), 100):
        specs = [TopicSpec(name, PARTITIONS, 1) for name in names[first : first + 100]]
        broker.create_topics(specs)
    _publish(broker, names)
    wanted = len(names) * PARTITIONS
    wait_until(lambda: _handles() - before >= wanted, "the opening of the files")
    return float(_handles() - before)


def run(bench: Bench) -> None:
    """Measure a consumer and a producer of all tenants' topics, and of a collection's."""
    tenants = bench.size(200, 10)
    env = f"bench-{uuid.uuid4().hex[:8]}"
    broker = _broker()
    segments = {"collection": ["ALL"], "tenants": [f"t{number}" for number in range(tenants)]}
    files: Sample = {}
    for topology, names in segments.items():
        topics = [
            f"{env}-{topology}.{segment}.bench.topic{number}"
            for segment in names
            for number in range(TOPICS)
        ]
        files[f"{topology}: files"] = _create(broker, topics)
        say(f"  {topology}: {len(topics)} topics, {len(topics) * PARTITIONS} partitions")

    def handles() -> Sample:
        return dict(files)

    forms: list[Form] = [handles]
    forms += [
        functools.partial(_form, topology, kind, f"{env}-{topology}")
        for topology in segments
        for kind in ("consumer", "producer")
    ]
    partitions = tenants * TOPICS * PARTITIONS
    what = f"{tenants} tenants' topics, {partitions} partitions"
    against = f"a tenant collection, {TOPICS * PARTITIONS} partitions"
    figures = [
        Figure(
            f"{what}: {text} of a {kind}",
            unit,
            f"tenants {kind}: {measure}",
            f"collection {kind}: {measure}",
            None,
            against,
        )
        for kind in ("consumer", "producer")
        for measure, text, unit in (("MB", "memory", "MB"), ("s", "time to the last record", "s"))
    ]
    figures.append(
        Figure(
            f"{what}: files that the broker has open",
            "files",
            "tenants: files",
            "collection: files",
            None,
            against,
        )
    )
    bench.measure(forms, figures)
    for topology in segments:
        broker.delete_topics(broker.list_topics(f"{env}-{topology}."))
    broker.close()


if __name__ == "__main__":
    _client(*sys.argv[1:])
