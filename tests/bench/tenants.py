"""How long the other tenants wait while one of them has a burst, through real processes."""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.test.utils import override_settings

from folio_events import publish, tenant_context
from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.topics import wire_topic
from tests.bench.harness import Bench, Figure, Sample, percentile
from tests.bench.receivers import LATENCY_GROUP
from tests.bench.stage import OUTBOX, empty, execute, program, wait_until

TOPIC, PARTITIONS = "bench.item", 6
BURSTING, QUIET = "bursting", ("quiet-a", "quiet-b", "quiet-c")
#: Events a second of the quiet tenants together.
RATE = 30

_BURST = """
INSERT INTO folio_events_outboxmessage
    (event_id, topic, event_type, tenant, key, payload, repeating_headers, own_headers,
     occurred_at)
SELECT id, %s, 'UPDATE', %s, 'key-' || n %% 100,
       convert_to('{"eventId":"' || id || '","eventTs":1790000000000,"type":"UPDATE","tenant":"'
                  || %s || '","new":{"id":' || n || ',"title":"' || repeat('x', 390) || '"}}',
                  'UTF8'),
       %s, '', now()
FROM (SELECT gen_random_uuid() AS id, n FROM generate_series(1, %s) AS n) AS numbered
"""
# Both commits by PostgreSQL's own clock.
_DELAYS = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(e.xmin) - pg_xact_commit_timestamp(o.xmin))
FROM bench_effect e JOIN folio_events_outboxmessage o ON o.event_id = e.event_id
WHERE o.tenant <> %s AND o.id > %s
"""


def _burst(count: int) -> None:
    headers = json.dumps([("ce_type", f"{TOPIC}.UPDATE"), ("folio.tenantId", BURSTING)])
    execute(_BURST, TOPIC, BURSTING, BURSTING, headers.encode(), count)


def _record(number: int) -> None:
    with tenant_context(QUIET[number % len(QUIET)]):
        publish(TOPIC, key=str(number), payload={"number": number})


def _arrived(count: int) -> bool:
    return bool(execute("SELECT count(*) FROM bench_effect")[0][0] >= count)


@contextmanager
def _library(collection: str | None) -> Iterator[None]:
    """Relay and consumer of four tenants, on a topic for all or one for each."""
    keys = {"TENANCY": "folio", "TENANT_COLLECTION": collection, "WAKE_UP": False}
    with override_settings(FOLIO_EVENTS={**settings.FOLIO_EVENTS, **keys}):
        names = {wire_topic(TOPIC, tenant) for tenant in (BURSTING, *QUIET)}
        get_broker().create_topics([TopicSpec(name, PARTITIONS, 1) for name in names])
        empty(*OUTBOX, "bench_effect", "folio_events_inboxentry")
        with (
            program("django", "relay_events", **keys),
            program("django", "consume_events", "--group", LATENCY_GROUP, **keys),
        ):
            for number in range(len(QUIET)):
                _record(number)
            wait_until(lambda: _arrived(len(QUIET)), "the first events")
            yield


def _measure(name: str, collection: str | None, burst: int) -> Sample:
    with _library(collection):
        start = execute("SELECT max(id) FROM folio_events_outboxmessage")[0][0]
        began = time.perf_counter()
        if burst:
            _burst(burst)
        recorded, over = 0, False
        while not over:
            _record(recorded)
            recorded += 1
            time.sleep(max(began + recorded / RATE - time.perf_counter(), 0))
            # Once a second: to count is work for the database that is measured.
            if recorded % RATE == 0 and recorded >= 3 * RATE:
                over = _arrived(burst + recorded // 2)
        took = time.perf_counter() - began
        wait_until(lambda: _arrived(len(QUIET) + burst + recorded), "all deliveries", 300)
        delays = [float(delay) for (delay,) in execute(_DELAYS, BURSTING, start)]
    return {
        f"{name} p50": statistics.median(delays),
        f"{name} p99": percentile(delays, 0.99),
        f"{name} most": max(delays),
        f"{name} took": took,
    }


def run(bench: Bench) -> None:
    """Measure a burst on a collection's topic, on topics of their own, and no burst."""
    burst = bench.size(100_000, 5_000)
    forms = [
        functools.partial(_measure, "collection", "ALL", burst),
        functools.partial(_measure, "topics", None, burst),
        functools.partial(_measure, "calm", "ALL", 0),
    ]
    what = f"delay of other tenants in a burst of {burst:,}"
    figures = [
        Figure(
            f"{what}, one topic for all, {share}",
            "s",
            f"collection {share}",
            f"topics {share}",
            None,
            "a topic for each tenant",
        )
        for share in ("p50", "p99", "most")
    ]
    figures += [
        Figure("delay of tenants without a burst, one topic for all, p50", "s", "calm p50"),
        Figure(
            f"from a burst of {burst:,} to its last receiver, one topic for all",
            "s",
            "collection took",
            "topics took",
            None,
            "a topic for each tenant",
        ),
    ]
    bench.measure(forms, figures)
