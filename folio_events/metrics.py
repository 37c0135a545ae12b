"""Prometheus metrics of what waits, what failed and who is left alone (extra ``metrics``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from django.db import DEFAULT_DB_ALIAS
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from folio_events.brokers import get_broker
from folio_events.conf import get_settings
from folio_events.lag import group_lag, outbox_lag
from folio_events.models import Orphan
from folio_events.status import status


class EventsCollector(Collector):
    """Asks the database at each scrape; any process can have it, one is enough.

    Where tenancy is on, it tells what waits tenant by tenant too.

    Args:
        databases: Aliases that have an outbox.
        groups: Consumer groups whose lag is told tenant by tenant: each scrape then reads a
            sample of it from the broker.
    """

    def __init__(
        self, databases: Sequence[str] = (DEFAULT_DB_ALIAS,), *, groups: Sequence[str] = ()
    ) -> None:
        self.databases = databases
        self.groups = groups

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
        orphans = _gauge("orphans", "Open orphans.", "fault")
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
            for fault in Orphan.Fault.values:
                orphans.add_metric([using, fault], now.orphans.get(fault, 0))
        yield from (waiting, oldest, withheld, deliveries, breaker, failures, orphans)
        if get_settings().TENANCY is not None:
            yield from self._of_tenants_in_outbox()
        if self.groups:
            yield from self._of_tenants_in_groups()

    def _of_tenants_in_outbox(self) -> Iterator[Metric]:
        waiting = _gauge("tenant_outbox_waiting", "Messages that wait to be published.", "tenant")
        oldest = _gauge("tenant_outbox_oldest_seconds", "Age of the oldest of them.", "tenant")
        for using in self.databases:
            for tenant, lag in sorted(outbox_lag(using=using).items()):
                waiting.add_metric([using, tenant], lag.messages)
                oldest.add_metric([using, tenant], _age(lag.oldest_at))
        yield from (waiting, oldest)

    def _of_tenants_in_groups(self) -> Iterator[Metric]:
        labels = ["group", "tenant"]
        lag = GaugeMetricFamily(
            "folio_events_tenant_lag", "About how many messages it has not handled.", labels=labels
        )
        oldest = GaugeMetricFamily(
            "folio_events_tenant_lag_oldest_seconds", "Age of the oldest of them.", labels=labels
        )
        for group in self.groups:
            found = group_lag(group, broker=get_broker())
            for tenant, waits in sorted(found.tenants.items()):
                lag.add_metric([group, tenant], waits.messages)
                oldest.add_metric([group, tenant], _age(waits.oldest_at))
        yield from (lag, oldest)


def _age(moment: datetime) -> float:
    return max((timezone.now() - moment).total_seconds(), 0.0)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"folio_events_{name}", text, labels=["database", *labels])


def metrics(request: HttpRequest) -> HttpResponse:
    """The metrics of the default database as a view; put it where only your Prometheus comes."""
    registry = CollectorRegistry()
    registry.register(EventsCollector())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
