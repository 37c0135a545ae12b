"""What a process counts: fed by signals, a batch at a time, and answered on a port of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from folio_events import RetryPolicy, deliveries, metrics, publish, signals
from folio_events.management.metrics_port import metrics_port
from folio_events.metrics.process import BatchHistogram, ProcessMetrics
from folio_events.models import Delivery
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from tests.faulty_broker import FaultyBroker
from tests.note_topic import LOGICAL, Mood, NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)
Value = Callable[..., float | None]


@pytest.fixture
def value() -> Iterator[Value]:
    """Ask for a sample of what this process has counted in the test."""
    registry = CollectorRegistry()
    counted = ProcessMetrics(registry)
    counted.connect()
    yield lambda name, **labels: registry.get_sample_value(f"folio_events_{name}", labels)
    counted.disconnect()


def test_what_is_published_is_counted_and_its_delays_told_apart(
    value: Value, faulty_broker: FaultyBroker
) -> None:
    """The wait in the outbox and the way to the broker add up to the latency of publishing."""
    publish(LOGICAL, key="a", payload={})
    publish(LOGICAL, key="b", payload={})
    drain()
    assert value("published_total", topic=LOGICAL) == 2
    wait, way, whole = (
        value(f"{name}_seconds_sum") for name in ("outbox_wait", "publish", "publish_latency")
    )
    assert wait is not None
    assert way is not None
    assert whole == pytest.approx(wait + way)
    for name in ("outbox_wait", "publish", "publish_latency"):
        assert value(f"{name}_seconds_count") == 2


def test_receivers_are_counted_with_their_runs_and_the_delay_before_them(
    value: Value, notes: NoteTopic
) -> None:
    """By receiver; the third part of the delay is that of the consumer."""
    note_receiver("one")
    notes.put_all(["a", "b"])
    notes.consume()
    assert value("handled_total", receiver="one") == 2
    assert value("handler_seconds_count", receiver="one") == 2
    assert value("receive_delay_seconds_count", receiver="one") == 2


def test_failures_retries_and_dead_letters_are_counted_by_receiver(
    value: Value, notes: NoteTopic
) -> None:
    """A first failure is no retry, and the pause before a retry no delay of the consumer."""
    mood = Mood(1)
    note_receiver("one", mood, retry=RetryPolicy(attempts=2, backoff=0))
    notes.put("a", 1)
    notes.consume()
    assert value("failed_total", receiver="one") == 1
    assert value("retries_total", receiver="one", outcome="failed") is None
    retry_due()
    assert value("failed_total", receiver="one") == 2
    assert value("retries_total", receiver="one", outcome="failed") == 1
    assert value("dead_letters_total", receiver="one") == 1
    mood.bad.clear()
    deliveries.retry([Delivery.objects.get().pk])
    retry_due()
    assert value("retries_total", receiver="one", outcome="succeeded") == 1
    assert value("handled_total", receiver="one") == 1
    assert value("receive_delay_seconds_count", receiver="one") is None


def test_withheld_messages_and_open_breakers_are_counted(
    value: Value, faulty_broker: FaultyBroker
) -> None:
    """Beside the gauges of what is so now: what has happened since is seen too."""
    publish(LOGICAL, key="a", payload={})
    faulty_broker.refuses = lambda _message: True
    drain()
    assert value("withheld_total", topic=LOGICAL) == 1
    signals.breaker_opened.tell(using="default", receiver="one", failures=3)
    signals.relay_stalled.tell(using="default", reason="gone")
    signals.partition_stopped.tell(
        using="default", group="g", topic="t", partition=0, offset=0, reason="gone"
    )
    assert value("breaker_opened_total", receiver="one") == 1
    assert value("relay_stalled_total") == 1
    assert value("partitions_stopped_total", group="g") == 1


@pytest.mark.parametrize(
    "amounts",
    [[], [0.0], [0.005], [0.02, 0.02, 7.0], [99_999.0], [0.004, 0.005, 0.0051, 10.0, 3601.0]],
    ids=str,
)
def test_many_observations_at_once_are_the_same_as_one_by_one(amounts: list[float]) -> None:
    """In each bucket, the sum and the count."""
    one, other = CollectorRegistry(), CollectorRegistry()
    buckets = (0.005, 0.1, 10, 3600)
    BatchHistogram("h", "text", registry=one, buckets=buckets).observe_many(amounts)
    singly = BatchHistogram("h", "text", registry=other, buckets=buckets)
    for amount in amounts:
        singly.observe(amount)

    def without_times(registry: CollectorRegistry) -> str:
        return re.sub(r"(?m)^h_created .*", "", generate_latest(registry).decode())

    assert without_times(one) == without_times(other)


def test_a_daemon_answers_on_its_port_while_it_runs(faulty_broker: FaultyBroker) -> None:
    """Prometheus parses it; after the end nobody is at the port."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        with metrics_port(port):
            publish(LOGICAL, key="a", payload={})
            drain()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                found = {
                    family.name for family in text_string_to_metric_families(page.read().decode())
                }
            assert {"folio_events_published", "folio_events_publish_latency_seconds"} <= found
            with pytest.raises(CommandError, match=f"Port {port} cannot be listened to"):
                call_command("relay_events", "--metrics-port", str(port))
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
    finally:
        metrics.uninstall()
    assert not signals.events_published.receivers


def test_without_the_extra_everything_works_and_the_option_says_what_to_install() -> None:
    """A process in which prometheus_client and OpenTelemetry cannot be imported."""
    program = """
import sys
sys.modules["prometheus_client"] = None
sys.modules["opentelemetry"] = None
import django
django.setup()
import folio_events.relay, folio_events.consumer, folio_events.tasks, folio_events.probes
from folio_events import signals
assert not signals.events_published.receivers and not signals.events_handled.receivers
from django.core.management import CommandError, call_command
for command in ("relay_events", "consume_events"):
    try:
        call_command(command, "--metrics-port", "0")
    except CommandError as error:
        assert "pip install 'folio-events[metrics]'" in str(error), error
    else:
        raise AssertionError
from folio_events.exceptions import ConfigurationError
try:
    import folio_events.tracing
except ConfigurationError as error:
    assert "pip install 'folio-events[tracing]'" in str(error), error
else:
    raise AssertionError
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_processes_that_share_a_folder_are_answered_for_together(tmp_path: Path) -> None:
    """As Celery's prefork workers: children count, their parent answers."""
    program = """
import os, socket, sys, urllib.request
import django
django.setup()
from folio_events import signals
from folio_events.metrics import install, serve
for number in (1, 2):
    child = os.fork()
    if not child:
        install()
        handled = [signals.HandledEvent(None, None, seconds) for seconds in (0.001, 0.2)]
        signals.tell_handled("one", handled, using="default")
        os._exit(0)
    os.waitpid(child, 0)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
stop = serve(port)
with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
    sys.stdout.write(page.read().decode())
stop()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(done.stdout)
        for sample in family.samples
    }
    assert found["folio_events_handled_total", None] == 4
    assert found["folio_events_handler_seconds_bucket", "0.001"] == 2
    assert found["folio_events_handler_seconds_count", None] == 4
