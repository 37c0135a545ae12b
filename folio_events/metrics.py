"""Prometheus metrics of what waits, what failed and who is left alone (extra ``metrics``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from django.db import DEFAULT_DB_ALIAS
from django.http import HttpRequest, HttpResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from folio_events.status import status


class EventsCollector(Collector):
    """Asks the database at each scrape; any process can have it, one is enough.

    Args:
        databases: Aliases that have an outbox.
    """

    def __init__(self, databases: Sequence[str] = (DEFAULT_DB_ALIAS,)) -> None:
        self.databases = databases

    def describe(self) -> list[Metric]:
        """Nothing: to register the collector must not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics, as docs/howto/monitor.md lists them."""
        waiting = _gauge("outbox_waiting", "About how many outbox messages wait to be published.")
        oldest = _gauge("outbox_oldest_seconds", "Age of the oldest of them; 0 where none waits.")
        withheld = _gauge("withheld_messages", "Messages set aside by the relay.", "state")
        deliveries = _gauge("deliveries", "Open deliveries.", "receiver", "state")
        breaker = _gauge("breaker_open", "1 where a receiver is left alone.", "receiver")
        failures = _gauge("receiver_failures", "Events in a row that it failed on.", "receiver")
        for using in self.databases:
            now = status(using=using)
            waiting.add_metric([using], now.waiting)
            oldest.add_metric([using], now.oldest_age)
            for state in ("refused", "waiting"):
                withheld.add_metric([using, state], now.withheld.get(state, 0))
            for (receiver, state), count in sorted(now.deliveries.items()):
                deliveries.add_metric([using, receiver, state], count)
            for receiver, count in sorted(now.failures.items()):
                failures.add_metric([using, receiver], count)
                breaker.add_metric([using, receiver], receiver in now.open_breakers)
        yield from (waiting, oldest, withheld, deliveries, breaker, failures)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"folio_events_{name}", text, labels=["database", *labels])


def metrics(request: HttpRequest) -> HttpResponse:
    """The metrics of the default database as a view; put it where only your Prometheus comes."""
    registry = CollectorRegistry()
    registry.register(EventsCollector())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
