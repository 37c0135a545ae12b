"""Events as bytes and back: FOLIO's dialects, foreign records, bytes that are no event."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from folio_events import Event, receiver
from folio_events.dialects import (
    DIALECTS,
    decode,
    derived_id,
    event_type,
    read_headers,
    repeating_headers,
    validate_dialect,
    wire_headers,
)
from folio_events.exceptions import (
    ConfigurationError,
    DecodingError,
    EncodingError,
    OrphanError,
)
from folio_events.message import Headers, Record
from folio_events.outbox import make_row
from folio_events.receivers import registry
from tests.unit.vectors import cases

ID = uuid.UUID("8a1c6b5e-0000-4000-8000-000000000001")
AT = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
Change = Callable[..., None]


def encode(event: Event, dialect: str) -> bytes:
    """The body that the outbox keeps of an event."""
    body = make_row(event, dialect).payload
    assert body is not None
    return body


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


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("case", cases("inventory_domain_event"))
def test_a_body_is_folios_inventory_domain_event(case: dict[str, Any]) -> None:
    """As mod-inventory-storage's own test asserts it; nulls are left out, headers are kept."""
    given, expected = case["input"], case["expected"]
    if "json" not in expected:
        headers: Headers = [(n, v.encode()) for n, v in expected.get("headers_include", {}).items()]
        body = {"eventId": str(ID), "type": expected["type"], "tenant": "diku"}
        read = decode(record(body, headers=headers))
        assert read.type == expected["type"]
        assert expected.get("headers_include", {}).items() <= read.headers.items()
        return

    body = json.loads(
        encode(
            event(
                type=given["factory"],
                tenant=given["tenant"],
                payload={"old": given["old"], "new": given["new"]},
                occurred_at=datetime.fromtimestamp(1_700_000_000, UTC),
            ),
            "inventory",
        )
    )

    # Those of bulk deletes have neither id nor time upstream; ours always have.
    assert {name: body[name] for name in expected["json"]} == expected["json"]
    assert set(expected.get("required", ())) <= body.keys()
    assert not set(expected.get("absent", ())) & body.keys() - {"eventId", "eventTs"}


def test_a_body_is_folios_circulation_domain_event() -> None:
    """Metadata around ``data``, which holds the payload as it is."""
    body = json.loads(encode(event(type="UPDATE"), "circulation"))

    assert body == {
        "id": str(ID),
        "type": "UPDATED",
        "tenant": "diku",
        "timestamp": 1_700_000_000_123,
        "data": {"old": {"barcode": "1"}, "new": {"barcode": "2"}},
    }


def test_a_body_is_mod_pubsubs_event() -> None:
    """The payload is JSON text inside JSON; no member is there that upstream's schema refuses."""
    body = json.loads(encode(event(type="SOURCE_RECORD_CREATED"), "pubsub"))

    assert json.loads(body.pop("eventPayload")) == event().payload
    assert body == {
        "id": str(ID),
        "eventType": "SOURCE_RECORD_CREATED",
        "eventMetadata": {
            "tenantId": "diku",
            "eventTTL": 1,
            "publishedBy": "events",
            "createdDate": "2023-11-14T22:13:20.123456+00:00",
        },
    }


@pytest.mark.parametrize(
    ("source", "publisher"), [("", "mod-x-1.2.3"), ("/mod-y", "mod-y"), ("https://a.b/c", None)]
)
def test_a_pubsub_event_says_who_published_it(
    source: str, publisher: str | None, folio_events: Change
) -> None:
    """The setting SOURCE, else the group."""
    folio_events(SOURCE=source, GROUP="mod-x-1.2.3")

    metadata = json.loads(encode(event(), "pubsub"))["eventMetadata"]

    assert metadata["publishedBy"] == (publisher or source)


@pytest.mark.parametrize("dialect", ["inventory", "circulation"])
def test_without_tenancy_a_body_names_no_tenant(dialect: str) -> None:
    """There is no member rather than an empty one."""
    assert "tenant" not in json.loads(encode(event(tenant=None), dialect))


