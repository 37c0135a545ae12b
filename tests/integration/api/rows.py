"""Rows for the tests of the REST API."""

from __future__ import annotations

import uuid
from itertools import count
from typing import Any

from django.utils import timezone

from folio_events.message import encode_headers
from folio_events.models import Delivery, Orphan, OutboxMessage, Publication, WithheldMessage

_offsets = count()
#: A token that answers and lists must not show; no real one.
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkaWt1In0.c2lnbmF0dXJl"
HEADERS = encode_headers(
    [("x-okapi-token", TOKEN.encode()), ("note", f"see {TOKEN}".encode()), ("odd", b"\xff"),
     ("none", None)]
)  # fmt: skip


def outbox_message(**values: Any) -> OutboxMessage:
    """A message that waits to be published."""
    given: dict[str, Any] = {
        "event_id": uuid.uuid4(),
        "topic": "library.note",
        "event_type": "UPDATE",
        "key": "k",
        "payload": b'{"new": {"id": 1}}',
        "repeating_headers": b"[]",
        "own_headers": b'[["x-okapi-request-id", "r1"], ["x-okapi-token", "secret"]]',
        "occurred_at": timezone.now(),
    }
    return OutboxMessage.objects.create(**{**given, **values})


def publication(of: OutboxMessage) -> Publication:
    return Publication.objects.create(
        outbox_message=of,
        topic="folio.library.note",
        partition=0,
        offset=next(_offsets),
        published_at=timezone.now(),
    )


def withheld_message(**values: Any) -> WithheldMessage:
    """A message that the broker refused."""
    message = outbox_message()
    given: dict[str, Any] = {
        "outbox_message": message,
        "topic": message.topic,
        "key": message.key,
        "state": WithheldMessage.State.REFUSED,
        "error": f"too large, said {TOKEN}",
        "withheld_at": timezone.now(),
    }
    return WithheldMessage.objects.create(**{**given, **values})


def delivery(**values: Any) -> Delivery:
    """A dead letter."""
    given: dict[str, Any] = {
        "receiver": "library.one",
        "group": "events",
        "event_id": uuid.uuid4(),
        "state": Delivery.State.DEAD,
        "order": "key",
        "attempts": 5,
        "topic": "folio.library.note",
        "partition": 0,
        "offset": next(_offsets),
        "event_type": "UPDATE",
        "key": "k",
        "raw_key": b"k",
        "headers": HEADERS,
        "payload": b'{"new": {"id": 1}}',
        "published_at": timezone.now(),
        "error_class": "builtins.ValueError",
        "error": f"no, said {TOKEN}",
        "traceback": f"Traceback: {TOKEN}",
        "fingerprint": "f1",
        "created_at": timezone.now(),
        "last_attempt_at": timezone.now(),
    }
    return Delivery.objects.create(**{**given, **values})


def orphan(**values: Any) -> Orphan:
    """A message without an owner."""
    given: dict[str, Any] = {
        "topic": "folio.library.note",
        "partition": 0,
        "offset": next(_offsets),
        "fault": Orphan.Fault.MISSING,
        "error": f"nobody says whose, but {TOKEN}",
        "key": "k",
        "raw_key": b"k",
        "headers": HEADERS,
        "payload": b"\xff\x00",
        "published_at": timezone.now(),
        "found_at": timezone.now(),
    }
    return Orphan.objects.create(**{**given, **values})


def one_of_each() -> None:
    """A row for each list."""
    publication(outbox_message())
    withheld_message()
    delivery()
    orphan()
