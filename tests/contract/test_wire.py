"""What stands on the wire: FOLIO's bytes through a consumer, and ours as FOLIO and CloudEvents read them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event

from folio_events import Event, RejectEvent, publish, receiver, tenant_context
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.conf import get_settings
from folio_events.consumer import Consumer
from folio_events.dialects import DIALECTS
from folio_events.message import Record
from folio_events.models import Delivery
from folio_events.relay import drain
from folio_events.tenants import CallContext, call_context
from folio_events.topics import wire_topic
from tests.contract.stage import DEADLINE, Reader, Stage, message
from tests.contract.stage import publish as put
from tests.services import kafka_cluster
from tests.unit.vectors import cases

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "unit" / "vectors" / "partitions.csv"
TENANT = "diku"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: Any, only_test_receivers: None, folio_events: Callable[..., None]) -> Broker:
    """A broker with tenants on it, and no receivers but the test's."""
    request.getfixturevalue(f"{request.param}_broker")
    folio_events(TENANCY="folio")
    return get_broker()


def consume(
    bodies: Mapping[str, Sequence[bytes]], react: Callable[[Event], None] = lambda event: None
) -> list[Event]:
    """Put bodies into topics, by logical name, and let a receiver of each have them.

    Returns:
        What the receivers were given.
    """
    broker = get_broker()
    taken: list[Event] = []

    def receive(event: Event) -> None:
        taken.append(event)
        react(event)

    for topic, values in bodies.items():
        name = wire_topic(topic, TENANT)
        broker.create_topics([TopicSpec(name, 1, 1)])
        receiver(topic, name=topic, mode="after_commit", breaker=None)(receive)
        put(broker, [message(name, value, key=b"%d" % at) for at, value in enumerate(values)])
    consumer = Consumer(get_settings().GROUP)
    left = sum(map(len, bodies.values()))
    until = time.monotonic() + DEADLINE
    try:
        while left:
            assert time.monotonic() < until, f"{left} records did not come"
            left -= consumer.step(timeout=0.2)
    finally:
        consumer.close()
    return taken


def dead_letters() -> dict[bytes, Delivery]:
    """By the bytes that they keep."""
    assert set(Delivery.objects.values_list("state", flat=True)) <= {"dead"}
    return {bytes(found.payload or b""): found for found in Delivery.objects.all()}


def bytes_of(case: Any) -> bytes:
    return json.dumps(case["input"]["json"]).encode()


#: What an envelope has to have; a circulation event has other rules by its topic.
MEMBERS = {"tenant", "type", "timestamp", "data"}


def test_what_breaks_the_rules_of_its_dialect_is_a_dead_letter_with_its_bytes(
    broker: Broker,
) -> None:
    """Each invalid envelope of FOLIO's; what stands around them is received."""
    events = [case.values[0] for case in cases("event_envelope")]
    changes = [case.values[0] for case in cases("circulation_domain_event")]
    broken = [bytes_of(case) for case in events if not case["expected"]["valid"]]
    broken += [bytes_of(case) for case in changes if case["expected"].get("missing") in MEMBERS]
    fine = [bytes_of(case) for case in events if case["expected"]["valid"]]
    inventory = {"eventId": str(uuid.uuid4()), "type": "UPDATE", "tenant": TENANT}
    broken += [
        json.dumps({**inventory, **change}).encode()
        for change in ({"type": 5}, {"old": "text"}, {"new": [1]}, {"eventTs": "soon"})
    ]
    broken += [b"\xff\xfe", b"{", b"", b"[]", b"null"]
    fine += [json.dumps({**inventory, "new": {}, "newer": 1}).encode()]
    ids = {body.get("eventId") or body["id"] for body in map(json.loads, fine)}

    received = consume({"SOME_EVENT": [*broken, *fine]})

    assert len(broken) >= 15
    assert {(str(event.id), event.tenant) for event in received} == {(one, TENANT) for one in ids}
    letters = dead_letters()
    assert set(letters) == set(broken)
    assert {letter.error_class for letter in letters.values()} == {
        "folio_events.exceptions.DecodingError"
    }
    assert all(letter.error for letter in letters.values())


