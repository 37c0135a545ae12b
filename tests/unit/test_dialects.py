"""Events as bytes and back: FOLIO's two dialects, foreign records, bytes that are no event."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from folio_events import Event
from folio_events.dialects import (
    DIALECTS,
    decode,
    derived_id,
    event_id,
    read_headers,
    repeating_headers,
    validate_dialect,
    wire_headers,
)
from folio_events.exceptions import ConfigurationError, DecodingError, EncodingError
from folio_events.message import Headers, Record
from folio_events.outbox import make_row
from tests.unit.vectors import cases

ID = uuid.UUID("8a1c6b5e-0000-4000-8000-000000000001")
AT = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
Change = Callable[..., None]


def encode(event: Event, dialect: str) -> bytes:
    """The body that the outbox keeps of an event."""
    return make_row(event, dialect).payload


@pytest.fixture
def tenants(folio_events: Change) -> None:
    """Tenancy is on."""
    folio_events(TENANCY="folio")


def event(**changes: Any) -> Event:
    values: dict[str, Any] = {
        "id": ID,
        "topic": "inventory.item",
        "type": "UPDATE",
        "key": "7",
        "tenant": "diku",
        "occurred_at": AT,
        "payload": {"old": {"barcode": "1"}, "new": {"barcode": "2"}},
    }
    return Event(**{**values, **changes})


def record(value: Any, *, headers: Headers | None = None, **changes: Any) -> Record:
    body = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    values: dict[str, Any] = {
        "topic": "folio.diku.inventory.item",
        "partition": 2,
        "offset": 40,
        "key": b"7",
        "value": body,
        "headers": headers or [],
        "timestamp": 1_700_000_000_123,
    }
    return Record(**{**values, **changes})


# Writing


@pytest.mark.parametrize("case", cases("inventory_domain_event"))
def test_a_body_is_folios_inventory_domain_event(case: dict[str, Any]) -> None:
    """As mod-inventory-storage's own test asserts it; nulls are left out."""
    given, expected = case["input"], case["expected"]
    payload = {"old": given["old"], "new": given["new"]}

    body = json.loads(
        encode(
            event(
                type=given["factory"],
                tenant=given["tenant"],
                payload=payload,
                occurred_at=datetime.fromtimestamp(1_700_000_000, UTC),
            ),
            "inventory",
        )
    )

    assert body == expected["json"]
    assert set(expected["required"]) <= body.keys()
    assert not set(expected["absent"]) & body.keys()


