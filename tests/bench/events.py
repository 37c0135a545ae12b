"""Events of the captured tables."""

from __future__ import annotations

from folio_events import ModelEvents, events
from tests.bench.models import CapturedItem, TriggeredItem


@events.register(CapturedItem)
class CapturedItemEvents(ModelEvents):
    topic = "bench.item"
    owner = "benchmarks"


@events.register(TriggeredItem)
class TriggeredItemEvents(ModelEvents):
    topic = "bench.triggered-item"
    owner = "benchmarks"
    capture = "trigger"
