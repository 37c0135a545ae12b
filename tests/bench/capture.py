"""What recording costs a write: captured, plain, and plain with the event by hand."""

from __future__ import annotations

import functools
import json
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.db import connections, transaction

from tests.bench.harness import Bench, Figure, Form, Goal, Sample
from tests.bench.models import CapturedItem, PlainItem
from tests.bench.stage import OUTBOX, empty, execute, no_wake_up

_FIELDS = ("id", "title", "barcode", "copies", "price", "catalogued_at", "note")
_OLD = f"SELECT {', '.join(_FIELDS)} FROM bench_plainitem WHERE id = %s"
_INSERT = """
INSERT INTO folio_events_outboxmessage
    (event_id, topic, event_type, tenant, key, payload, repeating_headers, own_headers,
     occurred_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_HEADERS = json.dumps(
    [
        ("ce_specversion", "1.0"),
        ("ce_type", "bench.item.UPDATE"),
        ("ce_source", "/bench"),
        ("content-type", "application/json"),
    ]
).encode()
#: What a fresh row holds.
VALUES: dict[str, Any] = {
    "title": "The mill on the floss",
    "barcode": "326547658598",
    "copies": 3,
    "price": Decimal("12.50"),
    "catalogued_at": datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC),
    "note": "shelved in the reading room; " * 5,
}
#: Runs of one write in one round.
_REPEATS = 60


class Written:
    """One kind of write, on one database, done in three ways."""

    def __init__(self, using: str, rows: int, *, update: bool) -> None:
        self.using, self.rows, self.update = using, rows, update
        self._number = 0
        # A PostgreSQL row lock, which SQLite neither has nor needs.
        self._old = _OLD + (" FOR NO KEY UPDATE" if using != "sqlite" else "")
        self._plain = [self._create(PlainItem) for _ in range(rows)]
        self._captured = [self._create(CapturedItem) for _ in range(rows)]

    def _create(self, model: type[Any]) -> Any:
        return model.objects.using(self.using).create(**VALUES)

    def base(self) -> None:
        with transaction.atomic(using=self.using):
            self._write(PlainItem, self._plain)

    def captured(self) -> None:
        with transaction.atomic(using=self.using):
            self._write(CapturedItem, self._captured)

    def _write(self, model: type[Any], known: Sequence[Any]) -> None:
        for item in known if self.update else [model(**VALUES) for _ in known]:
            self._change(item)
            item.save(using=self.using)

    def _change(self, item: Any) -> None:
        self._number += 1
        item.title = f"The mill on the floss, volume {self._number}"

    def by_hand(self) -> None:
        with transaction.atomic(using=self.using):
            for item in self._plain if self.update else [PlainItem(**VALUES) for _ in self._plain]:
                self._change(item)
                self._write_by_hand(item)

    def _write_by_hand(self, item: PlainItem) -> None:
        old = None
        with connections[self.using].cursor() as cursor:
            if self.update:
                cursor.execute(self._old, [item.pk])
                old = dict(zip(_FIELDS, cursor.fetchone(), strict=True))
            item.save(using=self.using)
            event_id, now = uuid.uuid4(), datetime.now(UTC)  # noqa: TID251 - no Django here
            body: dict[str, Any] = {
                "eventId": str(event_id),
                "eventTs": int(now.timestamp() * 1000),
                "type": "UPDATE" if self.update else "CREATE",
                **({"old": old} if old else {}),
                "new": {name: getattr(item, name) for name in _FIELDS},
            }
            sqlite = self.using == "sqlite"
            cursor.execute(
                _INSERT,
                [
                    event_id.hex if sqlite else event_id,
                    "bench.item",
                    body["type"],
                    "",
                    str(item.pk),
                    json.dumps(body, default=str, separators=(",", ":")).encode(),
                    _HEADERS,
                    b"",
                    now.isoformat(" ") if sqlite else now,
                ],
            )


def _microseconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e6


def _take_turns(name: str, written: Written, repeats: int) -> Sample:
    """Medians of the three ways, one write of each in turn."""
    ways = {"base": written.base, "hand": written.by_hand, "captured": written.captured}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, work in ways.items():
            times[way].append(_microseconds(work))
    return {f"{name} {way}": statistics.median(found) for way, found in times.items()}


@no_wake_up()
def run(bench: Bench) -> None:
    """Measure each write on PostgreSQL and on SQLite."""
    empty(*OUTBOX, "bench_plainitem", "bench_captureditem")
    for table in (*OUTBOX, "bench_plainitem", "bench_captureditem"):
        execute(f"DELETE FROM {table}", using="sqlite")
    forms: list[Form] = []
    figures: list[Figure] = []
    for using, database in (("default", "PostgreSQL"), ("sqlite", "SQLite")):
        for rows, amount in ((1, ""), (10, "ten ")):
            for update, kind in ((False, "create"), (True, "update")):
                name = f"{amount}{kind}, {database}"
                written = Written(using, rows, update=update)
                repeats = bench.size(_REPEATS * (4 if using == "sqlite" else 2), 10)
                _take_turns(name, written, 5)
                forms.append(
                    functools.partial(_take_turns, name, written, max(repeats // rows, 10))
                )
                figures += _figures(name, rows)
    bench.measure(forms, figures)


def _figures(name: str, rows: int) -> list[Figure]:
    def over_base(way: str) -> Callable[[Sample], float]:
        return lambda sample: 100 * (sample[f"{name} {way}"] / sample[f"{name} base"] - 1)

    return [
        Figure(
            f"recording, {name}, cost over save()",
            "% of the base",
            over_base("captured"),
            over_base("hand"),
            Goal("difference", "at most", 10),
            "the same by hand",
        ),
        Figure(
            f"recording, {name}",
            "us a row",
            lambda sample: sample[f"{name} captured"] / rows,
            lambda sample: sample[f"{name} base"] / rows,
            None,
            "base: atomic save()",
        ),
    ]