def test_a_body_is_folios_circulation_domain_event() -> None:
    """Metadata around ``data``, which holds the payload as it is."""
    body = json.loads(encode(event(type="UPDATED"), "circulation"))

    assert body == {
        "id": str(ID),
        "type": "UPDATED",
        "tenant": "diku",
        "timestamp": 1_700_000_000_123,
        "data": {"old": {"barcode": "1"}, "new": {"barcode": "2"}},
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_tenancy_a_body_names_no_tenant(dialect: str) -> None:
    """There is no member rather than an empty one."""
    assert "tenant" not in json.loads(encode(event(tenant=None), dialect))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_payload_without_json_form_is_refused(dialect: str) -> None:
    """No half-written body comes out."""
    with pytest.raises(EncodingError, match="set has no JSON form"):
        encode(event(payload={"new": {"tags": {1}}}), dialect)


def test_a_payload_cannot_pose_as_metadata() -> None:
    """In the inventory dialect both share one object: the member is refused by name."""
    with pytest.raises(EncodingError, match="'eventId'"):
        encode(event(payload={"eventId": "x"}), "inventory")


def test_an_unknown_dialect_is_refused() -> None:
    """The error lists those that are known."""
    with pytest.raises(ConfigurationError, match=r"'avro'.*inventory, circulation"):
        validate_dialect("avro")
    assert validate_dialect("inventory") == "inventory"


def test_headers_that_many_messages_share(folio_events: Change) -> None:
    """CloudEvents in binary mode, and the tenant under FOLIO's name."""
    folio_events(GROUP="mod-inventory")

    assert repeating_headers("inventory.item", "UPDATE", "diku") == [
        ("ce_specversion", "1.0"),
        ("ce_type", "inventory.item.UPDATE"),
        ("ce_source", "/mod-inventory"),
        ("content-type", "application/json"),
        ("folio.tenantId", "diku"),
    ]
    assert "folio.tenantId" not in dict(repeating_headers("inventory.item", "UPDATE", None))


def test_the_source_can_be_named(folio_events: Change) -> None:
    """The setting SOURCE stands in for the group."""
    folio_events(SOURCE="https://library.example/inventory")

    assert (
        dict(repeating_headers("inventory.item", "UPDATE", "diku"))["ce_source"]
        == "https://library.example/inventory"
    )


def test_headers_of_a_message_are_put_together() -> None:
    """Shared ones first, then id, time in UTC and sequence, then its own."""
    moment = AT.astimezone(timezone(timedelta(hours=2)))

    headers = wire_headers(
        [("shared", b"1")], [("own", b"2")], event_id=str(ID), occurred_at=moment, sequence=12
    )

    assert headers == [
        ("shared", b"1"),
        ("ce_id", str(ID).encode()),
        ("ce_time", b"2023-11-14T22:13:20.123456+00:00"),
        ("ce_sequence", b"12"),
        ("own", b"2"),
    ]


# Reading


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_was_written_is_read_again(dialect: str) -> None:
    """Every field of an event comes back, with its place on the broker."""
    written = event()
    shared: Headers = [
        (name, value.encode())
        for name, value in repeating_headers(written.topic, written.type, written.tenant)
    ]
    headers = wire_headers(
        shared,
        [("x-okapi-request-id", b"12/items"), ("ce_causationid", b"abc")],
        event_id=str(ID),
        occurred_at=AT,
        sequence=1,
    )

    read = decode(record(encode(written, dialect), headers=headers))

    for name in ("id", "topic", "type", "key", "tenant", "occurred_at", "payload"):
        assert getattr(read, name) == getattr(written, name), name
    assert (read.request_id, read.cause_id) == ("12/items", "abc")
    assert (read.wire_topic, read.partition, read.offset) == ("folio.diku.inventory.item", 2, 40)


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("case", cases("circulation_domain_event"))
def test_folios_circulation_domain_events_are_read(case: dict[str, Any]) -> None:
    """As mod-circulation-storage's own test has them: data.old and data.new."""
    body = case["input"]["json"]

    read = decode(record(body))

    assert (read.type, read.tenant) == (body["type"], body["tenant"])
    assert read.old == body["data"].get("old")
    assert read.new == body["data"].get("new")
    assert read.occurred_at == datetime.fromtimestamp(body["timestamp"] / 1000, UTC)


@pytest.mark.usefixtures("tenants")
def test_inventorys_bulk_deletion_without_event_id_is_read() -> None:
    """FOLIO's raw events have neither eventId nor eventTs: the id comes from the place."""
    read = decode(record({"type": "DELETE", "tenant": "diku", "old": {"id": "1"}}))

    assert (read.type, read.old, read.new) == ("DELETE", {"id": "1"}, None)
    assert read.id == derived_id(record({}))
    assert read.occurred_at == datetime.fromtimestamp(1_700_000_000.123, UTC)


@pytest.mark.usefixtures("tenants")
def test_a_bare_payload_is_an_event_whole() -> None:
    """What speaks no dialect is the payload; type and time come from headers and record."""
    body = {"loanId": "1", "dueDate": "2026-01-01"}

    bare = decode(record(body, topic="folio.diku.circulation.LOAN_DUE_DATE_CHANGED"))
    named = decode(record(body, headers=[("ce_type", b"inventory.item.MOVED")]))

    assert (bare.payload, bare.type) == (body, "LOAN_DUE_DATE_CHANGED")
    assert named.type == "MOVED"


@pytest.mark.usefixtures("tenants")
def test_unknown_members_of_a_newer_event_are_kept() -> None:
    """A consumer is compatible with producers that say more."""
    read = decode(
        record({"eventId": str(ID), "type": "UPDATE", "new": {"a": 1}, "jobId": "j", "eventTs": 1})
    )

    assert read.payload == {"new": {"a": 1}, "jobId": "j"}


def test_circulation_data_that_is_no_object_is_kept() -> None:
    """A list or text stays readable under its own name."""
    body = {"id": str(ID), "type": "X", "timestamp": 1, "data": [1, 2]}

    assert decode(record(body)).payload == {"data": [1, 2]}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no body"),
        (b"", "no JSON"),
        (b"\xff\xfe", "no UTF-8"),
        (b"{", "no JSON"),
        (b"[1]", "a JSON list, not an object"),
        (b'"secret"', "a JSON str, not an object"),
        (b"null", "a JSON NoneType, not an object"),
        (b"[" * 100_000, "no JSON"),
        (b'{"eventId": "1", "old": "secret"}', "'old' is a str, not an object"),
        (b'{"eventId": "1", "new": [1]}', "'new' is a list, not an object"),
    ],
    ids=range(10),
)
def test_bytes_that_are_no_event_are_refused_without_showing_them(
    value: bytes | None, reason: str
) -> None:
    """The error says what is wrong and repeats nothing of the body."""
    with pytest.raises(DecodingError, match=reason) as caught:
        decode(record(value))

    assert "secret" not in str(caught.value)


