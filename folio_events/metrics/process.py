"""Counters and histograms of one process: a relay, a consumer, a Celery worker."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    multiprocess,
    start_http_server,
)

from folio_events import signals
from folio_events.logs import MessageRef
from folio_events.sending import PublishedBatch
from folio_events.signals import HandledEvent

_UID = "folio_events.metrics"
#: Upper ends in seconds, from a quick wake-up to an outage of hours.
_DELAYS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
_RUNS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class BatchHistogram(Histogram):
    """A histogram that takes the observations of a batch at once."""

    def observe_many(self, amounts: Iterable[float]) -> None:
        """Observe each of some amounts, in one step of the lock for each bucket that they fall into."""
        # As observe() does it, whose steps for each amount are what costs.
        found = sorted(amounts)
        if not found:
            return
        self._sum.inc(sum(found))
        start = 0
        for bucket, bound in zip(self._buckets, self._upper_bounds, strict=True):
            end = bisect_right(found, bound, start)
            if end > start:
                bucket.inc(end - start)
            start = end
            if start == len(found):
                break


class ProcessMetrics:
    """What a process counts, fed by the signals of ``folio_events.signals``.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"folio_events_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _DELAYS
        ) -> BatchHistogram:
            return BatchHistogram(
                f"folio_events_{name}_seconds", text, labels, registry=registry, buckets=buckets
            )

        self._published = counter("published", "Messages that the broker acknowledged.", "topic")
        self._latency = histogram(
            "publish_latency", "From the recording of an event to the broker's acknowledgement."
        )
        self._wait = histogram("outbox_wait", "Of it: in the outbox, until the relay took it.")
        self._publish = histogram("publish", "Of it: from the relay to the acknowledgement.")
        self._withheld = counter("withheld", "Messages that the relay set aside.", "topic")
        self._stalled = counter("relay_stalled", "Times that the broker stopped to answer.")
        self._handled = counter("handled", "Events that took effect.", "receiver")
        self._receive = histogram(
            "receive_delay", "From the stamp of a message to the end of its receiver.", "receiver"
        )
        self._handler = histogram(
            "handler", "Runs of receivers that did not fail.", "receiver", buckets=_RUNS
        )
        self._failed = counter("failed", "Runs of receivers that failed.", "receiver")
        self._retries = counter("retries", "Runs of a retry pass.", "receiver", "outcome")
        self._dead = counter("dead_letters", "Deliveries that became dead.", "receiver")
        self._orphans = counter("orphans_kept", "Messages without an owner.", "fault")
        self._trips = counter("breaker_opened", "Times that a breaker opened.", "receiver")
        self._stopped = counter(
            "partitions_stopped", "Partitions that a group does not read on.", "group"
        )

    def connect(self) -> None:
        """Listen to the signals."""
        for signal, handler in self._handlers().items():
            signal.connect(handler, dispatch_uid=_UID, weak=False)

    def disconnect(self) -> None:
        """Listen no longer."""
        for signal in self._handlers():
            signal.disconnect(dispatch_uid=_UID)

    def _handlers(self) -> dict[signals.Happening, Any]:
        return {
            signals.events_published: self._on_published,
            signals.message_withheld: self._on_withheld,
            signals.relay_stalled: self._on_stalled,
            signals.events_handled: self._on_handled,
            signals.delivery_failed: self._on_failed,
            signals.delivery_dead: self._on_dead,
            signals.delivery_resolved: self._on_resolved,
            signals.broadcast_failed: self._on_broadcast_failed,
            signals.orphan_kept: self._on_orphan,
            signals.breaker_opened: self._on_breaker,
            signals.partition_stopped: self._on_stopped,
        }

    def _on_published(self, batch: PublishedBatch, **_kwargs: object) -> None:
        topics: Tally[str] = Tally()
        for one, rows in batch.rounds():
            took = one.answered_at - one.handed_at
            stamps = [row.occurred_at.timestamp() for row in rows]
            waits = [max(one.handed_at - stamp, 0.0) for stamp in stamps]
            self._wait.observe_many(waits)
            self._publish.observe_many([took] * len(rows))
            self._latency.observe_many([wait + took for wait in waits])
            topics.update([row.topic for row in rows])
        for topic, count in topics.items():
            self._published.labels(topic).inc(count)

    def _on_withheld(self, message: MessageRef, **_kwargs: object) -> None:
        self._withheld.labels(message.topic).inc()

    def _on_stalled(self, **_kwargs: object) -> None:
        self._stalled.inc()

    def _on_handled(
        self, receiver: str, handled: Sequence[HandledEvent], retried: bool, **_kwargs: object
    ) -> None:
        self._handled.labels(receiver).inc(len(handled))
        self._handler.labels(receiver).observe_many([one.seconds for one in handled])
        # A retry comes after its pause, which is nobody's delay.
        if not retried:
            now = time.time()
            stamps = [one.published_at for one in handled if one.published_at is not None]
            self._receive.labels(receiver).observe_many([max(now - at, 0.0) for at in stamps])

    def _on_failed(self, receiver: str, attempt: int, **_kwargs: object) -> None:
        self._failed.labels(receiver).inc()
        if attempt > 1:
            self._retries.labels(receiver, "failed").inc()

    def _on_dead(self, receiver: str, **_kwargs: object) -> None:
        self._dead.labels(receiver).inc()

    def _on_resolved(self, receiver: str, **_kwargs: object) -> None:
        self._retries.labels(receiver, "succeeded").inc()

    def _on_broadcast_failed(self, receiver: str, **_kwargs: object) -> None:
        self._failed.labels(receiver).inc()

    def _on_orphan(self, fault: str, **_kwargs: object) -> None:
        self._orphans.labels(fault).inc()

    def _on_breaker(self, receiver: str, **_kwargs: object) -> None:
        self._trips.labels(receiver).inc()

    def _on_stopped(self, group: str, **_kwargs: object) -> None:
        self._stopped.labels(group).inc()


_of_this_process: list[ProcessMetrics] = []


def install() -> None:
    """Count in this process, in prometheus_client's own registry; again is the same as once.

    For processes that are scraped by other means than ``--metrics-port``, such as Celery workers.
    """
    if not _of_this_process:
        _of_this_process.append(ProcessMetrics(REGISTRY))
    _of_this_process[0].connect()


def uninstall() -> None:
    """Count no longer; what was counted stays."""
    for found in _of_this_process:
        found.disconnect()


def serve(port: int, address: str = "0.0.0.0") -> Callable[[], None]:  # noqa: S104 - Prometheus comes from elsewhere
    """Count in this process, and answer scrapes in a thread.

    With PROMETHEUS_MULTIPROC_DIR in the environment it answers for all processes that share it.

    Args:
        port: 0 takes a free one.
        address: Where to listen.

    Returns:
        Ends the answering.

    Raises:
        OSError: The port is taken.
    """
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's
    server, thread = start_http_server(port, address, registry)
    install()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
