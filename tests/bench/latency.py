"""From a writer's commit to a receiver's commit, through real processes."""

from __future__ import annotations

import functools
import logging
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from django.conf import settings

from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.topics import wire_topic
from tests.bench.harness import Bench, Figure, Goal, Sample, percentile
from tests.bench.receivers import LATENCY_GROUP
from tests.bench.stage import OUTBOX, empty, execute, program, wait_until
from tests.bench.writers import Writers, writers

logger = logging.getLogger("tests.bench")

TOPIC, PARTITIONS = "bench.item", 6
#: Events a second.
RATES = (50, 500)
CLIENTS = 4

# Both commits by PostgreSQL's own clock.
_LATENCIES = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(e.xmin) - pg_xact_commit_timestamp(o.xmin))
       * 1000
FROM bench_effect e JOIN folio_events_outboxmessage o ON o.event_id = e.event_id
WHERE o.id > %s
"""
_ARRIVED = """
SELECT count(*) FROM bench_effect e JOIN folio_events_outboxmessage o ON o.event_id = e.event_id
WHERE o.id > %s
"""

# The same with the moment at which the consumer had the event, in milliseconds.
_MOMENTS = """
SELECT e.event_id::text,
       extract(epoch FROM pg_xact_commit_timestamp(o.xmin)) * 1000,
       extract(epoch FROM i.handled_at) * 1000,
       extract(epoch FROM pg_xact_commit_timestamp(e.xmin)) * 1000
FROM bench_effect e JOIN folio_events_outboxmessage o ON o.event_id = e.event_id
JOIN folio_events_inboxentry i ON i.event_id = e.event_id
WHERE o.id > %s
"""


@contextmanager
def _relay(way: str) -> Iterator[None]:
    arguments = ["tests.bench.beat"] if way == "beat" else ["django", "relay_events"]
    with program(*arguments, WAKE_UP=way == "wake-up"):
        yield


def _one(column: str, table: str) -> int:
    return int(execute(f"SELECT coalesce({column}, 0) FROM {table}")[0][0])


def _delays(clients: Writers, rate: int, seconds: float, *, wake_up: bool) -> list[float]:
    start = _one("max(id)", "folio_events_outboxmessage")
    written = clients.write(seconds, rate=rate, wake_up=wake_up)
    wait_until(lambda: execute(_ARRIVED, start)[0][0] == written, "all deliveries")
    return [float(delay) for (delay,) in execute(_LATENCIES, start)]


class _Log:
    """When Kafka's client was handed each message: the record's own timestamp."""

    def __init__(self) -> None:
        self._consumer = Consumer(
            {**settings.FOLIO_EVENTS["BROKER"]["OPTIONS"], "group.id": "bench-log"}, logger=logger
        )
        topic = wire_topic(TOPIC, "")
        self._places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        self._ends = dict.fromkeys(range(PARTITIONS), 0)

    def _high(self) -> dict[int, int]:
        return {p.partition: self._consumer.get_watermark_offsets(p)[1] for p in self._places}

    def since_last(self) -> dict[str, float]:
        """Milliseconds since 1970 by event id, of the messages that came since the last call."""
        starts, self._ends = self._ends, self._high()
        self._consumer.assign(
            [TopicPartition(p.topic, p.partition, starts[p.partition]) for p in self._places]
        )
        found: dict[str, float] = {}
        while len(found) < sum(self._ends.values()) - sum(starts.values()):
            for message in self._consumer.consume(1000, 0.5):
                headers: dict[str, Any] = dict(message.headers() or [])
                found[headers["ce_id"].decode()] = message.timestamp()[1]
        return found


def _parts(log: _Log, start: int) -> Sample:
    """The medians of the three waits: for the relay, for the consumer, for the receiver's commit."""
    produced = log.since_last()
    waits: list[tuple[float, float, float]] = []
    for event_id, committed, handled, effect in execute(_MOMENTS, start):
        sent = produced[event_id]
        waits.append((sent - float(committed), float(handled) - sent, float(effect - handled)))
    names = ("relay", "consumer", "receiver")
    return {
        name: statistics.median(values)
        for name, values in zip(names, zip(*waits, strict=True), strict=True)
    }


def run(bench: Bench) -> None:
    """Measure three ways to learn of new events, at two rates."""
    seconds = bench.size(5, 1)
    get_broker().create_topics([TopicSpec(wire_topic(TOPIC, ""), PARTITIONS, 1)])
    log = _Log()
    empty(*OUTBOX, "bench_captureditem", "bench_effect", "folio_events_inboxentry")

    def measure(way: str, clients: Writers) -> Sample:
        sample: Sample = {}
        with _relay(way):
            # Started, connected and in its stride.
            _delays(clients, 50, 1, wake_up=way == "wake-up")
            log.since_last()
            for rate in RATES:
                start = _one("max(id)", "folio_events_outboxmessage")
                delays = _delays(clients, rate, seconds, wake_up=way == "wake-up")
                sample[f"{way} {rate} p50"] = statistics.median(delays)
                sample[f"{way} {rate} p99"] = percentile(delays, 0.99)
                parts = _parts(log, start)
                sample |= {f"{way} {rate} {name}": value for name, value in parts.items()}
        return sample

    ways = ("wake-up", "poll", "beat")
    with program("django", "consume_events", "--group", LATENCY_GROUP), writers(CLIENTS) as clients:
        bench.measure(
            [functools.partial(measure, way, clients) for way in ways],
            [
                *(
                    _figure(way, rate, share)
                    for rate in RATES
                    for way in ways
                    for share in (50, 99)
                ),
                *(_part(way, part) for way in ways for part in _PARTS),
            ],
        )


_WAYS = {
    "wake-up": "wake-up",
    "poll": "relay polls every 0.1 s",
    "beat": "Celery task once a second",
}
_PARTS = {
    "relay": "commit to the relay's send",
    "consumer": "the relay's send to the consumer",
    "receiver": "the consumer to the receiver's commit",
}


def _part(way: str, part: str) -> Figure:
    name = f"{_PARTS[part]}, {RATES[0]} events/s, {_WAYS[way]}, p50"
    return Figure(name, "ms", f"{way} {RATES[0]} {part}")


def _figure(way: str, rate: int, share: int) -> Figure:
    goal = None
    if way == "wake-up" and rate == 50:
        goal = Goal("value", "at most", 10 if share == 50 else 25)
    return Figure(
        f"commit to receiver's commit, {rate} events/s, {_WAYS[way]}, p{share}",
        "ms",
        f"{way} {rate} p{share}",
        None if way == "poll" else f"poll {rate} p{share}",
        goal,
        "" if way == "poll" else "polling",
    )