# Ids


def test_the_id_is_looked_for_in_body_header_and_place() -> None:
    """The first of them that is a UUID counts."""
    one = record({})
    first, second = uuid.UUID(int=1), uuid.UUID(int=2)
    headers = {"ce_id": str(second)}

    assert event_id(one, headers, {"eventId": str(first)}) == first
    assert event_id(one, headers, {"id": str(first)}) == first
    assert event_id(one, headers, {"eventId": "not one", "id": 7}) == second
    assert event_id(one, headers, None) == second
    assert event_id(one, {"ce_id": "12"}, {}) == derived_id(one)


def test_a_bare_payloads_own_id_is_not_the_events() -> None:
    """A loan's id would make all events of the loan one."""
    read = decode(record({"id": str(ID), "status": "Open"}))

    assert read.id == derived_id(record({}))
    assert read.payload["id"] == str(ID)


def test_a_derived_id_is_stable_and_of_one_place() -> None:
    """The same record has the same id each time; any other place has another."""
    places = [
        record({}),
        record({}, offset=41),
        record({}, partition=3),
        record({}, topic="folio.diku.inventory.items"),
    ]

    assert derived_id(record({"other": "body"})) == derived_id(places[0])
    assert len({derived_id(place) for place in places}) == 4
    # Once released it cannot change: the inbox knows events by it.
    assert derived_id(places[0]) == uuid.UUID("59dc905a-4af7-5470-afa8-4c7233b11599")


# Tenants, types and times


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (
            [("folio.tenantId", b"header"), ("x-okapi-tenant", b"okapi")],
            {"tenant": "body"},
            "header",
        ),
        ([("FOLIO.TENANTID", b"header")], {"tenant": "body"}, "header"),
        ([("X-Okapi-Tenant", b"okapi")], {"tenant": "body"}, "okapi"),
        ([], {"tenant": "body"}, "body"),
        ([("folio.tenantId", b"")], {"tenant": "body"}, "body"),
        ([], {"tenant": 5}, "diku"),
        ([], {}, "diku"),
    ],
    ids=["header", "any case", "okapi", "body", "blank header", "no text", "topic"],
)
def test_who_owns_a_record(headers: Headers, body: dict[str, Any], expected: str) -> None:
    """FOLIO's header first, then Okapi's, the body, the topic."""
    assert decode(record({"a": 1, **body}, headers=headers)).tenant == expected


