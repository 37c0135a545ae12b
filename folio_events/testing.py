"""For the tests of projects: deliver events without processes, look at what was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import DEFAULT_DB_ALIAS

from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.consumer import Consumer
from folio_events.dialects import decode
from folio_events.event import Event
from folio_events.message import Record
from folio_events.models import OutboxMessage
from folio_events.receivers import registry
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from folio_events.sending import headers_of
from folio_events.topics import wire_topic

#: Rounds after which events that go on causing events are taken for a loop.
MAX_ROUNDS = 100


@dataclass(slots=True)
class Delivered:
    """What ``deliver_all()`` did."""

    published: int = 0
    dispatched: int = 0
    retried: int = 0


@dataclass(slots=True)
class CapturedEvents:
    """Filled when the block of ``captured_events()`` ends."""

    events: list[Event] = field(default_factory=list)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: int) -> Event:
        return self.events[index]


def deliver_all(*, broker: Broker | None = None, using: str = DEFAULT_DB_ALIAS) -> Delivered:
    """Relay, consume and retry until nothing is left, in this process and thread.

    Works inside ``TestCase``, with the memory and the database broker.

    Raises:
        RuntimeError: Events still cause events after MAX_ROUNDS rounds.
    """
    broker = broker or get_broker()
    consumers = [Consumer(group, broker=broker, follows_broker=True) for group in registry.groups()]
    done = Delivered()
    try:
        for _ in range(MAX_ROUNDS):
            published = 0
            more = True
            while more:
                result = drain(using=using, broker=broker)
                published += result.published
                more = result.more
            dispatched = 0
            for consumer in consumers:
                while count := consumer.step(timeout=0):
                    dispatched += count
            passed = retry_due(using=using)
            done.published += published
            done.dispatched += dispatched
            done.retried += passed.resolved + passed.failed
            if not (published or dispatched or passed.resolved or passed.failed):
                return done
    finally:
        for consumer in consumers:
            consumer.close()
    raise RuntimeError(f"Events still cause events after {MAX_ROUNDS} rounds: is there a loop?")


@contextmanager
def captured_events(*, using: str = DEFAULT_DB_ALIAS) -> Iterator[CapturedEvents]:
    """Collect the events that a block records; nothing has to be committed."""
    rows = OutboxMessage.objects.using(using)
    last = rows.order_by("-id").values_list("id", flat=True).first() or 0
    captured = CapturedEvents()
    yield captured
    captured.events = [_event(row) for row in rows.filter(id__gt=last).order_by("id")]


def _event(row: OutboxMessage) -> Event:
    record = Record(
        topic=wire_topic(row.topic, row.tenant),
        partition=0,
        offset=0,
        key=None if row.key is None else row.key.encode(),
        value=None if row.payload is None else bytes(row.payload),
        headers=headers_of(row),
        timestamp=int(row.occurred_at.timestamp() * 1000),
    )
    return decode(record)
