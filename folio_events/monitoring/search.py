"""The search for events: by index, or through a bounded piece of the newest rows."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import (
    BinaryField,
    F,
    Func,
    IntegerField,
    Q,
    QuerySet,
    Value,
)

from folio_events import topics
from folio_events.dialects import read_headers
from folio_events.encoding import dump
from folio_events.exceptions import InvalidStateError
from folio_events.message import decode_headers, key_text, storable
from folio_events.models import Delivery, OutboxMessage
from folio_events.monitoring.history import CAUSE_HEADER

#: Hits of a page.
PAGE = 50
#: Rows of a table that one search without an index looks at: 60 ms where they are in memory.
LOOKED_AT = 100_000
#: Rows after an event among which one look finds what it caused; each event page has it.
LOOKED_AT_AFTER = 20_000
#: Columns of either table that a hit shows.
_SHOWN = ("event_id", "topic", "event_type", "tenant", "key")


class By(StrEnum):
    """What a search goes by."""

    #: Event id or key, which have indexes.
    ID_OR_KEY = "id_or_key"
    EVENT_ID = "event_id"
    KEY = "key"
    # These have none: a piece of the table is looked at, the newest rows first.
    TENANT = "tenant"
    REQUEST_ID = "request_id"
    TRACE_ID = "trace_id"


#: Header that a search without an index looks into.
_HEADERS = {By.REQUEST_ID: "x-okapi-request-id", By.TRACE_ID: "traceparent"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """An event that a search found."""

    event_id: uuid.UUID
    #: Logical topic.
    topic: str
    event_type: str
    tenant: str
    key: str | None
    #: When it was recorded, or published where somebody else recorded it.
    at: datetime
    #: Whether the outbox has it; else a delivery.
    is_own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """A page of what a search found, the newest first."""

    hits: tuple[Hit, ...]
    #: Whether only a piece of the tables was looked at.
    is_partial: bool
    #: When the oldest row was recorded that was looked at; None: there was none.
    back_to: datetime | None
    #: What to search on before; None: there is no more.
    next: str | None


class _Position(NamedTuple):
    """Ids below which a search goes on; None: from the newest."""

    outbox: int | None = None
    delivery: int | None = None

    @classmethod
    def read(cls, text: str | None) -> _Position:
        """Take apart what ``Hits.next`` says."""
        if not text:
            return cls()
        try:
            outbox, delivery = (int(part) for part in text.split("."))
        except ValueError as error:
            raise InvalidStateError(f"{text[:50]!r} is no place to search on from.") from error
        return cls(outbox, delivery)


class _Piece(NamedTuple):
    """Rows of a table that a search found, and where it goes on; 0: nowhere."""

    rows: list[Any]
    next: int
    back_to: datetime | None


def search(
    term: str,
    by: By = By.ID_OR_KEY,
    *,
    before: str | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> Hits:
    """Find events, the newest first.

    Event ids and keys are found by index, as a whole. For tenant, request id and trace id there
    is none, since each would make every write slower: LOOKED_AT rows of the outbox and as many
    deliveries are looked at, and the next page looks at those before them. Request and trace id
    match where the header holds them, as one request of FOLIO's has several.

    Args:
        term: What to look for.
        by: What it is.
        before: ``Hits.next`` of the page before.
        using: Database alias.

    Raises:
        InvalidStateError: ``before`` is none.
    """
    position = _Position.read(before)
    term = storable(term.strip())
    outbox = OutboxMessage.objects.using(using).only(*_SHOWN, "occurred_at", "own_headers")
    kept = Delivery.objects.using(using).only(*_SHOWN, "published_at", "created_at", "headers")
    if by in (By.ID_OR_KEY, By.EVENT_ID, By.KEY):
        where = _by_index(term, by)
        pieces = [
            _page(outbox.filter(where), position.outbox),
            _page(kept.filter(where), position.delivery),
        ]
    else:
        pieces = [
            _look(outbox, position.outbox, term, by),
            _look(kept, position.delivery, term, by),
        ]
    own, foreign = pieces[0].rows, _without_own(pieces[1].rows, using)
    hits = sorted(map(_hit, [*own, *foreign]), key=lambda hit: hit.at, reverse=True)
    is_done = not any(piece.next for piece in pieces)
    return Hits(
        hits=tuple({hit.event_id: hit for hit in hits}.values()),
        is_partial=by in (By.TENANT, By.REQUEST_ID, By.TRACE_ID),
        back_to=min((piece.back_to for piece in pieces if piece.back_to), default=None),
        next=None if is_done else ".".join(str(piece.next) for piece in pieces),
    )


def _without_own(rows: Sequence[Delivery], using: str) -> list[Delivery]:
    """Deliveries of events that the outbox does not have; it says more of those."""
    ids = [row.event_id for row in rows]
    known = OutboxMessage.objects.using(using).filter(event_id__in=ids)
    own = set(known.values_list("event_id", flat=True))
    return [row for row in rows if row.event_id not in own]


def _by_index(term: str, by: By) -> Q:
    where = Q(pk__in=[])
    if by != By.EVENT_ID and term:
        where |= Q(key=key_text(term.encode()))
    if by != By.KEY:
        with contextlib.suppress(ValueError):
            where |= Q(event_id=uuid.UUID(term))
    return where


def _page(rows: QuerySet[Any], before: int | None) -> _Piece:
    if before == 0:
        return _Piece([], 0, None)
    if before is not None:
        rows = rows.filter(id__lt=before)
    found = list(rows.order_by("-id")[: PAGE + 1])
    more = len(found) > PAGE
    return _Piece(found[:PAGE], found[PAGE - 1].pk if more else 0, None)


def _look(rows: QuerySet[Any], before: int | None, term: str, by: By) -> _Piece:
    """Look through the newest rows before an id."""
    plain = rows.model._base_manager.using(rows.db)
    newest = plain.order_by("-id").values_list("id", flat=True).first() or 0
    end = newest + 1 if before is None else before
    if end <= 1 or not term:
        return _Piece([], 0, None)
    first = max(end - LOOKED_AT, 1)
    piece = rows.filter(id__gte=first, id__lt=end)
    if by == By.TENANT:
        found = list(piece.filter(tenant=term).order_by("-id")[: PAGE + 1])
    else:
        matching = _holding(piece, term).order_by("-id")[: PAGE + 1]
        found = list(matching)
    if len(found) > PAGE:
        first = found[PAGE - 1].pk
    moment = "occurred_at" if rows.model is OutboxMessage else "created_at"
    span = plain.filter(id__gte=first, id__lt=end).order_by("id")
    rows_found = [
        row for row in found[:PAGE] if by == By.TENANT or term in _header(row, _HEADERS[by])
    ]
    has_more = plain.filter(id__lt=first).order_by("-id").values_list("id").first()
    return _Piece(rows_found, first if has_more else 0, span.values_list(moment, flat=True).first())


def _holding(rows: QuerySet[Any], text: str) -> QuerySet[Any]:
    """Those of some rows whose own headers have a text in them, in any header."""
    is_own = rows.model is OutboxMessage
    column = "own_headers" if is_own else "headers"
    stored = text if is_own else text.encode().decode("latin-1")
    needle = Value(dump(stored)[1:-1], output_field=BinaryField())
    if connections[rows.db].vendor == "postgresql":
        place = Func(
            needle, F(column), function="position", arg_joiner=" IN ", output_field=IntegerField()
        )
    else:
        place = Func(F(column), needle, function="instr", output_field=IntegerField())
    holding: QuerySet[Any] = rows.annotate(header_place=place).filter(header_place__gt=0)
    return holding


def _header(row: Any, name: str) -> str:
    if isinstance(row, OutboxMessage):
        pairs = json.loads(bytes(row.own_headers)) if row.own_headers else []
        return next((value for found, value in pairs if found == name), "")
    return read_headers(decode_headers(bytes(row.headers))).get(name, "")


def _hit(row: Any) -> Hit:
    is_own = isinstance(row, OutboxMessage)
    return Hit(
        event_id=row.event_id,
        topic=row.topic if is_own else topics.parse_wire_topic(row.topic).topic,
        event_type=row.event_type,
        tenant=row.tenant,
        key=row.key,
        at=row.occurred_at if is_own else row.published_at,
        is_own=is_own,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Caused:
    """Events that an event's receivers caused, as far as was looked."""

    hits: tuple[Hit, ...]
    #: When the newest row was recorded that was looked at; None: there was none.
    up_to: datetime | None
    #: Outbox id to look on from; None: there is no more.
    next: int | None


