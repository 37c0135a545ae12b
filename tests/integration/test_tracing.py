"""An event carries the trace of its request; relay and receivers add their spans to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.http import HttpResponse
from django.test import RequestFactory
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from folio_events import Event, RetryPolicy, publish, receiver, tracing
from folio_events.consumer import Consumer
from folio_events.models import Delivery, OutboxMessage
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from folio_events.tenants import CallContext, TenantMiddleware, call_context
from tests.faulty_broker import FaultyBroker
from tests.note_topic import LOGICAL, WIRE, Mood, NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = PARENT[:-1] + "0"


class Spans:
    """What a test's spans go to."""

    def __init__(self, provider: TracerProvider) -> None:
        self.exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("tests")

    def by_name(self) -> dict[str, ReadableSpan]:
        """Those that have ended; no two may have one name."""
        ended = self.exporter.get_finished_spans()
        found = {span.name: span for span in ended}
        assert len(found) == len(ended)
        return found


def spans_by(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    provider = TracerProvider(sampler=ParentBased(sampler))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    tracing.install()
    yield Spans(provider)
    tracing.uninstall()
    provider.shutdown()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Tracing is on, and every trace that begins here is kept."""
    yield from spans_by(ALWAYS_ON, monkeypatch)


@pytest.fixture
def no_spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Tracing is on, and no trace that begins here is kept."""
    yield from spans_by(ALWAYS_OFF, monkeypatch)


def own_headers() -> bytes:
    return bytes(OutboxMessage.objects.get().own_headers)


def consume_all() -> None:
    consumer = Consumer("events")
    while consumer.step(timeout=0):
        pass
    consumer.close()


def follow_one_event(spans: Spans) -> None:
    """Record, publish and handle one event, and look at the trace that comes of it."""
    seen: list[Event] = []
    receiver(LOGICAL, name="one")(seen.append)
    receiver(LOGICAL, name="two")(seen.append)
    with spans.tracer.start_as_current_span("request") as request:
        event = publish(LOGICAL, key="a", payload={"secret": "abracadabra"})
    cause = request.get_span_context()
    assert drain().published == 1
    found = spans.by_name()
    waiting, publishing = found[f"wait {LOGICAL}"], found[f"publish {LOGICAL}"]
    for span in (waiting, publishing):
        assert span.context is not None
        assert span.parent is not None
        assert (span.context.trace_id, span.parent.span_id) == (cause.trace_id, cause.span_id)
        assert span.attributes is not None
        assert span.attributes["messaging.message.id"] == str(event.id)
    # One begins where the other ends.
    assert waiting.start_time == int(event.occurred_at.timestamp() * 1e9)
    assert waiting.end_time == publishing.start_time
    assert publishing.end_time is not None
    assert publishing.start_time is not None
    assert publishing.end_time >= publishing.start_time
    assert publishing.kind is SpanKind.PRODUCER
    spans.exporter.clear()
    consume_all()
    assert len(seen) == 2
    assert seen[0].headers["traceparent"].split("-")[1:3] == [
        f"{cause.trace_id:032x}",
        f"{cause.span_id:016x}",
    ]
    processing = spans.exporter.get_finished_spans()
    assert [
        span.attributes and span.attributes["folio_events.receiver"] for span in processing
    ] == [
        "one",
        "two",
    ]
    for span in processing:
        assert span.kind is SpanKind.CONSUMER
        assert [link.context.span_id for link in span.links] == [cause.span_id]
        assert span.context is not None
        assert span.context.trace_id == cause.trace_id
        assert span.attributes is not None
        assert span.attributes["messaging.operation.type"] == "process"
        assert span.attributes["messaging.consumer.group.name"]
        assert "messaging.destination.partition.id" in span.attributes
        assert "abracadabra" not in span.to_json()


def test_one_trace_shows_request_outbox_publishing_and_receivers(
    spans: Spans, only_test_receivers: None
) -> None:
    """On the database's own broker."""
    follow_one_event(spans)


@pytest.mark.kafka
def test_one_trace_shows_them_on_kafka_too(
    spans: Spans, kafka_broker: object, only_test_receivers: None, folio_events: Callable[..., None]
) -> None:
    """With the offset, which is Kafka's own attribute."""
    seen: list[Event] = []
    from folio_events.conf import get_settings

    receiver(LOGICAL, name="one")(seen.append)
    with spans.tracer.start_as_current_span("request"):
        publish(LOGICAL, key="a", payload={})
    assert drain().published == 1
    consumer = Consumer(get_settings().GROUP)
    for _ in range(60):
        if consumer.step(timeout=0.5):
            break
    consumer.close()
    found = spans.by_name()
    for name in ("publish", "process"):
        attributes = found[f"{name} {LOGICAL}"].attributes
        assert attributes is not None
        assert attributes["messaging.system"] == "kafka"
        assert attributes["messaging.kafka.offset"] == 0
    cause = found["request"].context
    assert cause is not None
    assert found[f"process {LOGICAL}"].links[0].context.span_id == cause.span_id


def test_a_trace_that_is_not_sampled_goes_along_and_has_no_spans(
    no_spans: Spans, only_test_receivers: None
) -> None:
    """Who reads the event on its way knows that nobody keeps the trace."""
    seen: list[Event] = []
    receiver(LOGICAL, name="one")(seen.append)
    with no_spans.tracer.start_as_current_span("request"):
        publish(LOGICAL, key="a", payload={})
    drain()
    consume_all()
    assert not int(seen[0].headers["traceparent"][-2:], 16) & trace.TraceFlags.SAMPLED
    assert no_spans.exporter.get_finished_spans() == ()


def test_the_sender_decides_whether_receivers_are_traced(
    spans: Spans, no_spans: Spans, only_test_receivers: None
) -> None:
    """A trace that another process keeps goes on here, whatever is kept of what begins here."""
    receiver(LOGICAL, name="one")(lambda _event: None)
    with call_context(CallContext(headers={"traceparent": PARENT})):
        publish(LOGICAL, key="a", payload={})
    with call_context(CallContext(headers={"traceparent": NOT_SAMPLED})):
        publish(LOGICAL, key="b", payload={})
    drain()
    consume_all()
    assert set(no_spans.by_name()) == {
        f"{word} {LOGICAL}" for word in ("wait", "publish", "process")
    }


def test_a_failure_marks_the_span_and_shows_no_text_of_the_error(
    spans: Spans, notes: NoteTopic
) -> None:
    """The class of the error says enough; its text may hold what was in the payload."""
    note_receiver("one", Mood(1, error=ValueError("abracadabra")), retry=RetryPolicy(attempts=1))
    notes.put("a", 1)
    notes.consume()
    assert Delivery.objects.get().state == "dead"
    # In the batch, and again by itself.
    for span in spans.exporter.get_finished_spans():
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == "builtins.ValueError"
        assert "abracadabra" not in span.to_json()
    assert len(spans.exporter.get_finished_spans()) == 2


def test_a_retry_belongs_to_the_trace_of_the_event(spans: Spans, notes: NoteTopic) -> None:
    """However much later it is."""
    mood = Mood(1)
    note_receiver("one", mood, retry=RetryPolicy(attempts=2, backoff=0))
    notes.put("a", 1, headers=[("traceparent", PARENT.encode())])
    notes.consume()
    mood.bad.clear()
    spans.exporter.clear()
    retry_due()
    (span,) = spans.exporter.get_finished_spans()
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert span.status.status_code is StatusCode.UNSET


def test_a_replayed_event_has_a_trace_of_its_own_with_a_link(
    spans: Spans, notes: NoteTopic
) -> None:
    """Its first trace may have ended weeks ago."""
    from folio_events import running
    from folio_events.dialects import decode
    from folio_events.receivers import registry

    note_receiver("one")
    notes.put("a", 1, headers=[("traceparent", PARENT.encode())])
    (record,) = notes.broker.read([WIRE], latest=False).poll(10, 1)
    one = registry.get("one")
    assert one is not None
    running.run(one, decode(record), replay=3)
    (span,) = spans.exporter.get_finished_spans()
    assert span.parent is None
    assert [f"{link.context.span_id:016x}" for link in span.links] == [PARENT.split("-")[2]]


def test_what_a_receiver_records_belongs_to_its_span(
    spans: Spans, notes: NoteTopic, faulty_broker: FaultyBroker
) -> None:
    """So a chain of events is one trace."""
    note_receiver("one", lambda _event: publish("library.answer", key="a", payload={}))
    notes.put("a", 1, headers=[("traceparent", PARENT.encode())])
    notes.consume()
    (span,) = spans.exporter.get_finished_spans()
    assert span.context is not None
    assert f"-{span.context.span_id:016x}-01".encode() in own_headers()


class TestWithoutTracing:
    """No library is asked; who sends a trace finds it in the event."""

    def request(self, **headers: str) -> None:
        def view(_request: object) -> HttpResponse:
            publish(LOGICAL, key="a", payload={})
            return HttpResponse()

        TenantMiddleware(view)(RequestFactory().get("/", headers=headers))

    def test_the_trace_of_the_request_goes_along(self) -> None:
        """And its state, which other tools put there."""
        self.request(traceparent=PARENT, tracestate="vendor=1")
        assert f'["traceparent","{PARENT}"],["tracestate","vendor=1"]'.encode() in own_headers()

    @pytest.mark.parametrize(
        "wrong",
        [
            "",
            "nonsense",
            PARENT.upper(),
            "ff" + PARENT[2:],
            "00-" + "0" * 32 + PARENT[35:],
            PARENT[:36] + "0" * 16 + "-01",
            PARENT + "\r",
        ],
    )
    def test_what_is_no_trace_does_not(self, wrong: str) -> None:
        """A header that anybody may send is taken by its form only."""
        self.request(traceparent=wrong, tracestate="vendor=1")
        assert own_headers() == b""

    def test_a_state_that_is_none_is_left_out(self) -> None:
        """The trace itself is kept."""
        self.request(traceparent=PARENT, tracestate="x" * 513)
        assert own_headers() == f'[["traceparent","{PARENT}"]]'.encode()

    def test_it_goes_on_to_the_events_of_receivers(self, notes: NoteTopic) -> None:
        """Through the consumer, as the request id does."""
        note_receiver("one", lambda _event: publish("library.answer", key="a", payload={}))
        notes.put("a", 1, headers=[("traceparent", PARENT.encode())])
        notes.consume()
        assert PARENT.encode() in own_headers()


@pytest.mark.postgres
def test_events_of_triggers_carry_the_running_span(spans: Spans) -> None:
    """The context of the call reaches them, and with it the trace."""
    from django.apps import apps

    assert connection.vendor == "postgresql"
    form = "TriggerItem"
    with spans.tracer.start_as_current_span("request") as request:
        apps.get_model("triggerapp", form).objects.create(title="x")
    assert f"{request.get_span_context().span_id:016x}".encode() in own_headers()


def test_the_setting_installs_it(
    monkeypatch: pytest.MonkeyPatch,
    folio_events: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the app starts."""
    from django.apps import apps

    folio_events(TRACING=True)
    called: list[int] = []
    monkeypatch.setattr(tracing, "install", lambda: called.append(1))
    with caplog.at_level(logging.INFO):
        apps.get_app_config("folio_events").ready()
    assert called == [1]