#: Source: mod-patron-blocks, ramls/events.
REQUIRED = {
    "ITEM_CHECKED_OUT": ["userId", "loanId", "dueDate"],
    "LOAN_DUE_DATE_CHANGED": ["userId", "loanId", "dueDate", "dueDateChangedByRecall"],
    "FEE_FINE_BALANCE_CHANGED": ["feeFineId", "balance"],
    "LOAN_RELATED_FEE_FINE_CLOSED": ["loanId"],
    "LOG_RECORD": ["logEventType"],
}


def check_payload(event: Event) -> None:
    """As a receiver of circulation's events would."""
    for name in REQUIRED.get(event.type, ["userId", "loanId"]):
        if name not in event.payload:
            raise RejectEvent(f"{name} is missing")
    for name in ("userId", "loanId", "feeFineId"):
        try:
            uuid.UUID(event.payload.get(name, str(event.id)))
        except ValueError as error:
            raise RejectEvent(f"{name} is no UUID") from error


def test_a_payload_that_breaks_its_contract_is_a_dead_letter_in_both_shapes(
    broker: Broker,
) -> None:
    """Bare as mod-patron-blocks has it, wrapped as mod-circulation has it; upstream loses them."""
    bodies: dict[str, list[bytes]] = {}
    broken: set[bytes] = set()
    fine: list[Any] = []
    for (case,) in (parameter.values for parameter in cases("circulation_payload")):
        kind, payload = case["input"]["event_type"], case["input"]["json"]
        head = {"id": case["id"], "type": kind, "tenant": TENANT, "timestamp": 1}
        both = [bytes_of(case), json.dumps({**head, "data": payload}).encode()]
        bodies.setdefault(f"circulation.{kind}", []).extend(both)
        if case["expected"]["valid"]:
            fine += [payload, payload]
        else:
            broken.update(both)

    received = consume(bodies, check_payload)

    letters = dead_letters()
    assert set(letters) == broken
    assert {letter.error_class for letter in letters.values()} == {
        "folio_events.exceptions.RejectEvent"
    }
    dead = set(Delivery.objects.values_list("event_id", flat=True))
    taken = [dict(event.payload) for event in received if event.id not in dead]
    assert sorted(map(json.dumps, taken)) == sorted(map(json.dumps, fine))


def test_an_unknown_type_is_acknowledged(broker: Broker) -> None:
    """A typed receiver does not get it, and nothing is left of it."""
    bodies = [json.dumps({"type": kind, "tenant": TENANT}).encode() for kind in ("X", "REINDEX")]
    receiver("inventory.item", types=["CREATE"], name="typed")(lambda event: 1 / 0)

    received = consume({"inventory.item": bodies})

    assert [event.type for event in received] == ["X", "REINDEX"]
    assert not Delivery.objects.exists()


# Ours, as others read it


@pytest.fixture
def sent(
    kafka_broker: Broker, only_test_receivers: None, folio_events: Callable[..., None]
) -> dict[str, tuple[Event, Record]]:
    """An event in each dialect, as it was published and as it stands in Kafka."""
    folio_events(TENANCY="folio", SOURCE="/mod-circulation-24.4.0")
    published: dict[str, Event] = {}
    cause = CallContext(tenant=TENANT, headers={"x-okapi-request-id": "r1"}, cause_id=uuid.uuid4())
    with tenant_context(TENANT), call_context(cause):
        for dialect in DIALECTS:
            published[dialect] = publish(
                f"circulation.{dialect}",
                key="k1",
                type="CREATE",
                payload={"new": {"id": "1", "näme": "Öl"}},
                dialect=dialect,
            )
    assert drain(broker=kafka_broker).published == len(DIALECTS)
    found: dict[str, tuple[Event, Record]] = {}
    for dialect, event in published.items():
        reader = Reader(kafka_broker, [wire_topic(event.topic, TENANT)])
        try:
            found[dialect] = (event, reader.read(1)[0])
        finally:
            reader.close()
    return found


def as_cloud_event(record: Record) -> Any:
    headers = {name: value or b"" for name, value in record.headers}
    assert len(headers) == len(record.headers), "a header came twice"
    return from_kafka_event(
        KafkaMessage(headers=headers, key=record.key, value=record.value or b"")
    )


