"""Events are found by id, key, tenant, request id, trace id and cause; no search is without bound."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from folio_events.encoding import dump
from folio_events.exceptions import InvalidStateError
from folio_events.message import Headers, encode_headers
from folio_events.models import Delivery, OutboxMessage
from folio_events.monitoring import search
from folio_events.monitoring.search import By
from tests.pages import page

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


def written(**values: Any) -> OutboxMessage:
    """A recorded event; the headers are its own, as pairs."""
    own = values.pop("own", [])
    minutes = OutboxMessage.objects.count()
    return OutboxMessage.objects.create(
        **{
            "event_id": uuid.uuid4(),
            "topic": "inventory.item",
            "event_type": "UPDATE",
            "key": "k",
            "payload": b"{}",
            "repeating_headers": b"[]",
            "own_headers": dump(own) if own else b"",
            "occurred_at": NOON + timedelta(minutes=minutes),
            **values,
        }
    )


def failed(headers: Headers | None = None, **values: Any) -> Delivery:
    """An event of others that a receiver failed on."""
    return Delivery.objects.create(
        **{
            "receiver": "one",
            "group": "g",
            "event_id": uuid.uuid4(),
            "state": "dead",
            "order": "key",
            "topic": "folio.inventory.item",
            "partition": 0,
            "offset": 0,
            "key": "k",
            "headers": encode_headers(headers or []),
            "published_at": NOON,
            "created_at": NOON,
            **values,
        }
    )


def ids(found: search.Hits) -> list[uuid.UUID]:
    return [hit.event_id for hit in found.hits]


def test_an_event_is_found_by_its_id_and_by_its_key() -> None:
    """In the outbox, and among the deliveries of what others wrote."""
    one, other = written(key="a"), failed(key="b")
    written(key="c")
    for row in (one, other):
        assert ids(search.search(str(row.event_id))) == [row.event_id]
        assert ids(search.search(f" {row.key} ")) == [row.event_id]
        assert ids(search.search(str(row.event_id), By.KEY)) == []
        assert ids(search.search(str(row.key), By.EVENT_ID)) == []


def test_an_event_with_a_delivery_is_found_once() -> None:
    """Two receivers that failed on it make no further hits."""
    row = written()
    failed(event_id=row.event_id)
    foreign = failed(receiver="one", offset=1)
    failed(receiver="two", event_id=foreign.event_id)
    hits = search.search("k").hits
    assert {hit.event_id: hit.is_own for hit in hits} == {
        row.event_id: True,
        foreign.event_id: False,
    }
    assert len(hits) == 2


def test_hits_come_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest first, none twice and none left out."""
    monkeypatch.setattr(search, "PAGE", 3)
    expected = [written().event_id for _ in range(7)][::-1]
    expected += [failed(receiver=str(n)).event_id for n in range(4)][::-1]
    seen: list[uuid.UUID] = []
    position = None
    for _ in range(10):
        page = search.search("k", before=position)
        seen += ids(page)
        position = page.next
        if position is None:
            break
    assert sorted(seen) == sorted(expected)
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("by", "header", "value", "term"),
    [
        (By.REQUEST_ID, "x-okapi-request-id", "123/items;456/loans", "456/loans"),
        (By.REQUEST_ID, "x-okapi-request-id", 'quote" and \\ and ß', 'quote" and \\ and ß'),
        (By.TRACE_ID, "traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01", "ab" * 16),
    ],
)
def test_a_header_is_looked_into(by: By, header: str, value: str, term: str) -> None:
    """A part of the value is enough; what stands in another header does not count."""
    own = written(own=[(header, value)])
    foreign = failed([(header.title(), value.encode())])
    written(own=[("x-okapi-user-id", term)])
    failed([("another", term.encode())], receiver="other")
    written()
    assert sorted(ids(search.search(term, by))) == sorted([own.event_id, foreign.event_id])


def test_a_tenants_events_are_found() -> None:
    """By the whole name."""
    row = written(tenant="diku")
    written(tenant="diku2")
    assert ids(search.search("diku", By.TENANT)) == [row.event_id]


