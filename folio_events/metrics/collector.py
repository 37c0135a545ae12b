"""What waits, what failed and who is alive, asked of the database at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from folio_events import processes
from folio_events.brokers import get_broker
from folio_events.conf import get_settings
from folio_events.exceptions import BrokerError
from folio_events.models import Orphan
from folio_events.monitoring.lag import group_lag, outbox_lag
from folio_events.monitoring.positions import positions
from folio_events.monitoring.status import status
from folio_events.topics import parse_wire_topic

#: Partitions that have a line of their own.
_MOST_PARTITIONS = 1000


class EventsCollector(Collector):
    """Asks the database at each scrape; any process can have it, one is enough.

    Where tenancy is on, it tells what waits tenant by tenant too.

    Args:
        databases: Aliases that have an outbox.
        groups: Consumer groups whose lag is told tenant by tenant: each scrape then reads a
            sample of it from the broker.
        lag: Whether the lag of all groups is told partition by partition: each scrape then asks
            the broker how far its partitions reach. The 1,000 largest have a line of their own,
            the others are told together, with topic and partition "other".
    """

    def __init__(
        self,
        databases: Sequence[str] = (DEFAULT_DB_ALIAS,),
        *,
        groups: Sequence[str] = (),
        lag: bool = False,
    ) -> None:
        self.databases = databases
        self.groups = groups
        self.lag = lag

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
        yield self._processes()
        if self.lag:
            yield from self._lags()
        if get_settings().TENANCY is not None:
            yield from self._of_tenants_in_outbox()
        if self.groups:
            yield from self._of_tenants_in_groups()

    def _processes(self) -> Metric:
        alive = _gauge("processes_alive", "Processes with a recent heartbeat.", "kind", "name")
        for using in self.databases:
            counts = processes.alive(using=using)
            for (kind, name), count in sorted(counts.items()):
                alive.add_metric([using, kind, name], count)
        return alive

    def _lags(self) -> Iterator[Metric]:
        labels = ["database", "group", "topic", "partition", "tenant"]
        lag = GaugeMetricFamily(
            "folio_events_lag",
            "Records of a partition that a group has not handled.",
            labels=labels,
        )
        answers = GaugeMetricFamily("folio_events_broker_up", "1 where the broker answers.")
        answers.add_metric([], 1)
        for using in self.databases:
            try:
                found = positions(broker=get_broker(), using=using)
            except BrokerError:
                answers = GaugeMetricFamily("folio_events_broker_up", answers.documentation)
                answers.add_metric([], 0)
                break
            found.sort(key=lambda one: -(one.lag or 0))
            for one in found[:_MOST_PARTITIONS]:
                tenant = parse_wire_topic(one.topic).tenant or ""
                place = [one.topic, str(one.partition), tenant]
                lag.add_metric([using, one.group, *place], one.lag or 0)
            rest: Counter[str] = Counter()
            for one in found[_MOST_PARTITIONS:]:
                rest[one.group] += one.lag or 0
            for group, count in sorted(rest.items()):
                lag.add_metric([using, group, "other", "other", ""], count)
        yield from (lag, answers)

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


def metrics(request: HttpRequest, **options: Any) -> HttpResponse:
    """The metrics of the databases as a view; put it where only your Prometheus comes.

    Args:
        request: The scrape; OpenMetrics is spoken where it is asked for.
        options: As ``EventsCollector`` takes them, from the third argument of ``path()``.
    """
    registry = CollectorRegistry()
    registry.register(EventsCollector(**options))
    generate, content_type = choose_encoder(request.headers.get("accept", ""))
    return HttpResponse(generate(registry), content_type=content_type)
