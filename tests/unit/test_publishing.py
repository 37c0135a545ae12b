"""What ``publish()`` refuses before it touches the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from folio_events import publish, tenant_context
from folio_events.exceptions import ConfigurationError, EncodingError, MissingTenantError
from tests.unit.vectors import cases


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"topic": "circulation loan"}, ConfigurationError, "'circulation loan' is no topic"),
        ({"topic": "circulation.*"}, ConfigurationError, "is no topic"),
        ({"dialect": "avro"}, ConfigurationError, "'avro' is no dialect"),
        ({"payload": ["secret"]}, EncodingError, "must be a dict, not list"),
        ({"payload": None}, EncodingError, r"A tombstone \(payload=None\)"),
        ({"payload": {"loanId": 1, "tags": {"secret"}}}, EncodingError, "'tags': set has no JSON"),
        ({"payload": {"at": float("nan")}}, EncodingError, "'at': NaN"),
        ({"payload": {"name": "secret\ud800"}}, EncodingError, "'name': text with a lone"),
        (
            {"payload": {"type": "secret"}, "dialect": "inventory"},
            EncodingError,
            "'type'",
        ),
    ],
    ids=range(9),
)
def test_what_cannot_be_an_event_is_refused(
    changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """The error names topic, member and reason, and shows nothing of the payload."""
    values = {"topic": "circulation.LOAN_CLOSED", "key": 1, "payload": {}, **changes}

    with pytest.raises(error, match=reason) as caught:
        publish(values.pop("topic"), **values)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"ce_id": "secret"}, "'ce_id' .* written by folio_events itself"),
        ({"CE_Sequence": "secret"}, "written by folio_events itself"),
        ({"folio.tenantId": "secret"}, "written by folio_events itself"),
        ({"X-Okapi-Token": "secret"}, "written by folio_events itself"),
        ({"x-okapi-tenant": "secret"}, "written by folio_events itself"),
        ({"X-Okapi-Request-Id": "secret"}, "written by folio_events itself"),
        ({"Authorization": "secret"}, "written by folio_events itself"),
        ({"traceparent": "secret"}, "written by folio_events itself"),
        ({"Content-Type": "secret"}, "written by folio_events itself"),
        ({"record id": "secret"}, "'record id' is no name of a header"),
        ({"": "secret"}, "is no name of a header"),
        ({7: "secret"}, "'7' is no name of a header"),
        ({"ß": "secret"}, "is no name of a header"),
        ({"a\n": "secret"}, "is no name of a header"),
        ({"recordId": 7}, "'recordId' .* must be text"),
        ({"recordId": None}, "must be text"),
        ({"recordId": b"secret"}, "must be text"),
        ({"recordId": "secret\0"}, "must be text without NUL"),
        ({"recordId": "secret\ud800"}, "must be text without NUL"),
        ({"recordId": "1", "RECORDID": "2"}, "given twice"),
        ({"recordId": "secret" * 2000}, "have 12008 bytes; at most 8192"),
    ],
    ids=range(21),
)
def test_a_header_that_cannot_be_is_refused(headers: dict[Any, Any], reason: str) -> None:
    """The error names the header, and shows nothing of its value."""
    with pytest.raises(EncodingError, match=reason) as caught:
        publish("circulation.LOAN_CLOSED", key=1, payload={}, headers=headers)

    assert "secret" not in str(caught.value)


def test_a_missing_tenant_is_refused(folio_events: Callable[..., None]) -> None:
    """Where tenancy is on, every event has an owner."""
    folio_events(TENANCY="folio")

    with pytest.raises(MissingTenantError, match="No tenant for this event"):
        publish("circulation.LOAN_CLOSED", key=1, payload={})


#: What FOLIO's record builder says of a value or a tenant that is null, and what we do.
REFUSALS = {
    "value cannot be set to null": (EncodingError, "payload"),
    "tenantId cannot be set to null": (MissingTenantError, "No tenant for this event"),
}


@pytest.mark.parametrize("case", cases("record_build_invalid"))
def test_what_folios_record_builder_refuses_is_refused(
    case: dict[str, Any], folio_events: Callable[..., None]
) -> None:
    """By our own named errors, before anything is recorded."""
    folio_events(TENANCY="folio")
    value, reason = case["input"]["value"], case["expected"]["error"].rpartition("Reason: ")[2]
    error, said = REFUSALS[reason]

    with tenant_context(case["input"]["tenant"]), pytest.raises(error, match=said):
        publish("circulation.LOAN_CLOSED", key=1, payload=value and {"value": value})