def test_a_search_without_index_looks_at_a_piece_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next page looks further back, until there is nothing left."""
    monkeypatch.setattr(search, "LOOKED_AT", 4)
    old = written(tenant="diku")
    for _ in range(6):
        written(tenant="other")
    first = search.search("diku", By.TENANT)
    assert first.is_partial
    assert first.hits == ()
    assert first.back_to == NOON + timedelta(minutes=3)
    second = search.search("diku", By.TENANT, before=first.next)
    assert ids(second) == [old.event_id]
    assert second.next is None


def test_a_full_page_of_a_piece_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not fit is not passed over."""
    monkeypatch.setattr(search, "PAGE", 2)
    expected = [written(tenant="diku").event_id for _ in range(5)][::-1]
    seen, position = [], None
    for _ in range(3):
        page = search.search("diku", By.TENANT, before=position)
        seen += ids(page)
        position = page.next
    assert (seen, position) == (expected, None)


@pytest.mark.parametrize("by", list(By))
@pytest.mark.parametrize("term", ["", "\0", "%", "\ud800", "x" * 10_000, "'; --"])
def test_whatever_is_typed_finds_nothing_and_breaks_nothing(term: str, by: By) -> None:
    """NUL, halves of characters and wildcards are looked for like anything else."""
    written(own=[("x-okapi-request-id", "abc")], tenant="diku")
    assert search.search(term, by).hits == ()


@pytest.mark.parametrize("before", ["x", "1", "1.2.3", "1.x"])
def test_a_position_that_is_none_is_refused(before: str) -> None:
    """It came with a link that somebody changed."""
    with pytest.raises(InvalidStateError, match="no place to search on from"):
        search.search("k", before=before)


def test_no_payload_is_read() -> None:
    """A page of hits of 5 MB each would take the process down."""
    written(key="k")
    failed(key="k")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        search.search("k")
        search.search("k", By.REQUEST_ID)
    assert not any('"payload"' in query["sql"] for query in queries)


def test_the_code_of_the_documentation_works() -> None:
    """It names who failed on the events of a request."""
    dead = failed([("x-okapi-request-id", b"99/notes")])
    found: dict[str, Any] = {}
    for block in page("docs/howto/find-an-event.md").blocks("python"):
        exec(block.text, found)
    assert found["failures"]("99") == [f"inventory.item {dead.event_id}: one is dead"]


def caused(row: OutboxMessage, **values: Any) -> OutboxMessage:
    return written(own=[("ce_causationid", str(row.event_id))], **values)


def test_what_an_event_caused_is_found_among_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment of the event on; what is further away is found by looking on."""
    monkeypatch.setattr(search, "LOOKED_AT_AFTER", 4)
    for _ in range(3):
        written()
    row = written()
    near = caused(row)
    written(own=[("x-okapi-request-id", str(row.event_id))])
    for _ in range(3):
        written()
    far = caused(row)
    first = search.caused_by(row.event_id, row.occurred_at)
    assert [hit.event_id for hit in first.hits] == [near.event_id]
    assert first.up_to is not None
    assert first.up_to < far.occurred_at
    second = search.caused_by(row.event_id, row.occurred_at, after=first.next)
    assert [hit.event_id for hit in second.hits] == [far.event_id]
    assert second.next is None


@pytest.mark.parametrize("since", [NOON - timedelta(days=1), NOON, NOON + timedelta(minutes=2)])
def test_what_an_event_of_others_caused_is_found_by_its_time(since: datetime) -> None:
    """The look begins at the first row of that time, wherever that is."""
    rows = [written() for _ in range(3)]
    effect = written(own=[("ce_causationid", str(uuid.UUID(int=5)))])
    assert len(rows) == 3
    found = search.caused_by(uuid.UUID(int=5), since)
    assert [hit.event_id for hit in found.hits] == [effect.event_id]


def test_an_empty_outbox_caused_nothing() -> None:
    """There is no row to begin at."""
    assert search.caused_by(uuid.uuid4(), NOON).hits == ()
