"""What recording costs a bulk write, on PostgreSQL."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from tests.bench.capture import VALUES
from tests.bench.harness import Bench, Figure, Goal, Sample
from tests.bench.models import CapturedItem, PlainItem
from tests.bench.stage import OUTBOX, empty, no_wake_up

ROWS = 1000
_TABLES = {"plain": PlainItem, "captured": CapturedItem}


def _milliseconds(model: type[Any], work: str) -> float:
    items = [model(**VALUES) for _ in range(ROWS)]
    if work != "bulk_create":
        items = model.objects.bulk_create(items)
    start = time.perf_counter()
    if work == "bulk_create":
        model.objects.bulk_create(items)
    elif work == "update":
        model.objects.filter(pk__in=[item.pk for item in items]).update(copies=4)
    else:
        model.objects.filter(pk__in=[item.pk for item in items]).delete()
    return (time.perf_counter() - start) * 1e3


def _measure(work: str) -> Sample:
    empty(*OUTBOX, "bench_plainitem", "bench_captureditem")
    return {f"{work} {name}": _milliseconds(model, work) for name, model in _TABLES.items()}


def _over_base(work: str) -> Callable[[Sample], float]:
    return lambda sample: 100 * (sample[f"{work} captured"] / sample[f"{work} plain"] - 1)


@no_wake_up()
def run(bench: Bench) -> None:
    """Measure three bulk calls over a thousand rows, captured and plain."""
    calls = ("bulk_create", "update", "delete")
    for work in calls:
        _measure(work)
    bench.measure(
        [functools.partial(_measure, work) for work in calls],
        [
            Figure(
                f"recording, {work} of {ROWS:,} rows, cost over the call alone",
                "% of the base",
                _over_base(work),
                None,
                Goal("value", "at most", 100) if work == "bulk_create" else None,
            )
            for work in calls
        ],
    )
