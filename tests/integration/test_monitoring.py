"""Dashboard, alert rules and page against the metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import promql_parser
import pytest
import yaml
from django.test import RequestFactory
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from folio_events import RetryPolicy, publish, signals
from folio_events.brokers import get_broker
from folio_events.exceptions import BrokerUnavailableError
from folio_events.logs import MessageRef
from folio_events.metrics import EventsCollector, collector, metrics
from folio_events.metrics.process import ProcessMetrics
from folio_events.models import Process
from folio_events.processes import Heartbeat
from folio_events.relay import drain
from folio_events.signals import HandledEvent
from folio_events.tenants import tenant_context
from tests.note_topic import LOGICAL, Mood, NoteTopic, note_receiver
from tests.pages import ROOT, page

pytestmark = pytest.mark.django_db(transaction=True)

FOLDER = ROOT / "docs" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
QUERIES += [rule["expr"] for rule in RULES]
_METRIC = re.compile(r"\b(folio_events_\w+)(\{[^}]*\})?")


@pytest.fixture
def tenancy(folio_events: Callable[..., None]) -> None:
    """Before the broker: with other settings comes another one."""
    folio_events(TENANCY="folio", DEFAULT_TENANT="diku")


@pytest.fixture
def samples(tenancy: None, notes: NoteTopic) -> dict[str, set[str]]:
    """Every sample that the package has, by name, with its labels."""
    registry = CollectorRegistry()
    registry.register(EventsCollector(groups=["events"], lag=True))
    process = ProcessMetrics(registry)
    process.connect()
    try:
        note_receiver("one", Mood(1), retry=RetryPolicy(attempts=1))
        publish(LOGICAL, key="a", payload={"number": 1})
        drain()
        NoteTopic(notes.broker, wire=f"folio.diku.{LOGICAL}").consume()
        publish(LOGICAL, key="a", payload={"number": 2})
        drain()
        publish(LOGICAL, key="b", payload={"number": 3})
        _tell_the_rest()
        text = generate_latest(registry).decode()
    finally:
        process.disconnect()
    return {
        sample.name: {*sample.labels, "job", "instance"}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def family(sample: str) -> str:
    """The metric that a sample belongs to."""
    return re.sub(r"_(bucket|sum|count)$", "", sample)


def families(samples: dict[str, set[str]]) -> dict[str, set[str]]:
    """All metrics with their labels."""
    found: dict[str, set[str]] = {}
    for name, labels in samples.items():
        if not name.endswith("_created"):
            found.setdefault(family(name), set()).update(labels)
    return found


def _tell_the_rest() -> None:
    ref = MessageRef(topic="t")
    facts: dict[str, Any] = {
        "message": ref, "receiver": "one", "delivery_id": 1, "attempt": 2, "outbox_id": 1,
        "reason": "", "group": "g", "topic": "t", "partition": 0, "offset": 0, "fault": "missing",
        "failures": 3, "error_class": "E", "retry_at": None,
    }  # fmt: skip
    for signal in (
        signals.message_withheld, signals.relay_stalled, signals.delivery_failed,
        signals.delivery_dead, signals.delivery_resolved, signals.orphan_kept,
        signals.breaker_opened, signals.partition_stopped,
    ):  # fmt: skip
        signal.tell(using="default", **{name: facts[name] for name in signal.facts})
    event: Any = None
    signals.tell_handled("one", [HandledEvent(event, 1.0, 0.1)], using="default")


def test_every_metric_of_dashboard_and_alerts_exists(samples: dict[str, set[str]]) -> None:
    """And has the labels that are asked of it."""
    named = set()
    for query in QUERIES:
        promql_parser.parse(query.replace("$__rate_interval", "5m"))
        found = _METRIC.findall(query)
        assert found, query
        for name, labels in found:
            named.add(name)
            assert name in samples, f"{query}: {name} is no sample"
            assert set(re.findall(r"(\w+)=", labels)) <= samples[name], query
        wanted = {
            label.strip()
            for group in re.findall(r"by \(([^)]*)\)", query)
            for label in group.split(",")
        }
        assert wanted <= set().union(*(samples[name] for name, _ in found)), query
    # What nobody looks at need not be measured.
    assert {family(name) for name in named} == families(samples).keys()


def test_texts_of_alerts_name_labels_that_the_query_has(samples: dict[str, set[str]]) -> None:
    """Each rule has a severity, a summary and what to do."""
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        text = rule["annotations"]["summary"] + rule["annotations"]["description"]
        labels = set(re.findall(r"\$labels\.(\w+)", text))
        name, _ = _METRIC.findall(rule["expr"])[0]
        assert labels <= samples[name], rule["alert"]


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """Ids differ, no panel lies on another, and the data source is the reader's own."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    assert DASHBOARD["templating"]["list"][0]["name"] == "datasource"