def caused_by(
    event_id: uuid.UUID, since: datetime, *, after: int | None = None, using: str = DEFAULT_DB_ALIAS
) -> Caused:
    """Find the events that were recorded while a receiver ran for an event.

    They say so in header ``ce_causationid``, which has no index: LOOKED_AT_AFTER rows of the outbox
    are looked at, those that were recorded next after it.

    Args:
        event_id: Of the cause.
        since: When it was recorded.
        after: ``Caused.next`` of the look before.
        using: Database alias of the outbox.
    """
    rows = OutboxMessage.objects.using(using)
    start = _last_before(rows, since) if after is None else after
    piece = rows.filter(id__gt=start, id__lte=start + LOOKED_AT_AFTER)
    found = list(
        _holding(piece, str(event_id))
        .only(*_SHOWN, "occurred_at", "own_headers")
        .order_by("id")[: PAGE + 1]
    )
    end = found[PAGE - 1].pk if len(found) > PAGE else start + LOOKED_AT_AFTER
    newest = rows.filter(id__gt=start, id__lte=end).order_by("-id").values_list("occurred_at")
    has_more = rows.filter(id__gt=end).order_by("id").values_list("id").first()
    return Caused(
        hits=tuple(
            _hit(row) for row in found[:PAGE] if _header(row, CAUSE_HEADER) == str(event_id)
        ),
        up_to=next((moment for (moment,) in newest[:1]), None),
        next=end if has_more else None,
    )


def _last_before(rows: QuerySet[OutboxMessage], moment: datetime) -> int:
    """The id of about the last row that was recorded before a moment, for ids grow with time."""
    by_id = rows.order_by("id").values_list("id", "occurred_at")
    first, last = by_id.first(), rows.order_by("-id").values_list("id", flat=True).first()
    if first is None or last is None:
        return 0
    low, high = first[0] - 1, last
    while low < high:
        middle = (low + high + 1) // 2
        at_or_after = by_id.filter(id__gte=middle).first()
        if at_or_after is None or at_or_after[1] >= moment:
            high = middle - 1
        else:
            low = middle
    return low
