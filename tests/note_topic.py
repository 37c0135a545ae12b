"""A topic of numbered notes on a memory broker, and receivers that write down what they got."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from folio_events import Event, receiver
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.consumer import Consumer
from folio_events.message import Headers, Message
from tests.testapp.models import Effect

LOGICAL, WIRE = "library.note", "folio.library.note"


class NoteTopic:
    """Notes in one partition, so that a test knows what is one batch."""

    def __init__(self, broker: MemoryBroker, *, wire: str = WIRE) -> None:
        self.broker = broker
        self.wire = wire
        broker.create_topics([TopicSpec(wire, 1, 1)])
        self.consumers: dict[str, Consumer] = {}

    def put(self, key: str | None = "k", number: int = 0, **options: Any) -> uuid.UUID:
        """Put one note into the topic; ``event_id``, ``headers`` and ``tenant`` may be given."""
        event_id = options.get("event_id") or uuid.uuid4()
        body = {
            "id": str(event_id),
            "type": options.get("type", "note"),
            **({"tenant": options["tenant"]} if "tenant" in options else {}),
            "timestamp": 1_700_000_000_000,
            "data": {"number": number, **options.get("data", {})},
        }
        self.put_raw(
            json.dumps(body).encode(), None if key is None else key.encode(), options.get("headers")
        )
        return event_id

    def put_all(self, keys: Sequence[str | None]) -> list[uuid.UUID]:
        """Put one note for each key, numbered from 0."""
        return [self.put(key, number) for number, key in enumerate(keys)]

    def put_raw(
        self, value: bytes | None, key: bytes | None = b"k", headers: Headers | None = None
    ) -> None:
        self.broker.publish([Message(self.wire, key, value, headers or [])], timeout=1)

    def consume(self, group: str = "events") -> int:
        """Bring all that is there to a group; how many records that were."""
        consumer = self.consumers.get(group)
        if consumer is None:
            consumer = self.consumers[group] = Consumer(group, broker=self.broker)
        handled = 0
        while count := consumer.step(timeout=0):
            handled += count
        return handled

    def restart(self) -> None:
        """End the consumers; the next call of ``consume`` makes new ones."""
        for consumer in self.consumers.values():
            consumer.close()
        self.consumers.clear()


def note_receiver(
    name: str, react: Callable[[Event], object] | None = None, **options: Any
) -> list[int]:
    """Register a receiver that writes an Effect, then does what the test says.

    Returns:
        The numbers of the notes it was started with, also where the run was rolled back.
    """
    started: list[int] = []

    def function(event: Event) -> None:
        number = event.payload["number"]
        started.append(number)
        Effect.objects.create(
            receiver=name, event_id=event.id, key=event.key or "", note=str(number)
        )
        if react is not None:
            react(event)

    receiver(options.pop("topic", LOGICAL), name=name, **options)(function)
    return started


def effects(name: str) -> list[int]:
    """The numbers of the notes that took effect in a receiver, in their order."""
    notes = Effect.objects.filter(receiver=name).order_by("id")
    return [int(note) for note in notes.values_list("note", flat=True)]


class Mood:
    """Fails on the numbers that it is told, with the error that it is told."""

    def __init__(self, *bad: int, error: Exception | None = None) -> None:
        self.bad = set(bad)
        self.error = error

    def __call__(self, event: Event) -> None:
        if event.payload["number"] in self.bad:
            raise self.error or ValueError("a bad number")