def test_without_tenancy_there_is_no_pubsub_event() -> None:
    """Upstream's schema requires a tenant."""
    with pytest.raises(EncodingError, match="the pubsub dialect needs a tenant"):
        encode(event(tenant=None), "pubsub")


# Types

TYPES = {
    "CREATE": ("CREATE", "CREATED"),
    "UPDATE": ("UPDATE", "UPDATED"),
    "MOVE": ("MOVE", "MOVED"),
    "DELETE": ("DELETE", "DELETED"),
    "DELETE_ALL": ("DELETE_ALL", "ALL_DELETED"),
    "REINDEX": ("REINDEX", "REINDEX"),
    "ITERATE": ("ITERATE", "ITERATE"),
    "ITEM_CHECKED_OUT": ("ITEM_CHECKED_OUT", "ITEM_CHECKED_OUT"),
    "Renewed": ("Renewed", "Renewed"),
}


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("kind", TYPES)
def test_a_type_has_a_word_in_each_dialect_and_one_in_code(kind: str) -> None:
    """Written in the dialect's own word, read as one; any other name is the same everywhere."""
    words = dict(zip(("inventory", "circulation"), TYPES[kind], strict=True))
    words["pubsub"] = words["circulation"]

    for dialect, word in words.items():
        body = encode(event(type=kind), dialect)
        assert json.loads(body)["eventType" if dialect == "pubsub" else "type"] == word
        assert decode(record(body)).type == kind


@pytest.mark.parametrize(
    ("word", "kind"),
    [("created", "CREATE"), ("Moved", "MOVE"), ("all_deleted", "DELETE_ALL"), ("Edit", "Edit")],
)
def test_the_words_of_a_change_count_in_any_letter_case(word: str, kind: str) -> None:
    """What is no such word stays as it is."""
    assert event_type(word) == kind


@pytest.mark.usefixtures("tenants")
def test_a_receiver_may_name_types_in_the_words_of_any_dialect() -> None:
    """It gets the events of each dialect, whichever word it uses."""
    for kind in ("CREATE", "CREATED", "created"):
        receiver("inventory.item", types=[kind], name=kind)(lambda event: None)
    created = [decode(record(encode(event(type="CREATE"), dialect))) for dialect in DIALECTS]
    deleted = [decode(record(encode(event(type="DELETE"), dialect))) for dialect in DIALECTS]

    for kind in ("CREATE", "CREATED", "created"):
        found = registry.get(kind)
        assert found is not None
        assert [found.wants(one) for one in created] == [True] * 3
        assert [found.wants(one) for one in deleted] == [False] * 3


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("case", cases("consumer_event_type"))
def test_an_unknown_type_is_no_error_and_reaches_no_typed_receiver(case: dict[str, Any]) -> None:
    """mod-audit processes three types of inventory's and acknowledges the others."""
    known = ["CREATE", "UPDATE", "DELETE"]
    receiver("inventory.item", types=known, name="audit")(lambda event: None)

    read = decode(record({"eventId": str(ID), "type": case["input"]["type"], "tenant": "diku"}))

    found = registry.get("audit")
    assert found is not None
    assert found.wants(read) == (case["expected"]["action"] == "process")
    assert read.type == case["input"]["type"]


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
        ("ce_sequence", b"0000000000000000012"),
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


def of_tenant(body: dict[str, Any], topic: str) -> Record:
    """A body in a topic of the tenant that it names."""
    metadata = body.get("eventMetadata")
    named = body.get("tenant") or (isinstance(metadata, dict) and metadata.get("tenantId"))
    return record(body, topic=f"folio.{named or 'diku'}.{topic}")


