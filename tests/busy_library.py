"""A library on a busy afternoon: rows as relay, consumers and receivers leave them."""

from __future__ import annotations

import math
import uuid
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from folio_events import processes
from folio_events.encoding import dump
from folio_events.models import (
    BrokerPartition,
    BrokerRecord,
    ConsumerOffset,
    Delivery,
    EventCount,
    Orphan,
    OutboxMessage,
    Process,
    ReceiverState,
    RelayCursor,
    WithheldMessage,
)
from folio_events.receivers import registry

TOPIC = "inventory.item"


def furnish(now: datetime | None = None) -> None:
    """Fill the tables: most is well, one receiver fails, one process is gone."""
    now = now or timezone.now()
    names = sorted(receiver.name for receiver in registry)
    for span, length in ((60, 60), (600, 144)):
        _count(now, span, length, names)
    _outbox(now)
    _failures(now, names)
    _processes(now)
    _lags(now)


def _lags(now: datetime) -> None:
    for number, behind in enumerate((0, 3, 0, 14, 1, 0)):
        offset = 1200 + 31 * number
        place: dict[str, Any] = {"topic": f"folio.{TOPIC}", "partition": number}
        ConsumerOffset.objects.create(
            group="events", **place, database="default", offset=offset,
            updated_at=now - timedelta(seconds=number),
        )  # fmt: skip
        BrokerPartition.objects.create(**place, next_offset=offset + behind)
        BrokerRecord.objects.bulk_create(
            BrokerRecord(
                **place, offset=offset + n, key=b"k", value=b"{}", headers=b"[]",
                timestamp=int(now.timestamp() * 1000),
            )
            for n in range(behind)
        )  # fmt: skip


def _count(now: datetime, span: int, length: int, names: list[str]) -> None:
    current = int(now.timestamp()) // span
    rows = []
    for place in range(length):
        start = datetime.fromtimestamp((current - length + 1 + place) * span, now.tzinfo)
        wave = 1 + 0.5 * math.sin(place / length * 8 - 1) + 0.12 * math.sin(place * place)
        published = round(40 * span / 60 * wave)
        rows.append(_event_count(span, start, "published", TOPIC, published))
        for number, name in enumerate(names):
            handled = round(published / (number + 1))
            fails = number == 0 and length - place < length / 6
            failed = handled // 3 if fails else int(place % 17 == 5 and number == 1)
            rows.append(_event_count(span, start, "handled", name, handled - failed))
            rows.append(_event_count(span, start, "failed", name, failed))
    EventCount.objects.bulk_create(row for row in rows if row.count)


def _event_count(span: int, start: datetime, outcome: str, name: str, count: int) -> EventCount:
    return EventCount(span=span, started_at=start, outcome=outcome, name=name, shard=0, count=count)


def _outbox(now: datetime) -> None:
    for number in range(40):
        OutboxMessage.objects.create(
            event_id=uuid.uuid4(), topic=TOPIC, event_type="UPDATE", tenant="", key=str(number),
            payload=dump({"number": number}), repeating_headers=b"[]", own_headers=b"",
            occurred_at=now - timedelta(seconds=40 - number),
        )  # fmt: skip
    first, last = (OutboxMessage.objects.order_by(by).first() for by in ("id", "-id"))
    assert first is not None
    assert last is not None
    RelayCursor.objects.create(id=1, position=last.pk - 12, version=1, updated_at=now)
    WithheldMessage.objects.create(
        outbox_message=first, topic=TOPIC, key=first.key, state="refused",
        error="MessageTooLargeError: 2,000,000 bytes, the topic takes 1,048,576", withheld_at=now,
    )  # fmt: skip
    Orphan.objects.create(
        topic=f"folio.{TOPIC}", partition=1, offset=4, fault="missing", error="no tenant",
        headers=b"[]", published_at=now, found_at=now,
    )  # fmt: skip


def _failures(now: datetime, names: list[str]) -> None:
    for number in range(9):
        Delivery.objects.create(
            receiver=names[0], group="events", event_id=uuid.uuid4(), order="key", partition=0,
            state="dead" if number < 3 else "retrying", attempts=5, topic=f"folio.{TOPIC}",
            offset=number, headers=b"[]", payload=b"{}", event_type="UPDATE",
            key=str(uuid.UUID(int=number)), created_at=now,
            published_at=now - timedelta(minutes=7 if number < 4 else 1),
            next_attempt_at=now + timedelta(minutes=1), error_class="requests.ConnectionError",
            error="the circulation service does not answer",
        )  # fmt: skip
    ReceiverState.objects.create(
        receiver=names[0], failures=9, opened_at=now, probe_at=now + timedelta(minutes=1),
        updated_at=now,
    )  # fmt: skip


def _processes(now: datetime) -> None:
    places = {f"folio.{TOPIC}": [0, 1, 2], "folio.orders.piece": [0, 1, 2]}
    _process(now, "relay", "default", "listening", "", {}, 4211)
    _process(now, "relay", "default", "standby", "another relay is at work", {}, 977)
    _process(now, "consumer", "events", "working", "", places, 4230, records=500, busy=3)
    _process(now, "consumer", "events", "waiting", "", places, 981)
    _process(now, "consumer", "events", "waiting", "", {}, 355, silent=240)


def _process(
    now: datetime, kind: str, name: str, state: str, detail: str, places: dict[str, list[int]],
    pid: int, *, records: int = 0, busy: float = 0, silent: float = 4,
) -> None:  # fmt: skip
    assert silent < processes.KEPT.total_seconds()
    Process.objects.create(
        id=uuid.uuid4(), kind=kind, name=name, host=f"library-{pid % 2 + 1}", pid=pid,
        state=state, detail=detail, partitions=places, records=records,
        busy_since=now - timedelta(seconds=busy) if busy else None, interval=10,
        started_at=now - timedelta(hours=30), heartbeat_at=now - timedelta(seconds=silent),
    )  # fmt: skip
