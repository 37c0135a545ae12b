"""What a trigger costs a write on PostgreSQL: one save, and an update of many rows."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from statistics import median
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.test.utils import override_settings

from folio_events.conf import get_settings
from folio_events.tenants import CallContext, call_context
from tests.bench.capture import VALUES
from tests.bench.harness import Bench, Figure, Form, Goal, Sample
from tests.bench.models import PlainItem, TriggeredItem
from tests.bench.stage import OUTBOX, empty, no_wake_up

ROWS = 200
#: Runs of one save in one round.
_REPEATS = 120
_CALL = CallContext(
    tenant="diku",
    headers={"x-okapi-request-id": "712345/items", "x-okapi-url": "http://okapi:9130"},
)


def _in_a_call() -> AbstractContextManager[Any]:
    stack = ExitStack()
    stack.enter_context(
        override_settings(FOLIO_EVENTS={**settings.FOLIO_EVENTS, "TENANCY": "folio"})
    )
    stack.enter_context(call_context(_CALL))
    return stack


@contextmanager
def _uncarried() -> Iterator[None]:
    """Without what tells the triggers of a connection."""
    wrappers, connection.execute_wrappers = connection.execute_wrappers, []
    try:
        yield
    finally:
        connection.execute_wrappers = wrappers


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class _Saves:
    """Updates of single rows, each in a transaction."""

    def __init__(self) -> None:
        self._number = 0

    def _save(self, item: Any) -> float:
        self._number += 1
        item.title = f"The mill on the floss, volume {self._number}"

        def work() -> None:
            with transaction.atomic():
                item.save()

        # Changed settings are read anew, which no save has to pay for.
        get_settings()
        return _seconds(work) * 1e6

    def measure(self, repeats: int) -> Sample:
        """Medians in microseconds, one save of each kind in turn."""
        plain, triggered = PlainItem(**VALUES), TriggeredItem(**VALUES)
        plain.save()
        triggered.save()
        ways: dict[str, tuple[Any, Callable[[], AbstractContextManager[Any]]]] = {
            "base": (plain, _uncarried),
            "known": (triggered, nullcontext),
            "told": (triggered, _in_a_call),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, (item, around) in ways.items():
                with around():
                    times[way].append(self._save(item))
        return {f"save, {way}": median(found) for way, found in times.items()}


def _many() -> Sample:
    """Microseconds a row of one ``QuerySet.update()``."""
    found: Sample = {}
    tables: dict[str, Any] = {"plain": PlainItem, "triggered": TriggeredItem}
    for name, model in tables.items():
        empty(*OUTBOX, model._meta.db_table)
        model.objects.bulk_create([model(**VALUES) for _ in range(ROWS)])
        update = functools.partial(model.objects.update, copies=4)
        found[f"rows, {name}"] = _seconds(update) * 1e6 / ROWS
    return found


@no_wake_up()
def run(bench: Bench) -> None:
    """Measure both, with a context that is known and one that has to be told."""
    _many()
    saves = _Saves()
    repeats = bench.size(_REPEATS, 10)
    saves.measure(5)

    def measure() -> Sample:
        return saves.measure(repeats)

    def over_base(way: str) -> Callable[[Sample], float]:
        return lambda sample: 100 * (sample[f"save, {way}"] / sample["save, base"] - 1)

    forms: list[Form] = [measure, _many]
    bench.measure(
        forms,
        [
            Figure(
                "recording, update, trigger, context already set, cost over save()",
                "% of the base",
                over_base("known"),
                None,
                Goal("value", "at most", 22),
            ),
            Figure(
                "recording, update, trigger, context set in this transaction, cost over save()",
                "% of the base",
                over_base("told"),
                None,
                Goal("value", "at most", 40),
            ),
            Figure(
                f"recording, QuerySet.update() over {ROWS} rows, trigger",
                "us a row",
                lambda sample: sample["rows, triggered"],
                lambda sample: sample["rows, plain"],
                Goal("value", "at most", 60),
                "base: no event",
            ),
        ],
    )