def test_a_tenant_collection_is_no_tenant(folio_events: Change) -> None:
    """Where header and body name nobody, the shared topic does not either."""
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")

    assert decode(record({"a": 1}, topic="folio.ALL.inventory.item")).tenant is None
    assert decode(record({"a": 1}, topic="folio.diku.inventory.item")).tenant == "diku"


def test_without_tenancy_nobody_owns_a_record() -> None:
    """Whatever foreign headers say."""
    read = decode(record({"tenant": "body"}, headers=[("folio.tenantId", b"x")], topic="folio.a.b"))

    assert (read.tenant, read.topic) == (None, "a.b")


def test_headers_are_read_whatever_their_case() -> None:
    """Of a repeated name the first value that is not blank counts, as in FOLIO's reader."""
    headers: Headers = [
        ("X-Okapi-Tenant", None),
        ("x-okapi-tenant", b" "),
        ("x-okapi-TENANT", b"diku"),
        ("x-okapi-tenant", b"other"),
        ("empty", None),
        ("bytes", b"a\xff"),
    ]

    assert read_headers(headers) == {
        "x-okapi-tenant": "diku",
        "empty": "",
        "bytes": "a\N{REPLACEMENT CHARACTER}",
    }


BY_RECORD = datetime.fromtimestamp(1_700_000_000.123, UTC)


@pytest.mark.parametrize(
    ("stamp", "ce_time", "expected"),
    [
        (1_600_000_000_000, b"2023-11-14T22:13:20.123456+00:00", AT),
        (1_600_000_000_000, b"2023-11-15T00:13:20.123456+02:00", AT),
        (1_600_000_000_000, b"2023-11-14T22:13:20", datetime.fromtimestamp(1_600_000_000, UTC)),
        (1_600_000_000_000, b"2023-13-99T99:99:99Z", datetime.fromtimestamp(1_600_000_000, UTC)),
        (1_600_000_000_000, b"yesterday", datetime.fromtimestamp(1_600_000_000, UTC)),
        ("2020-01-01", b"", BY_RECORD),
        (True, b"", BY_RECORD),
        (None, b"", BY_RECORD),
        (10**30, b"", BY_RECORD),
        (-(10**30), b"", BY_RECORD),
    ],
    ids=range(10),
)
def test_when_it_happened(stamp: object, ce_time: bytes, expected: datetime) -> None:
    """``ce_time`` with a zone, else the body's stamp, else the record's; never an error."""
    body = {"eventId": str(ID), "type": "UPDATE", "eventTs": stamp, "new": {}}

    assert decode(record(body, headers=[("ce_time", ce_time)])).occurred_at == expected


def test_a_record_without_any_time_is_of_1970() -> None:
    """Kafka says -1 where no timestamp is kept."""
    read = decode(record({"eventId": str(ID), "eventTs": 10**30}, timestamp=-1))

    assert read.occurred_at == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "ce_type", "expected"),
    [
        ("MOVED", b"inventory.item.UPDATE", "MOVED"),
        (5, b"inventory.item.UPDATE", "UPDATE"),
        (None, b"org.example.thing", "org.example.thing"),
        (None, b"", "item"),
    ],
)
@pytest.mark.usefixtures("tenants")
def test_the_type_is_looked_for_in_body_header_and_topic(
    kind: object, ce_type: bytes, expected: str
) -> None:
    """Types are an open set; a record without any has the topic's last segment."""
    body = {"eventId": str(ID), "type": kind, "new": {}}

    assert decode(record(body, headers=[("ce_type", ce_type)])).type == expected


def test_a_key_is_text_and_none_stays_none() -> None:
    """Bytes that are no UTF-8 do not stop a consumer."""
    assert decode(record({}, key=b"7")).key == "7"
    assert decode(record({}, key=None)).key is None
    assert decode(record({}, key=b"\xff")).key == "\N{REPLACEMENT CHARACTER}"
