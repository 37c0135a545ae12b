"""From a writer's commit to a receiver's commit, through real processes."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.topics import wire_topic
from tests.bench.harness import Bench, Figure, Goal, Sample, percentile
from tests.bench.receivers import LATENCY_GROUP
from tests.bench.stage import OUTBOX, empty, execute, program, wait_until
from tests.bench.writers import Writers, writers

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


@contextmanager
def _relay(way: str) -> Iterator[None]:
    arguments = ["tests.bench.beat"] if way == "beat" else ["django", "relay_events"]
    with program(*arguments, WAKE_UP=way == "wake-up"):
        yield


def _one(column: str, table: str) -> int:
    return int(execute(f"SELECT coalesce({column}, 0) FROM {table}")[0][0])


def _delays(clients: Writers, rate: int, seconds: float, *, wake_up: bool) -> list[float]:
    start = _one("max(id)", "folio_events_outboxmessage")
    before = _one("count(*)", "bench_effect")
    written = clients.write(seconds, rate=rate, wake_up=wake_up)
    wait_until(lambda: _one("count(*)", "bench_effect") >= before + written, "all deliveries")
    return [float(delay) for (delay,) in execute(_LATENCIES, start)]


def run(bench: Bench) -> None:
    """Measure three ways to learn of new events, at two rates."""
    seconds = bench.size(5, 1)
    get_broker().create_topics([TopicSpec(wire_topic("bench.item", ""), 6, 1)])
    empty(*OUTBOX, "bench_captureditem", "bench_effect", "folio_events_inboxentry")

    def measure(way: str, clients: Writers) -> Sample:
        sample: Sample = {}
        with _relay(way):
            # Started, connected and in its stride.
            _delays(clients, 50, 1, wake_up=way == "wake-up")
            for rate in RATES:
                delays = _delays(clients, rate, seconds, wake_up=way == "wake-up")
                sample[f"{way} {rate} p50"] = statistics.median(delays)
                sample[f"{way} {rate} p99"] = percentile(delays, 0.99)
        return sample

    ways = ("wake-up", "poll", "beat")
    with program("django", "consume_events", "--group", LATENCY_GROUP), writers(CLIENTS) as clients:
        bench.measure(
            [functools.partial(measure, way, clients) for way in ways],
            [_figure(way, rate, share) for rate in RATES for way in ways for share in (50, 99)],
        )


def _figure(way: str, rate: int, share: int) -> Figure:
    names = {
        "wake-up": "wake-up",
        "poll": "relay polls every 0.1 s",
        "beat": "Celery task once a second",
    }
    goal = None
    if way == "wake-up" and rate == 50:
        goal = Goal("value", "at most", 10 if share == 50 else 25)
    return Figure(
        f"commit to receiver's commit, {rate} events/s, {names[way]}, p{share}",
        "ms",
        f"{way} {rate} p{share}",
        None if way == "poll" else f"poll {rate} p{share}",
        goal,
        "" if way == "poll" else "polling",
    )
