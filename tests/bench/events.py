"""Events of the one captured table."""

from __future__ import annotations

from folio_events import ModelEvents, events
from tests.bench.models import CapturedItem


@events.register(CapturedItem)
class CapturedItemEvents(ModelEvents):
    topic = "bench.item"
    owner = "benchmarks"
