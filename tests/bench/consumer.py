"""The consumer on a full topic: one transaction a batch against one a message."""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections.abc import Callable

from django.conf import settings
from django.db import connection, connections
from django.test.utils import override_settings

from folio_events import Event, receiver
from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.consumer import Consumer
from folio_events.receivers import registry
from folio_events.topics import wire_topic
from tests.bench.harness import Bench, Figure, Form, Goal, Sample
from tests.bench.models import Effect
from tests.bench.relay import drain_all, fill
from tests.bench.stage import OUTBOX, empty

TOPIC = "bench.load"
Write = Callable[[Event], None]


def by_hand(event: Event) -> None:
    """Write one row with as little of Django as there can be."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO bench_effect (event_id, key) VALUES (%s, %s)", [event.id, event.key]
        )


def by_orm(event: Event) -> None:
    """Write one row as most receivers do."""
    Effect(event_id=event.id, key=event.key or "").save()


def nothing(event: Event) -> None:
    """Leave the database alone: what remains is the consumer's own work."""


def consume(write: Write, count: int, batch: int) -> float:
    """Events a second from the first to the last of ``count``, with a group of its own."""
    group = f"bench-{secrets.token_hex(4)}"
    stop = threading.Event()
    started: list[float] = []
    left = count

    def receive(event: Event) -> None:
        nonlocal left
        if not started:
            started.append(time.perf_counter())
        write(event)
        left -= 1
        if not left:
            stop.set()

    receiver(TOPIC, name=group, group=group)(receive)
    try:
        with override_settings(
            FOLIO_EVENTS={**settings.FOLIO_EVENTS, "CONSUMER_BATCH_SIZE": batch}
        ):
            consumer = Consumer(group)
            try:
                consumer.run(stop)
                return count / (time.perf_counter() - started[0])
            finally:
                consumer.close()
    finally:
        registry.remove(group)
        connections.close_all()


def run(bench: Bench) -> None:
    """Measure the consumer with receivers that do different things."""
    together, alone = bench.size(10_000, 2_000), bench.size(1_000, 200)
    get_broker().create_topics([TopicSpec(wire_topic(TOPIC, ""), 6, 1)])
    empty(*OUTBOX)
    fill(together + 2_000, topic=TOPIC)
    drain_all()

    def form(name: str, write: Write, count: int, batch: int) -> Sample:
        empty("bench_effect", "folio_events_inboxentry")
        return {name: consume(write, count, batch)}

    forms: list[Form] = []
    for name, write in (("raw", by_hand), ("ORM", by_orm), ("nothing", nothing)):
        forms.append(functools.partial(form, f"{name} batch", write, together, 500))
        forms.append(functools.partial(form, f"{name} single", write, alone, 1))
    consume(nothing, 100, 100)  # the group's own topic is made on first use
    bench.measure(
        forms,
        [
            Figure(
                "consumer by batch, receiver writes one row in SQL",
                "events/s",
                "raw batch",
                "raw single",
                Goal("ratio", "at least", 4),
                "one transaction a message",
            ),
            Figure(
                "consumer by batch, receiver writes one row through the ORM",
                "events/s",
                "ORM batch",
                "ORM single",
                None,
                "one transaction a message",
            ),
            Figure(
                "consumer by batch, receiver writes nothing",
                "events/s",
                "nothing batch",
                "nothing single",
                None,
                "one transaction a message",
            ),
        ],
    )