@pytest.mark.kafka
def test_the_cloudevents_sdk_reads_every_message(sent: dict[str, tuple[Event, Record]]) -> None:
    """In binary mode, out of the box: attributes, extensions, and the body as data."""
    for dialect, (event, record) in sent.items():
        read = as_cloud_event(record)

        assert read.get_specversion() == "1.0"
        assert (read.get_id(), read.get_type()) == (str(event.id), f"circulation.{dialect}.CREATE")
        assert read.get_source() == "/mod-circulation-24.4.0"
        assert read.get_time() == event.occurred_at
        assert read.get_datacontenttype() == "application/json"
        assert read.get_data() == json.loads(record.value or b"")
        assert uuid.UUID(read.get_extension("causationid")).version == 4
        assert read.get_extension("partitionkey") == "k1"


@pytest.mark.kafka
def test_sequences_of_one_outbox_grow_as_text_too(sent: dict[str, tuple[Event, Record]]) -> None:
    """CloudEvents compares them letter by letter."""
    found = [as_cloud_event(record).get_extension("sequence") for _, record in sent.values()]

    assert found == sorted(found)
    assert len(set(found)) == len(found)
    assert {len(sequence) for sequence in found} == {19}


@pytest.mark.kafka
def test_every_message_has_the_headers_of_oep_41(sent: dict[str, tuple[Event, Record]]) -> None:
    """Id, type, source, time and specversion, as Open edX's consumers look for them."""
    for _, record in sent.values():
        names = {name for name, _ in record.headers}
        assert {"ce_id", "ce_type", "ce_source", "ce_time", "ce_specversion"} <= names


@pytest.mark.kafka
def test_a_folio_consumer_reads_the_body_alone(sent: dict[str, tuple[Event, Record]]) -> None:
    """Each dialect's own members, and the tenant, without a look at any CloudEvents header."""
    bodies = {dialect: json.loads(record.value or b"") for dialect, (_, record) in sent.items()}
    new = {"id": "1", "näme": "Öl"}

    body = bodies["inventory"]
    assert (body["type"], body["tenant"], body["new"]) == ("CREATE", TENANT, new)
    assert body["eventId"] == str(sent["inventory"][0].id)
    assert isinstance(body["eventTs"], int)
    body = bodies["circulation"]
    assert (body["type"], body["tenant"], body["data"]) == ("CREATED", TENANT, {"new": new})
    assert isinstance(body["timestamp"], int)
    body = bodies["pubsub"]
    assert set(body) == {"id", "eventType", "eventMetadata", "eventPayload"}
    assert body["eventMetadata"]["tenantId"] == TENANT
    assert body["eventMetadata"]["publishedBy"] == "mod-circulation-24.4.0"
    assert json.loads(body["eventPayload"]) == {"new": new}


@pytest.mark.kafka
def test_every_message_names_its_tenant_in_a_header(sent: dict[str, tuple[Event, Record]]) -> None:
    """``folio.tenantId``, in this spelling, beside what the call had."""
    for _, record in sent.values():
        headers = dict(record.headers)
        assert headers["folio.tenantId"] == TENANT.encode()
        assert headers["x-okapi-request-id"] == b"r1"


# Keys


def computed() -> list[dict[str, str]]:
    """What Kafka's Java client said of each key."""
    with VECTORS.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.kafka
@pytest.mark.parametrize("partitions", [6, 50])
def test_a_key_stands_where_javas_producer_puts_it(partitions: int, kafka_stage: Stage) -> None:
    """Every key of the vectors, as this project's producer sends it to a real Kafka."""
    topic = kafka_stage.topic(partitions, ending=f"of-{partitions}")
    expected = {bytes.fromhex(row["key"]): int(row[f"of {partitions}"]) for row in computed()}

    reports = put(kafka_stage.broker, [message(topic, key=key) for key in expected])

    found = dict(zip(expected, (report.partition for report in reports), strict=True))
    assert found == expected


@pytest.mark.kafka
def test_the_vectors_are_what_the_java_client_computes() -> None:
    """Run again where there is a Java compiler."""
    jars = kafka_cluster._cached_jars()
    if not (shutil.which("javac") and jars.exists()):
        pytest.skip("needs a JDK, and Kafka's jars as 'make test' fetches them")

    program = ROOT / "tests" / "contract" / "java" / "PartitionVectors.java"
    done = subprocess.run(
        ["java", "-cp", f"{jars}/*", program],
        capture_output=True,
        check=True,
        timeout=60,
    )

    assert done.stdout == VECTORS.read_bytes()
