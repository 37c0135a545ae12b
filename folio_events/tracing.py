"""OpenTelemetry (extra ``tracing``): events carry their trace; spans of relay and receivers."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from folio_events import running, signals, tenants
from folio_events.conf import KAFKA_BROKER, get_settings
from folio_events.event import Event
from folio_events.exceptions import ConfigurationError
from folio_events.receivers import Receiver
from folio_events.sending import PublishedBatch, PublishedEvent

try:
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.trace import Link, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ConfigurationError(
        "TRACING in FOLIO_EVENTS needs OpenTelemetry: pip install 'folio-events[tracing]'."
    ) from error

_NAME = "folio_events"
#: The flags of a trace among the stored headers of a row, which are pairs in JSON.
_FLAGS = re.compile(rb'"traceparent", ?"[^"]*-([0-9a-f]{2})"')
_propagator = TraceContextTextMapPropagator()


def install() -> None:
    """Have events carry the trace of the running span, and make spans; again is the same as once."""
    tenants.ask_for_trace(_span_headers)
    running.wrap_runs(_processing)
    signals.events_published.connect(_record_published, dispatch_uid=_NAME, weak=False)


def uninstall() -> None:
    """Undo ``install()``."""
    tenants.ask_for_trace(None)
    running.wrap_runs(None)
    signals.events_published.disconnect(dispatch_uid=_NAME)
    _tracer.cache_clear()


def _span_headers() -> Mapping[str, str]:
    headers: dict[str, str] = {}
    if trace.get_current_span().get_span_context().is_valid:
        _propagator.inject(headers)
    return headers


def _context_of(headers: Mapping[str, str]) -> contexts.Context:
    """The trace that an event carries; an empty context where it has none."""
    return _propagator.extract(headers, contexts.Context())


@functools.cache
def _tracer() -> trace.Tracer:
    return trace.get_tracer(_NAME)


def _system() -> str:
    backend = get_settings().BROKER.get("BACKEND")
    return "kafka" if backend == KAFKA_BROKER else "folio_events"


def _record_published(batch: PublishedBatch, **_kwargs: object) -> None:
    """Make the two spans of each event whose trace is sampled: waiting, and publishing."""
    system = _system()
    for published in batch:
        # Most have no trace, or one that nobody keeps: nothing is parsed of them.
        found = _FLAGS.search(published.row.own_headers)
        if found and int(found[1], 16) & trace.TraceFlags.SAMPLED:
            _make_spans(published, system)


def _make_spans(published: PublishedEvent, system: str) -> None:
    row, tracer = published.row, _tracer()
    parent = _context_of(dict(json.loads(row.own_headers)))
    attributes: dict[str, str | int] = {
        "messaging.system": system,
        "messaging.destination.name": published.topic,
        "messaging.destination.template": row.topic,
        "messaging.message.id": row.event_id,
    }
    handed, acknowledged = (
        _nanoseconds(published.handed_at),
        _nanoseconds(published.acknowledged_at),
    )
    waiting = tracer.start_span(
        f"wait {row.topic}",
        parent,
        start_time=_nanoseconds(row.occurred_at.timestamp()),
        attributes=attributes,
    )
    waiting.end(handed)
    attributes |= {
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.partition.id": str(published.partition),
    }
    if system == "kafka":
        attributes["messaging.kafka.offset"] = published.offset
    publishing = tracer.start_span(
        f"publish {row.topic}",
        parent,
        kind=SpanKind.PRODUCER,
        start_time=handed,
        attributes=attributes,
    )
    publishing.end(acknowledged)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


@contextmanager
def _processing(receiver: Receiver, event: Event, replay: int) -> Iterator[None]:
    """The span of one receiver at one event, linked to the span that recorded the event.

    It belongs to the trace of the event, so that one decision of sampling holds for all of it;
    in a replay, perhaps weeks later, to one of its own.
    """
    origin = _context_of(event.headers)
    cause = trace.get_current_span(origin).get_span_context()
    if cause.is_valid and not cause.trace_flags.sampled:
        # What the receiver records is of that trace all the same.
        token = contexts.attach(origin)
        try:
            yield
        finally:
            contexts.detach(token)
        return
    system = _system()
    attributes: dict[str, Any] = {
        "messaging.system": system,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": event.wire_topic or event.topic,
        "messaging.destination.template": event.topic,
        "messaging.message.id": str(event.id),
        "messaging.consumer.group.name": receiver.group,
        "folio_events.receiver": receiver.name,
    }
    if event.partition is not None:
        attributes["messaging.destination.partition.id"] = str(event.partition)
    if system == "kafka" and event.offset is not None:
        attributes["messaging.kafka.offset"] = event.offset
    with _tracer().start_as_current_span(
        f"process {event.topic}",
        contexts.Context() if replay else origin,
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        links=[Link(cause)] if cause.is_valid else [],
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except Exception as error:
            # Its class only: its text may hold what was in the payload.
            name = f"{type(error).__module__}.{type(error).__qualname__}"
            span.set_attribute("error.type", name)
            span.set_status(Status(StatusCode.ERROR, name))
            raise