#: What the envelope itself has to have; other rules of a case are its receiver's.
CIRCULATION = {"type", "tenant", "timestamp", "data"}


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("case", cases("circulation_domain_event"))
def test_folios_circulation_domain_events_are_read(case: dict[str, Any]) -> None:
    """As mod-circulation's reader does: data.old and data.new, and nothing required is missing."""
    body, expected = case["input"]["json"], case["expected"]
    incoming = of_tenant(body, "circulation.rules")
    if expected.get("missing") in CIRCULATION:
        with pytest.raises(DecodingError, match=f"'{expected['missing']}' is missing"):
            decode(incoming)
        return

    read = decode(incoming)

    assert read.type == body["type"].removesuffix("D")
    assert read.tenant == body["tenant"]
    assert (read.old, read.new) == (body["data"].get("old"), body["data"].get("new"))
    assert read.occurred_at == datetime.fromtimestamp(body["timestamp"] / 1000, UTC)
    assert decode(of_tenant(body, "circulation.rules")).id == read.id


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("case", cases("event_envelope"))
def test_mod_pubsubs_events_are_read(case: dict[str, Any]) -> None:
    """As its schema says: what is missing or not known there is refused by name."""
    body, expected = case["input"]["json"], case["expected"]
    incoming = of_tenant(body, "SOME_EVENT")
    if not expected["valid"]:
        missing = expected.get("missing")
        reason = f"'{missing}' is missing" if missing else "takes no members|, not "
        with pytest.raises(DecodingError, match=reason):
            decode(incoming)
        return

    read = decode(incoming)

    assert (read.id, read.type) == (uuid.UUID(body["id"]), body["eventType"])
    assert read.tenant == expected.get("tenant", body["eventMetadata"]["tenantId"])
    assert read.metadata == body["eventMetadata"]
    assert read.metadata.get("correlationId") == expected.get("correlation_id")
    assert read.payload == json.loads(body.get("eventPayload", "{}"))


def pubsub(payload: Any = None, **metadata: Any) -> dict[str, Any]:
    """An Event of mod-pubsub."""
    known = {"tenantId": "diku", "eventTTL": 1, "publishedBy": "mod-x-1.0.0"}
    body = {"id": str(ID), "eventType": "DI_COMPLETED", "eventMetadata": {**known, **metadata}}
    return body if payload is None else {**body, "eventPayload": payload}


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ('{"jobExecutionId": "1"}', {"jobExecutionId": "1"}),
        ("b2e4", {"eventPayload": "b2e4"}),
        ("12", {"eventPayload": "12"}),
        ("[1]", {"eventPayload": "[1]"}),
        ('"text"', {"eventPayload": '"text"'}),
        ("{", {"eventPayload": "{"}),
        ("[" * 100_000, {"eventPayload": "[" * 100_000}),
        ("", {}),
    ],
    ids=range(8),
)
def test_a_payload_inside_json_that_is_no_object_stays_text(
    text: str, payload: dict[str, Any]
) -> None:
    """Such as the bare job id of DI_JOB_CANCELLED."""
    assert decode(record(pubsub(text))).payload == payload


@pytest.mark.usefixtures("tenants")
def test_a_change_inside_a_pubsub_event_has_old_and_new() -> None:
    """As source record storage sends its records; the event's own name is its type."""
    change = {"old": {"id": "1", "state": "OLD"}, "new": {"id": "1", "state": "ACTUAL"}}
    body = {**pubsub(json.dumps(change)), "eventType": "SOURCE_RECORD_UPDATED"}

    read = decode(record(body, headers=[("folio.srs.recordType", b"MARC_BIB")]))

    assert (read.old, read.new) == (change["old"], change["new"])
    assert (read.type, read.headers["folio.srs.recordtype"]) == (
        "SOURCE_RECORD_UPDATED",
        "MARC_BIB",
    )


