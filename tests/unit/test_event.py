"""Event: what it says, and what it keeps to itself."""

from __future__ import annotations

import uuid
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from typing import Any

import pytest

from folio_events import Event


def event(**changes: Any) -> Event:
    values: dict[str, Any] = {
        "id": uuid.UUID(int=5),
        "topic": "inventory.item",
        "type": "UPDATE",
        "key": "7",
        "tenant": "diku",
        "occurred_at": datetime(2026, 1, 2, tzinfo=UTC),
        "payload": {"old": {"barcode": "secret-1"}, "new": {"barcode": "secret-2"}},
    }
    return Event(**{**values, **changes})


def test_old_and_new_are_read_off_the_payload() -> None:
    """A creation has no old, a deletion no new, another event neither."""
    assert event().old == {"barcode": "secret-1"}
    assert event().new == {"barcode": "secret-2"}
    assert event(payload={"new": {}}).old is None
    assert event(payload={"old": {}}).new is None
    assert (event(payload={"loanId": 1}).old, event(payload={"loanId": 1}).new) == (None, None)


def test_request_and_cause_are_read_off_the_headers() -> None:
    """Both are None where no header names them."""
    headers = {"x-okapi-request-id": "12/items", "ce_causationid": "abc"}

    assert event(headers=headers).request_id == "12/items"
    assert event(headers=headers).cause_id == "abc"
    assert (event().request_id, event().cause_id) == (None, None)


def test_an_event_cannot_be_changed() -> None:
    """Receivers of one event all see the same."""
    with pytest.raises(FrozenInstanceError):
        event().type = "DELETE"  # type: ignore[misc]  # what is refused
    with pytest.raises(TypeError):
        Event(*event().payload)  # type: ignore[call-arg]  # what is refused


@pytest.mark.parametrize("show", [str, repr, "{}".format, "{!r}".format], ids=range(4))
def test_the_text_of_an_event_has_no_payload(show: Any) -> None:
    """It names topic, type and id, since it lands in logs and tracebacks."""
    text = show(event(headers={"x-okapi-token": "secret-3"}))

    assert "secret" not in text
    assert f"inventory.item UPDATE {uuid.UUID(int=5)}" in text


def test_an_event_that_was_not_published_stands_nowhere() -> None:
    """Its place on the broker is unknown."""
    one = event()

    assert (one.wire_topic, one.partition, one.offset) == (None, None, None)
