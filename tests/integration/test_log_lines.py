"""Every line about a message says which, in its text and as fields, and none shows what is in it."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError
from pythonjsonlogger.json import JsonFormatter

from folio_events import CircuitBreaker, Event, RejectEvent, RetryPolicy, deliveries, inbox, publish
from folio_events.broadcast import Broadcast
from folio_events.conf import get_settings
from folio_events.message import Headers
from folio_events.models import Delivery
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from folio_events.tenants import CallContext, call_context
from tests.faulty_broker import FaultyBroker
from tests.note_topic import LOGICAL, WIRE, Mood, NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)

SECRET, TOKEN = "abracadabra", "eyJhbGciOiJIUzI1NiJ9.token"
EVENT = uuid.UUID("0b9b2a5e-6f0b-4c53-9a3f-0d7f6b1f4f10")
HEADERS: Headers = [
    ("x-okapi-token", TOKEN.encode()),
    ("x-okapi-request-id", b"4711/notes"),
    ("folio.tenantId", b"diku"),
]
ONCE = RetryPolicy(attempts=1)
Path = Callable[[NoteTopic], None]


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """All that the package says, at every level."""
    logger, kept = logging.getLogger("folio_events"), _Kept()
    before = logger.level
    logger.addHandler(kept)
    logger.setLevel(logging.DEBUG)
    yield kept.records
    logger.removeHandler(kept)
    logger.setLevel(before)


def put(notes: NoteTopic, number: int = 1) -> None:
    notes.put("key-9", number, event_id=EVENT, headers=HEADERS, data={"secret": SECRET})


def fail(event: Event) -> None:
    raise ValueError(event.payload["secret"])


def dead_in_the_batch(notes: NoteTopic) -> None:
    note_receiver("my.receiver", fail, retry=ONCE)
    put(notes)
    notes.consume()


def rejected(notes: NoteTopic) -> None:
    def reject(event: Event) -> None:
        raise RejectEvent(event.payload["secret"])

    note_receiver("my.receiver", reject)
    put(notes)
    notes.consume()


def dead_outside_a_transaction(notes: NoteTopic) -> None:
    note_receiver("my.receiver", fail, retry=ONCE, mode="after_commit")
    put(notes)
    notes.consume()


def blocking_its_partition(notes: NoteTopic) -> None:
    note_receiver("my.receiver", fail, retry=ONCE, order="partition")
    put(notes)
    notes.consume()


def dead_after_a_retry(notes: NoteTopic) -> None:
    note_receiver("my.receiver", fail, retry=RetryPolicy(attempts=2, backoff=0))
    put(notes)
    notes.consume()
    retry_due()


def opening_its_breaker(notes: NoteTopic) -> None:
    breaker = CircuitBreaker(failures=1, pause=60)
    note_receiver("my.receiver", fail, retry=ONCE, breaker=breaker)
    put(notes)
    notes.consume()


def ended_by_the_process(notes: NoteTopic) -> None:
    dead_in_the_batch(notes)
    # As a process leaves it that was killed in the midst of the last run.
    Delivery.objects.update(state="retrying", unfinished=True, next_attempt_at="2020-01-01T00:00Z")
    retry_due()


def killing_the_consumer(notes: NoteTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    note_receiver("my.receiver")
    put(notes)
    monkeypatch.setattr(inbox, "begin", lambda *_args, **_options: 3)
    notes.consume()


def undecodable(notes: NoteTopic) -> None:
    note_receiver("my.receiver")
    body = f'{{"secret": "{SECRET}"'.encode()
    notes.put_raw(body, b"key-9", [*HEADERS, ("ce_id", str(EVENT).encode())])
    notes.consume()


def of_a_broadcast_receiver(notes: NoteTopic) -> None:
    note_receiver("my.receiver", fail, broadcast=True)
    listener = Broadcast("latest")
    listener.start()
    put(notes)
    listener.step(timeout=0)
    listener.close()


def hanging(notes: NoteTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    class Now:
        """A timer whose time is over at once."""

        def __init__(self, _seconds: float, function: Callable[[], None]) -> None:
            self.start = function

        def cancel(self) -> None:
            pass

    monkeypatch.setattr(threading, "Timer", Now)
    monkeypatch.setattr(os, "_exit", lambda _status: None)
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda **_options: None)
    note_receiver("my.receiver", timeout=1)
    put(notes)
    notes.consume()


@pytest.mark.parametrize(
    "path",
    [
        dead_in_the_batch,
        rejected,
        dead_outside_a_transaction,
        blocking_its_partition,
        dead_after_a_retry,
        opening_its_breaker,
        ended_by_the_process,
        killing_the_consumer,
        undecodable,
        of_a_broadcast_receiver,
        hanging,
    ],
)
def test_every_error_of_a_delivery_says_which_message_and_shows_nothing_of_it(
    path: Callable[..., None],
    notes: NoteTopic,
    lines: list[logging.LogRecord],
    request: pytest.FixtureRequest,
) -> None:
    """Topic, partition, offset, key and event id, tenant and request, in text and as fields."""
    needs = path.__code__.co_varnames[1 : path.__code__.co_argcount]
    path(notes, *(request.getfixturevalue(name) for name in needs))
    errors = [
        line
        for line in lines
        if line.levelno >= logging.ERROR and not line.getMessage().startswith("breaker open")
    ]
    assert errors
    for line in errors:
        fields = line.folio_events  # type: ignore[attr-defined]  # an extra
        expected = {
            "topic": WIRE, "partition": 0, "offset": 0, "key": "key-9", "request_id": "4711/notes",
        }  # fmt: skip
        assert {name: fields[name] for name in expected} == expected
        assert fields["receiver"] == "my.receiver"
        for part in (f"topic={WIRE} partition=0 offset=0 key=key-9", "request=4711/notes"):
            assert part in line.getMessage()
        assert f" event={fields['event_id']}" in line.getMessage()
        if path is not undecodable:
            assert fields["event_id"] == str(EVENT)
    assert_nothing_is_shown(lines)


def assert_nothing_is_shown(lines: list[logging.LogRecord]) -> None:
    written = JsonFormatter()
    for line in lines:
        text = written.format(line)
        assert SECRET not in text, line.getMessage()
        assert TOKEN not in text, line.getMessage()


def test_an_orphan_says_which_message_it_is(
    memory_broker: Any, folio_events: Callable[..., None], lines: list[logging.LogRecord]
) -> None:
    """With what its headers say, since nobody knows better."""
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")
    topic = NoteTopic(memory_broker, wire="folio.ALL.library.note")
    note_receiver("one")
    headers: Headers = [("ce_id", str(EVENT).encode()), ("x-okapi-token", TOKEN.encode())]
    topic.put_raw(f'{{"secret": "{SECRET}"}}'.encode(), b"key-9", headers)
    topic.consume()
    (line,) = [line for line in lines if line.levelno == logging.ERROR]
    fields = line.folio_events  # type: ignore[attr-defined]  # an extra
    assert (fields["topic"], fields["partition"], fields["offset"], fields["key"]) == (
        "folio.ALL.library.note", 0, 0, "key-9",
    )  # fmt: skip
    assert (fields["event_id"], fields["fault"]) == (str(EVENT), "missing")
    assert_nothing_is_shown(lines)


def test_a_withheld_message_says_where_it_lies(
    faulty_broker: FaultyBroker, lines: list[logging.LogRecord]
) -> None:
    """It has no offset; its outbox id finds it."""
    call = CallContext(headers={"x-okapi-token": TOKEN, "x-okapi-request-id": "4711"})
    with call_context(call):
        event = publish(LOGICAL, key="key-9", payload={"secret": SECRET})
    faulty_broker.refuses = lambda _message: True
    drain()
    (line,) = [line for line in lines if line.levelno == logging.ERROR]
    fields = line.folio_events  # type: ignore[attr-defined]  # an extra
    assert (fields["topic"], fields["key"], fields["event_id"], fields["request_id"]) == (
        LOGICAL, "key-9", str(event.id), "4711",
    )  # fmt: skip
    assert fields["outbox_id"]
    assert_nothing_is_shown(lines)


def test_a_whole_run_shows_neither_payload_nor_token(
    notes: NoteTopic,
    faulty_broker: FaultyBroker,
    lines: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recorded, refused, published, failed with the database's own words, retried, discarded."""
    call = CallContext(headers={"x-okapi-token": TOKEN})
    with call_context(call):
        for key in "ab":
            publish(LOGICAL, key=key, payload={"secret": SECRET})
    faulty_broker.refuses = lambda message: message.key == b"a"
    drain()
    note_receiver("one", fail, retry=RetryPolicy(attempts=3, backoff=0))
    note_receiver("two", Mood(1, error=OperationalError(f"locked: {SECRET}")), retry=ONCE)
    put(notes)
    notes.consume()
    retry_due()
    deliveries.discard(Delivery.objects.values_list("pk", flat=True), reason="test data")
    assert len(lines) > 5
    assert_nothing_is_shown(lines)