@pytest.mark.usefixtures("tenants")
def test_a_pubsub_event_happened_when_it_was_created() -> None:
    """``createdDate`` counts where no header is more exact; what is no time does not."""
    assert decode(record(pubsub(createdDate="2023-11-14T22:13:20.123456Z"))).occurred_at == AT
    for other in ("yesterday", 5, None):
        assert decode(record(pubsub(createdDate=other))).occurred_at == BY_RECORD


@pytest.mark.usefixtures("tenants")
def test_entities_links_events_are_told_apart() -> None:
    """``id`` there is the authority's: its second event is not the first one come twice."""
    body = {"id": str(ID), "type": "UPDATE", "tenant": "diku", "ts": "1700000000000"}
    change = {"old": {"id": str(ID)}, "new": {"id": str(ID)}}

    first = decode(record({**body, **change}, topic="folio.diku.authorities.authority"))
    second = decode(record({**body, **change}, topic="folio.diku.authorities.authority", offset=41))

    assert first.id != second.id
    assert (first.old, first.new) == (change["old"], change["new"])
    assert first.occurred_at == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.usefixtures("tenants")
def test_users_events_are_read() -> None:
    """mod-users sends its users in circulation's dialect."""
    user = {"id": str(ID), "username": "jane"}
    body = {"id": str(uuid.UUID(int=9)), "type": "CREATED", "tenant": "diku", "timestamp": 1}

    read = decode(record({**body, "data": {"new": user}}, topic="folio.diku.users.users"))

    assert (read.id, read.type, read.new, read.old) == (uuid.UUID(int=9), "CREATE", user, None)


LOAN = {"userId": str(ID), "loanId": str(uuid.UUID(int=2)), "dueDate": "2030-01-01T00:00:00.000Z"}


@pytest.mark.usefixtures("tenants")
def test_both_shapes_of_a_circulation_event_give_one_payload() -> None:
    """mod-circulation wraps it, mod-patron-blocks expects it bare: a receiver sees no difference."""
    topic = "folio.diku.circulation.ITEM_CHECKED_OUT"
    head = {"id": str(ID), "type": "ITEM_CHECKED_OUT", "tenant": "diku", "timestamp": 1}

    bare = decode(record(LOAN, topic=topic))
    wrapped = decode(record({**head, "data": LOAN}, topic=topic))

    assert bare.payload == wrapped.payload == LOAN
    assert bare.type == wrapped.type == "ITEM_CHECKED_OUT"
    assert bare.tenant == wrapped.tenant == "diku"


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (
            {"eventId": str(ID), "type": "UPDATE", "tenant": "diku", "new": {"a": 1}, "jobId": "j"},
            {"new": {"a": 1}, "jobId": "j"},
        ),
        (
            {"id": "a", "type": "UPDATED", "tenant": "diku", "timestamp": 1, "data": {}, "v": 2},
            {},
        ),
        (
            {"id": "a", "type": "X", "tenant": "diku", "timestamp": 1, "data": {"new": {"b": 1}}},
            {"new": {"b": 1}},
        ),
        ({**LOAN, "servicePointId": "s"}, {**LOAN, "servicePointId": "s"}),
        (pubsub('{"context": {}, "newer": 1}'), {"context": {}, "newer": 1}),
    ],
    ids=["inventory", "circulation", "circulation's data", "bare", "pubsub's payload"],
)
def test_an_event_of_a_newer_producer_is_read(
    body: dict[str, Any], payload: dict[str, Any]
) -> None:
    """What this version does not know is ignored, and kept where it belongs to the payload."""
    assert decode(record(body)).payload == payload


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
    named = decode(record(body, headers=[("ce_type", b"inventory.item.RENEWED")]))

    assert (bare.payload, bare.type) == (body, "LOAN_DUE_DATE_CHANGED")
    assert named.type == "RENEWED"


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("kind", ["DELETE_ALL", "REINDEX"])
def test_events_of_whole_collections_are_read(kind: str) -> None:
    """They have neither old nor new, and may have no id."""
    read = decode(record({"type": kind, "tenant": "diku"}))

    assert (read.type, read.payload, read.old, read.new) == (kind, {}, None, None)