def test_the_page_lists_every_metric_with_its_labels(samples: dict[str, set[str]]) -> None:
    """And none that is not there."""
    rows = re.findall(
        r"^\| `(folio_events_\w+)` \|([^|]*)\|", page("docs/howto/monitor.md").text, re.M
    )
    listed = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    found = {name: labels - {"job", "instance", "le"} for name, labels in families(samples).items()}
    assert listed == found


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    """With the suffixes that it wants."""
    accept = "application/openmetrics-text; version=1.0.0"
    response = metrics(RequestFactory().get("/metrics", headers={"Accept": accept}), lag=True)
    assert response["Content-Type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(response.content.decode())}
    assert "folio_events_broker_up" in names


def test_processes_count_while_their_heartbeat_is_recent(notes: NoteTopic) -> None:
    """Zero where there is none, so that an alarm can be set on it."""
    note_receiver("one")

    def alive(kind: str, name: str) -> float | None:
        registry = CollectorRegistry()
        registry.register(EventsCollector())
        labels = {"database": "default", "kind": kind, "name": name}
        return registry.get_sample_value("folio_events_processes_alive", labels)

    assert (alive("relay", "default"), alive("consumer", "events")) == (0, 0)
    Heartbeat(Process.Kind.TASK, "default", using="default").beat(Process.State.POLLING)
    Heartbeat(Process.Kind.CONSUMER, "events", using="default").beat(Process.State.WAITING)
    assert (alive("relay", "default"), alive("consumer", "events")) == (1, 1)


def test_the_lag_of_many_partitions_is_bounded(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest have a line each, the others one together."""
    monkeypatch.setattr(collector, "_MOST_PARTITIONS", 1)
    note_receiver("one", topic=LOGICAL)
    note_receiver("two", topic=LOGICAL, group="others")
    notes.put_all(["a", "b", "c"])
    notes.consume("others")
    notes.put_all(["d"])
    registry = CollectorRegistry()
    registry.register(EventsCollector(lag=True))

    def lag(group: str, topic: str, partition: str) -> float | None:
        labels = {
            "database": "default", "group": group, "topic": topic, "partition": partition, "tenant": "",
        }  # fmt: skip
        return registry.get_sample_value("folio_events_lag", labels)

    assert lag("events", notes.wire, "0") == 4
    assert lag("others", "other", "other") == 1


def test_a_broker_that_is_away_is_told_and_the_rest_too(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrape that fails would take all the other metrics away."""

    def away(_prefix: str = "") -> object:
        raise BrokerUnavailableError("nobody is there")

    monkeypatch.setattr(get_broker(), "list_topics", away)
    registry = CollectorRegistry()
    registry.register(EventsCollector(lag=True))
    assert registry.get_sample_value("folio_events_broker_up") == 0
    labels = {"database": "default"}
    assert registry.get_sample_value("folio_events_outbox_waiting", labels) == 0


def test_the_tenants_of_a_lag_are_told(notes: NoteTopic, folio_events: Callable[..., None]) -> None:
    """By the topic that they have."""
    folio_events(TENANCY="folio")
    note_receiver("one")
    with tenant_context("college"):
        publish(LOGICAL, key="a", payload={})
    drain()
    registry = CollectorRegistry()
    registry.register(EventsCollector(lag=True))
    found = [
        sample.labels["tenant"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "folio_events_lag" and sample.value == 1
    ]
    assert found == ["college"]