def test_keys_can_be_kept_out(
    notes: NoteTopic, folio_events: Callable[..., None], lines: list[logging.LogRecord]
) -> None:
    """A key may be a person's barcode: its digest is the same for the same key, and no other."""
    folio_events(LOG_KEYS=False)
    note_receiver("one", Mood(1, 2, 3), retry=ONCE)
    for number, key in ((1, "ann"), (2, "bob"), (3, "bob")):
        notes.put(key, number)
    notes.consume()
    errors = [line for line in lines if line.levelno == logging.ERROR]
    shown = [line.folio_events["key"] for line in errors]  # type: ignore[attr-defined]  # an extra
    # The second of bob's waits behind the first.
    retried = Delivery.objects.filter(attempts=0).count()
    assert (len(set(shown)), retried) == (2, 1)
    assert get_settings().LOG_KEYS is False
    for line in lines:
        assert "ann" not in line.getMessage().split()
        assert "bob" not in line.getMessage()


def test_fields_reach_a_json_log(notes: NoteTopic, lines: list[logging.LogRecord]) -> None:
    """As docs/howto/monitor.md configures it: one object with all facts under one name."""
    dead_in_the_batch(notes)
    (line,) = [line for line in lines if line.levelno == logging.ERROR]
    found = json.loads(JsonFormatter("%(levelname)s %(name)s %(message)s").format(line))
    assert found["name"] == "folio_events.deliveries"
    assert found["folio_events"] == {
        "topic": WIRE,
        "partition": 0,
        "offset": 0,
        "key": "key-9",
        "event_id": str(EVENT),
        "tenant": "diku",
        "request_id": "4711/notes",
        "receiver": "my.receiver",
        "attempt": 1,
        "error": "builtins.ValueError",
    }