@pytest.mark.parametrize("body", [{"type": "cat"}, {"type": "cat", "timestamp": 1}, {"data": 1}])
def test_a_foreign_body_with_words_of_a_dialect_is_a_payload(body: dict[str, Any]) -> None:
    """What was not meant as FOLIO's is not refused as such."""
    assert decode(record(body)).payload == body


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
        (b'{"eventId": "1", "type": ["secret"]}', "'type' is a list, not text"),
        (b'{"eventId": "1", "tenant": {"secret": 1}}', "'tenant' is a dict, not text"),
        (b'{"eventId": "1", "eventTs": "secret"}', "'eventTs' is text, but no time"),
        (b'{"eventId": "1", "eventTs": true}', "'eventTs' is a bool, not a time"),
        (b'{"type": "X", "timestamp": 1, "data": ["secret"]}', "'data' is a list, not an object"),
        (b'{"type": 5, "timestamp": 1, "data": {}}', "'type' is a int, not text"),
        (b'{"type": "X", "timestamp": {}, "data": {}}', "'timestamp' is a dict, not a time"),
        (b'{"type": "X", "timestamp": null, "data": {}}', "'timestamp' is missing"),
        (b'{"eventType": "X", "id": "1"}', "'eventMetadata' is missing"),
        (b'{"eventMetadata": []}', "'id' is missing"),
        (b'{"eventPayload": "secret"}', "'id' is missing"),
        (
            b'{"id": "1", "eventType": "X", "eventMetadata": "secret"}',
            "'eventMetadata' is a str, not an object",
        ),
        (
            b'{"id": "1", "eventType": "X", "eventMetadata": {"tenantId": "a", "eventTTL": "1",'
            b' "publishedBy": "m"}}',
            "'eventTTL' is a str, not a whole number",
        ),
        (
            b'{"id": "1", "eventType": "X", "eventMetadata": {"tenantId": "a", "eventTTL": 1,'
            b' "publishedBy": "m", "ttl\\u0000": "secret"}}',
            r"eventMetadata of mod-pubsub takes no members \['ttl\\x00'\]",
        ),
        (
            b'{"id": "1", "eventType": "X", "eventMetadata": {"tenantId": "a", "eventTTL": 1,'
            b' "publishedBy": "m"}, "eventPayload": {"secret": 1}}',
            "'eventPayload' is a dict, not text",
        ),
    ],
    ids=range(25),
)
def test_bytes_that_are_no_event_are_refused_without_showing_them(
    value: bytes | None, reason: str
) -> None:
    """The error says what is wrong and repeats nothing of the body."""
    with pytest.raises(DecodingError, match=reason) as caught:
        decode(record(value, key=None))

    assert "secret" not in str(caught.value)


#: Members of all dialects, and values that may stand in JSON.
NAMES = (
    *("eventId", "eventTs", "ts", "old", "new", "type", "tenant", "tenantId", "id", "timestamp"),
    *("data", "eventType", "eventMetadata", "eventPayload", "eventTTL", "publishedBy", "other"),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(NAMES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    body=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8),
    headers=st.dictionaries(st.sampled_from(["ce_id", "ce_time", "ce_type"]), st.binary()),
    timestamp=st.integers(-(2**63), 2**63 - 1),
)
@example(body={"eventId": "\ud800", "type": "\ud800", "tenant": "diku"}, headers={}, timestamp=0)
@example(body={"eventId": 1, "eventTs": float("nan")}, headers={}, timestamp=2**62)
@pytest.mark.usefixtures("tenants")
def test_whatever_comes_is_an_event_or_undecodable(
    body: dict[str, Any], headers: dict[str, bytes], timestamp: int
) -> None:
    """No other error, which would stop the consumer; and the same event each time."""
    incoming = record(body, headers=list(headers.items()), timestamp=timestamp)
    try:
        read = decode(incoming)
    except DecodingError:
        return
    again = decode(incoming)
    assert (read.id, read.type, read.occurred_at) == (again.id, again.type, again.occurred_at)


