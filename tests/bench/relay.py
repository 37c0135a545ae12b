"""The relay on a full outbox, against the bare loop and against sending alone."""

from __future__ import annotations

import functools
import gc
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import Any

import psycopg
from confluent_kafka import Producer
from django.conf import settings
from django.db import connections, transaction
from django.utils import timezone

from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.kafka.options import PRODUCER_DEFAULTS
from folio_events.management.heap import freeze_heap
from folio_events.relay import LOCK, drain
from folio_events.topics import wire_topic
from tests.bench.harness import Bench, Figure, Form, Goal, Sample, say
from tests.bench.stage import OUTBOX, empty, execute, program, wait_until

logger = logging.getLogger("tests.bench")

TOPIC = "bench.relay"
#: The base case.
BATCH, KEYS = 1000, 100

_FILL = """
INSERT INTO folio_events_outboxmessage
    (event_id, topic, event_type, tenant, key, payload, repeating_headers, own_headers,
     occurred_at)
SELECT id, %s, 'UPDATE', '', 'key-' || n %% %s,
       convert_to('{"eventId":"' || id || '","eventTs":1790000000000,"type":"UPDATE","new":{"id":'
                  || n || ',"title":"' || repeat('x', 390) || '"}}', 'UTF8'),
       %s, '', now()
FROM (SELECT gen_random_uuid() AS id, n FROM generate_series(1, %s) AS n) AS numbered
"""


def fill(count: int, *, keys: int = KEYS, topic: str = TOPIC, using: str = "default") -> None:
    """Put rows into the outbox, of about 500 bytes each."""
    headers = [
        ("ce_specversion", "1.0"),
        ("ce_type", f"{topic}.UPDATE"),
        ("ce_source", "/bench"),
        ("content-type", "application/json"),
    ]
    # In one transaction: a relay that runs beside must not begin before the clock.
    with transaction.atomic(using=using):
        execute(_FILL, topic, keys, json.dumps(headers).encode(), count, using=using)
        execute("ANALYZE folio_events_outboxmessage", using=using)


def drain_all(*, limit: int = BATCH, using: str = "default") -> int:
    """Drain until the cursor has reached the last row; returns how many rows there were."""
    ((last,),) = execute("SELECT max(id) FROM folio_events_outboxmessage", using=using)
    before = _position(using)
    while True:
        result = drain(limit=limit, using=using)
        if result.unavailable:
            raise RuntimeError(result.unavailable)
        if not result.more and _position(using) >= last:
            return int(last - before)


def _position(using: str) -> int:
    rows = execute("SELECT position FROM folio_events_relaycursor", using=using)
    return int(rows[0][0]) if rows else 0


def timed(work: Callable[[], int]) -> float:
    """How many things a second."""
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


class BareLoop:
    """The same form by hand: read, produce, flush, COPY the places, move the cursor."""

    def __init__(self) -> None:
        connections["default"].ensure_connection()
        parameters = connections["default"].get_connection_params()
        self._session = psycopg.connect(
            **{name: parameters[name] for name in ("dbname", "user", "host", "port")}
        )
        self.producer = Producer(_options(), logger=logger)
        self._topic = wire_topic(TOPIC, "")

    def close(self) -> None:
        self._session.close()

    def messages(self, rows: Sequence[Any]) -> list[tuple[str, str, bytes, list[Any]]]:
        return [
            (
                self._topic,
                key,
                payload,
                [
                    *_parsed(repeating),
                    ("ce_id", event_id.encode()),
                    ("ce_time", occurred_at.astimezone(UTC).isoformat().encode()),
                    ("ce_sequence", b"%d" % row_id),
                ],
            )
            for row_id, event_id, key, payload, repeating, occurred_at in rows
        ]

    def read(self, position: int, limit: int) -> list[Any]:
        cursor = psycopg.Cursor(self._session)
        return cursor.execute(
            "SELECT id, event_id::text, key, payload, repeating_headers, occurred_at"
            " FROM folio_events_outboxmessage WHERE id > %s ORDER BY id LIMIT %s",
            [position, limit],
            binary=True,
        ).fetchall()

    def drain(self, limit: int) -> int:
        position = published = 0
        cursor = self._session.cursor()
        cursor.execute(
            "INSERT INTO folio_events_relaycursor (id, position, version, updated_at)"
            " VALUES (1, 0, 0, now())"
        )
        while rows := self.read(position, limit):
            places: dict[int, Any] = {}
            for row, (topic, key, value, headers) in zip(rows, self.messages(rows), strict=True):
                self.producer.produce(
                    topic, value, key, headers=headers, on_delivery=_noting(places, row[0])
                )
            self.producer.flush()
            now = timezone.now()
            with cursor.copy(
                "COPY folio_events_publication"
                ' (outbox_message_id, topic, partition, "offset", published_at) FROM STDIN'
            ) as copy:
                for row_id, message in places.items():
                    copy.write_row(
                        (row_id, self._topic, message.partition(), message.offset(), now)
                    )
            position = rows[-1][0]
            cursor.execute("UPDATE folio_events_relaycursor SET position = %s", [position])
            self._session.commit()
            published += len(rows)
        self._session.commit()
        return published

    def send(self, messages: Sequence[Any], limit: int) -> int:
        """Sending alone, with the same headers and acknowledgements."""
        for start in range(0, len(messages), limit):
            places: dict[int, Any] = {}
            for number, (topic, key, value, headers) in enumerate(messages[start : start + limit]):
                self.producer.produce(
                    topic, value, key, headers=headers, on_delivery=_noting(places, number)
                )
            self.producer.flush()
        return len(messages)


