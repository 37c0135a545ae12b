"""The limits of the outbox: the soft one warns, the hard one refuses the write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import transaction

from folio_events import outbox, publish, relay
from folio_events.brokers.memory import MemoryBroker
from folio_events.exceptions import OutboxFullError
from folio_events.models import OutboxMessage, RelayGap, WithheldMessage
from folio_events.outbox import backlog
from tests.faulty_broker import FaultyBroker
from tests.testapp.models import Book

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    """No look at the backlog of an earlier test counts."""
    outbox._backlogs.clear()
    yield
    outbox._backlogs.clear()


def note(number: int, key: str = "k", text: str = "") -> None:
    publish("library.note", key=key, payload={"number": number, "text": text})


def new_rows(count: int) -> list[outbox.OutboxRow]:
    made = [outbox.new_event("library.note", "note", "k", {}) for _ in range(count)]
    return [outbox.make_row(event, "circulation") for event in made]


def look_again() -> None:
    """Have the next write look at the backlog anew, as after a second."""
    for seen in outbox._backlogs.values():
        seen.looked_at -= outbox._BACKLOG_LIFETIME


def test_a_full_outbox_refuses_the_write(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """The hard limit counts what waits, not what is kept; draining makes room at once."""
    folio_events(OUTBOX_HARD_LIMIT=3)
    for number in range(3):
        note(number)
    with pytest.raises(OutboxFullError, match=r"3 outbox messages wait.*OUTBOX_HARD_LIMIT is 3"):
        note(3)
    assert OutboxMessage.objects.count() == 3
    relay.drain()
    look_again()
    note(4)
    assert OutboxMessage.objects.count() == 4


def test_a_refused_event_takes_its_row_with_it(folio_events: Callable[..., None]) -> None:
    """The model's row is not written without its event."""
    folio_events(OUTBOX_HARD_LIMIT=1)
    Book.objects.create(title="Emma")
    with pytest.raises(OutboxFullError):
        Book.objects.create(title="Persuasion")
    assert Book.objects.count() == OutboxMessage.objects.count() == 1


def test_a_filling_outbox_is_told(
    folio_events: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """The soft limit writes a warning, once for each look, and refuses nothing."""
    folio_events(OUTBOX_SOFT_LIMIT=2)
    for number in range(2):
        note(number)
        look_again()
    assert not caplog.records
    note(2)
    note(3)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["2 outbox messages of database default wait"]


def test_a_bulk_that_goes_beyond_is_refused_whole(folio_events: Callable[..., None]) -> None:
    """What a statement would add counts too, and so does what was added since the last look."""
    folio_events(OUTBOX_HARD_LIMIT=100)
    outbox.append(new_rows(60), using="default")
    with pytest.raises(OutboxFullError, match="60 outbox messages wait"):
        outbox.append(new_rows(60), using="default")
    assert OutboxMessage.objects.count() == 60
    outbox.append(new_rows(40), using="default")


def test_a_bulk_that_was_rolled_back_refuses_nothing(folio_events: Callable[..., None]) -> None:
    """Neither what was added since the last look nor the ids that it used up are rows."""
    folio_events(OUTBOX_HARD_LIMIT=100)
    for _ in range(3):
        with transaction.atomic():
            outbox.append(new_rows(90), using="default")
            transaction.set_rollback(True)
    outbox.append(new_rows(90), using="default")
    look_again()
    outbox.append(new_rows(10), using="default")
    with pytest.raises(OutboxFullError):
        note(0)


def test_rows_that_were_held_back_count(
    faulty_broker: FaultyBroker, folio_events: Callable[..., None]
) -> None:
    """The relay's cursor has passed them, but they are not published."""
    faulty_broker.acknowledges = lambda message: message.key == b"good"
    for number in range(5):
        note(number, key="bad")
    note(5, key="good")
    relay.drain()
    assert RelayGap.objects.exists()
    assert backlog(using="default") >= backlog(using="default", limits=[1, 100]) == 5
    folio_events(OUTBOX_HARD_LIMIT=5)
    with pytest.raises(OutboxFullError):
        note(6, key="good")


def test_rows_that_are_withheld_do_not_count(memory_broker: MemoryBroker) -> None:
    """They wait for a person, and stop nobody else's writes."""
    note(0, text="x" * 2_000_000)
    note(1)
    relay.drain()
    relay.drain()
    assert WithheldMessage.objects.count() == 2
    assert backlog(using="default", limits=[1]) == 0


def test_a_count_ends_at_the_highest_limit(memory_broker: MemoryBroker) -> None:
    """However many rows wait, a look at them has a bound."""
    for number in range(5):
        note(number)
    assert backlog(using="default") == 5
    assert backlog(using="default", limits=[2, 3]) == 3


def test_the_outbox_is_looked_at_once_a_second(
    folio_events: Callable[..., None], django_assert_num_queries: Any
) -> None:
    """Between two looks a write costs what it costs without a limit."""
    folio_events(OUTBOX_HARD_LIMIT=1000)
    publish("library.note", key="1", payload={})
    outbox._backlogs["default"].looked_at = time.monotonic() + 60
    with transaction.atomic(), django_assert_num_queries(1):
        publish("library.note", key="1", payload={}, ordered=False)