# Ids


def id_of(
    body: dict[str, Any], *headers: tuple[str, bytes], topic: str = "folio.circulation.rules"
) -> uuid.UUID:
    whole = {"type": "UPDATED", "timestamp": 1, "data": {}, **body}
    return decode(record(whole, headers=list(headers), topic=topic)).id


def test_the_id_is_looked_for_in_body_header_and_place() -> None:
    """The first of them that is there counts."""
    first, second = uuid.UUID(int=1), uuid.UUID(int=2)
    header = ("ce_id", str(second).encode())
    place = derived_id(record({}, topic="folio.circulation.rules"))

    assert id_of({"id": str(first)}, header) == first
    assert id_of({"id": None}, header) == second
    assert id_of({"id": ["a"]}, header) == second
    assert id_of({"id": " "}, header) == second
    assert id_of({}) == place
    assert id_of({}, ("ce_id", b"")) == place
    assert decode(record({"eventId": str(first), "id": str(second)})).id == first


def test_an_id_that_is_no_uuid_gives_the_same_one_each_time() -> None:
    """Wherever the event stands; those of another topic or source are others."""
    one = id_of({"id": "a"})
    source = ("ce_source", b"/other")

    assert one == id_of({"id": "a"}) == id_of({"id": "a", "type": "X"})
    others = [id_of({"id": "b"}), id_of({"id": 7}), id_of({"id": "a"}, source)]
    others.append(id_of({"id": "a"}, topic="folio.circulation.loan"))
    others.append(id_of({}, ("ce_id", b"A234-1234-1234")))
    assert len({one, *others}) == 6
    # Once released it cannot change: the inbox knows events by it.
    assert one == uuid.UUID("515ee040-3f31-5542-9cf3-6ee8ba6daa0b")


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


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"a": 1}, id="bare"),
        pytest.param({"type": "X", "timestamp": 1, "data": {}}, id="circulation"),
        pytest.param(pubsub(tenantId=None), id="pubsub"),
    ],
)
def test_an_orphan_is_read_once_somebody_has_assigned_it(
    body: dict[str, Any], folio_events: Change
) -> None:
    """Until then it has no owner, whatever else its dialect requires."""
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")
    orphan = record(body, topic="folio.ALL.inventory.item")

    with pytest.raises(OrphanError):
        decode(orphan)
    assert decode(orphan, tenant="diku").tenant == "diku"


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
        ("1600000000000", b"", datetime.fromtimestamp(1_600_000_000, UTC)),
        ("2023-11-14T22:13:20.123456Z", b"", AT),
        (1_600_000_000_000.0, b"", datetime.fromtimestamp(1_600_000_000, UTC)),
        (None, b"", BY_RECORD),
        (10**30, b"", BY_RECORD),
        ("9" * 5000, b"", BY_RECORD),
        (-(10**30), b"", BY_RECORD),
    ],
    ids=range(12),
)
def test_when_it_happened(stamp: object, ce_time: bytes, expected: datetime) -> None:
    """``ce_time`` with a zone, else the body's stamp, else the record's."""
    body = {"eventId": str(ID), "type": "UPDATE", "eventTs": stamp, "new": {}}

    assert decode(record(body, headers=[("ce_time", ce_time)])).occurred_at == expected


def test_a_record_without_any_time_is_of_1970() -> None:
    """Kafka says -1 where no timestamp is kept."""
    read = decode(record({"eventId": str(ID), "eventTs": 10**30}, timestamp=-1))

    assert read.occurred_at == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "ce_type", "expected"),
    [
        ("RENEWED", b"inventory.item.UPDATE", "RENEWED"),
        (" ", b"inventory.item.UPDATE", "UPDATE"),
        (None, b"inventory.item.CREATED", "CREATE"),
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