def _noting(places: dict[int, Any], number: int) -> Callable[[Any, Any], None]:
    def note(error: Any, message: Any) -> None:
        if error is not None:
            raise RuntimeError(error)
        places[number] = message

    return note


@functools.lru_cache
def _parsed(stored: bytes) -> list[tuple[str, bytes]]:
    return [(name, value.encode()) for name, value in json.loads(stored)]


def _options() -> dict[str, Any]:
    return {**PRODUCER_DEFAULTS, **settings.FOLIO_EVENTS["BROKER"]["OPTIONS"]}


@contextmanager
def held_transaction() -> Iterator[None]:
    """A transaction that has written an event and stays open."""
    connections["default"].ensure_connection()
    parameters = connections["default"].get_connection_params()
    with psycopg.connect(
        **{name: parameters[name] for name in ("dbname", "user", "host", "port")}
    ) as session:
        session.execute(_FILL, [TOPIC, 1, b"[]", 1])
        yield
        session.rollback()


def run(bench: Bench) -> None:
    """Measure the relay: the base case at two batch sizes, then one factor at a time."""
    rows = bench.size(30_000, 6_000)
    get_broker().create_topics([TopicSpec(wire_topic(TOPIC, ""), 6, 1)])
    bare = BareLoop()

    def relay(name: str, *, limit: int = BATCH, keys: int = KEYS) -> Sample:
        with transaction.atomic():
            # A second relay has locks on the tables while it drains.
            execute(f"SELECT pg_advisory_xact_lock({LOCK})")
            empty(*OUTBOX)
            fill(rows, keys=keys)
        return {name: timed(lambda: drain_all(limit=limit))}

    def unfrozen() -> Sample:
        gc.unfreeze()
        try:
            return relay("unfrozen", limit=5000)
        finally:
            freeze_heap()

    def by_hand(name: str, limit: int) -> Sample:
        empty(*OUTBOX)
        fill(rows)
        return {name: timed(lambda: bare.drain(limit))}

    def send(name: str, limit: int) -> Sample:
        messages = bare.messages(bare.read(0, rows))
        bare._session.commit()
        return {name: timed(lambda: bare.send(messages, limit))}

    def with_standby() -> Sample:
        empty(*OUTBOX)
        with program("django", "relay_events"):
            wait_until(_another_session, "a second relay")
            return relay("standby")

    def with_held() -> Sample:
        empty(*OUTBOX)
        with held_transaction():
            fill(rows)
            return {"held": timed(lambda: drain_all())}

    def large() -> Sample:
        fill(rows, using="large")
        return {"large": timed(lambda: drain_all(using="large"))}

    forms: list[Form] = []
    for limit in (BATCH, 5000):
        forms += [
            functools.partial(relay, f"relay {limit}", limit=limit),
            functools.partial(by_hand, f"bare {limit}", limit),
            functools.partial(send, f"send {limit}", limit),
        ]
    forms += [
        functools.partial(relay, "hot key", keys=1),
        functools.partial(relay, "10,000 keys", keys=10_000),
        with_standby,
        with_held,
        unfrozen,
    ]
    size = bench.size(5_000_000, 1_000_000)
    _fill_large(size)
    forms.append(large)
    # The first idempotent producer, the compilers and the caches are not what is measured.
    relay("")
    by_hand("", BATCH)
    freeze_heap()  # as relay_events does
    try:
        bench.measure(forms, _figures(size))
    finally:
        gc.unfreeze()
    bare.close()


def _another_session() -> bool:
    return bool(
        execute(
            "SELECT 1 FROM pg_stat_activity"
            " WHERE query = 'LISTEN folio_events_outbox' OR query LIKE 'SELECT pg_notify%%'"
        )
    )


def _fill_large(size: int) -> None:
    say(f"  filling {size:,} rows")
    start = time.perf_counter()
    empty(*OUTBOX, using="large")
    fill(size, using="large")
    execute(
        'INSERT INTO folio_events_publication (outbox_message_id, topic, partition, "offset",'
        " published_at) SELECT id, topic, id % 6, id, now() FROM folio_events_outboxmessage",
        using="large",
    )
    execute(
        "INSERT INTO folio_events_relaycursor (id, position, version, updated_at)"
        " SELECT 1, max(id), 1, now() FROM folio_events_outboxmessage",
        using="large",
    )
    execute("VACUUM ANALYZE", using="large")
    say(f"  filled in {time.perf_counter() - start:.0f} s")


def _figures(size: int) -> list[Figure]:
    unit, base = "events/s", f"relay {BATCH}"
    figures: list[Figure] = []
    for limit in (BATCH, 5000):
        figures += [
            Figure(
                f"relay, batches of {limit}",
                unit,
                f"relay {limit}",
                f"bare {limit}",
                Goal("ratio", "at least", 0.9),
                "bare psycopg loop",
            ),
            Figure(
                f"relay, batches of {limit}, against sending alone",
                unit,
                f"relay {limit}",
                f"send {limit}",
                None,
                "raw produce with the same headers",
            ),
        ]
    factors = [
        ("one hot key", "hot key", Goal("ratio", "at least", 0.5)),
        ("10,000 keys", "10,000 keys", None),
        ("a standby relay", "standby", None),
        ("a transaction held open that wrote an event", "held", Goal("ratio", "at least", 0.8)),
        (f"{size:,} rows in the table", "large", Goal("ratio", "at least", 0.8)),
    ]
    figures += [
        Figure(f"relay with {what}", unit, form, base, goal, f"{KEYS} keys, batches of {BATCH}")
        for what, form, goal in factors
    ]
    figures.append(
        Figure(
            "relay, batches of 5000, heap not frozen",
            unit,
            "unfrozen",
            "relay 5000",
            None,
            "frozen, as relay_events does",
        )
    )
    return figures
