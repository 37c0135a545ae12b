"""Where past messages are kept: the broker's log, as long as it is, or the outbox."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from django.db.models import QuerySet

from folio_events import topics
from folio_events.brokers.base import Broker, PartitionState
from folio_events.cursor import OutboxRow
from folio_events.exceptions import InvalidStateError
from folio_events.message import Record, TopicPartition
from folio_events.models import OutboxMessage, Replay
from folio_events.operations.criteria import Criteria, milliseconds
from folio_events.receivers import Receiver
from folio_events.sending import headers_of

Source = Replay.Source
#: Most messages of one batch.
BATCH = 500
#: Ids by which the outbox is asked at once; more are compared one by one.
_MOST_IDS = 1000

#: Says how far readers have come in partitions; with True it waits for what they have in hand.
Limits = Callable[[Collection[TopicPartition], bool], Mapping[TopicPartition, int]]


class Batch(NamedTuple):
    """Messages in the order of their keys, and where to go on after them, in values of JSON."""

    records: Sequence[Record]
    position: dict[str, Any]


class PastEvents(Protocol):
    """A place where past messages are kept, and how far it was read."""

    @property
    def position(self) -> dict[str, Any]: ...

    def batches(self, limits: Limits) -> Iterator[Batch]: ...


class Range(NamedTuple):
    """A piece of a partition's log; without an end it goes on to where its readers are."""

    next: int
    end: int | None


class BrokerLog:
    """Pieces of partitions, one after the other."""

    def __init__(self, broker: Broker, ranges: Mapping[TopicPartition, Range]) -> None:
        self._broker = broker
        self._ranges = dict(ranges)

    @classmethod
    def at(cls, broker: Broker, position: Mapping[str, Any]) -> BrokerLog:
        """A log that was read to a position."""
        ranges = {
            TopicPartition(topic, number): Range(first, end)
            for topic, number, first, end in position["ranges"]
        }
        return cls(broker, ranges)

    @property
    def position(self) -> dict[str, Any]:
        return {"ranges": [[*place, *piece] for place, piece in sorted(self._ranges.items())]}

    def batches(self, limits: Limits) -> Iterator[Batch]:
        """Read what is left, each partition until it has nothing more that its readers have read."""
        for place in sorted(self._ranges):
            limit = self._limit(place, limits, wait=False)
            while self._ranges[place].next < limit:
                for records in self._broker.read_range(place, self._ranges[place].next, limit):
                    self._move(place, records[-1].offset + 1)
                    yield Batch(records, self.position)
                # Behind the last record there may be offsets whose records are gone.
                self._move(place, limit)
                limit = self._limit(place, limits, wait=True)

    def _limit(self, place: TopicPartition, limits: Limits, *, wait: bool) -> int:
        reached, end = limits([place], wait)[place], self._ranges[place].end
        return reached if end is None else min(end, reached)

    def _move(self, place: TopicPartition, to: int) -> None:
        self._ranges[place] = self._ranges[place]._replace(next=to)


class OutboxLog:
    """Published rows of one outbox, in the order of their ids, which is that of every key.

    Args:
        rows: Those to be read.
        places: Partitions that they may stand in.
        after: Id of the last row that was read.
    """

    def __init__(
        self, rows: QuerySet[OutboxMessage], places: Collection[TopicPartition], after: int = 0
    ) -> None:
        self._rows = rows
        self._places = places
        self._after = after

    @property
    def position(self) -> dict[str, Any]:
        return {"outbox": self._after}

    def batches(self, limits: Limits) -> Iterator[Batch]:
        """Read the rows that are left, to the last that is published."""
        waited = False
        while True:
            page = self._page()
            if page:
                yield Batch(page, self.position)
            elif waited:
                return
            waited = not page
            if waited:
                limits(self._places, True)

    def _page(self) -> list[Record]:
        rows = self._rows.filter(id__gt=self._after).order_by("id").values_list(*_COLUMNS)
        page = list(rows[:BATCH])
        if page:
            self._after = page[-1][0]
        return [_record(row) for row in page]


_COLUMNS = (
    *OutboxRow._fields,
    *(f"publication__{name}" for name in ("topic", "partition", "offset", "published_at")),
)


def _record(values: Sequence[Any]) -> Record:
    number, event_id, topic, tenant, key, payload, repeating, own, occurred_at = values[:9]
    wire_topic, partition, offset, published_at = values[9:]
    row = OutboxRow(
        number,
        str(event_id),
        topic,
        tenant,
        key,
        None if payload is None else bytes(payload),
        bytes(repeating),
        bytes(own),
        occurred_at,
    )
    return Record(
        topic=wire_topic,
        partition=partition,
        offset=offset,
        key=None if key is None else key.encode(),
        value=row.payload,
        headers=headers_of(row),
        timestamp=int(published_at.timestamp() * 1000),
    )


def _published(using: str) -> QuerySet[OutboxMessage]:
    """The rows of an outbox of which is known where they stand on the broker."""
    return OutboxMessage.objects.using(using).filter(publication__isnull=False)


def _partitions(
    criteria: Criteria, receivers: Sequence[Receiver], broker: Broker
) -> dict[TopicPartition, PartitionState]:
    """The partitions in which such events may stand.

    Raises:
        InvalidStateError: There is none.
    """
    names = listened_topics(broker, {receiver.topic for receiver in receivers})
    names = {name for name in names if criteria.takes_topic(name)}
    found = {
        place: state
        for place, state in broker.partition_states(names).items()
        if criteria.partition in (None, place.partition)
    }
    if not found:
        where = "" if criteria.topic is None else f" that is {criteria.topic!r}"
        raise InvalidStateError(
            f"The receivers listen to no topic of the broker{where}, or it has no such partition."
        )
    if criteria.from_offset is not None and len(found) > 1:
        listed = ", ".join(sorted({place.topic for place in found}))
        raise InvalidStateError(f"Offsets count within one topic, and these match: {listed}.")
    return found


def read_on(
    criteria: Criteria,
    receivers: Sequence[Receiver],
    position: Mapping[str, Any],
    broker: Broker,
) -> PastEvents:
    """Go on where past events were read to.

    Raises:
        InvalidStateError: The topics are no more.
    """
    if "outbox" not in position:
        return BrokerLog.at(broker, position)
    places = _partitions(criteria, receivers, broker)
    return _outbox_log(criteria, receivers, places, position["outbox"])


def past_events(
    criteria: Criteria, receivers: Sequence[Receiver], source: str | None, broker: Broker
) -> tuple[Replay.Source, PastEvents]:
    """Choose where the events are read.

    Raises:
        InvalidStateError: They are not all kept, and no source was chosen.
    """
    states = _partitions(criteria, receivers, broker)
    outbox = _outbox_log(criteria, receivers, states)
    if source == Source.OUTBOX:
        return Source.OUTBOX, outbox
    using = receivers[0].using
    if source is None and criteria.event_ids is not None and _has_ids(criteria.event_ids, using):
        return Source.OUTBOX, outbox
    ranges = _ranges(criteria, states, broker)
    cut = [place for place, state in states.items() if _is_cut(criteria, ranges[place], state)]
    if source is None and cut:
        if _reaches_back(criteria, cut, using):
            return Source.OUTBOX, outbox
        place = cut[0]
        raise InvalidStateError(
            f"The log of {place.topic}/{place.partition} begins at offset {states[place].low}; what "
            "stood before has been deleted, and the outbox does not reach back that far either. "
            "Choose source 'broker' or 'outbox' for what is left."
        )
    return Source.BROKER, BrokerLog(broker, ranges)


def _ranges(
    criteria: Criteria, states: Mapping[TopicPartition, PartitionState], broker: Broker
) -> dict[TopicPartition, Range]:
    """The piece of each partition that may hold such events, what is deleted left out."""
    firsts = dict.fromkeys(states, criteria.from_offset or 0)
    if criteria.since is not None:
        at = broker.offsets_at(list(states), milliseconds(criteria.since))
        firsts = {place: max(first, at[place]) for place, first in firsts.items()}
    ends: dict[TopicPartition, int | None] = dict.fromkeys(states, criteria.to_offset)
    if criteria.until is not None:
        at = broker.offsets_at(list(states), milliseconds(criteria.until))
        ends = {
            place: at[place] if end is None else min(end, at[place]) for place, end in ends.items()
        }
    return {
        place: Range(max(firsts[place], state.low), ends[place]) for place, state in states.items()
    }


def _is_cut(criteria: Criteria, piece: Range, state: PartitionState) -> bool:
    """Whether the beginning of a window may have been deleted from the log."""
    if criteria.from_offset is not None:
        return criteria.from_offset < state.low
    return criteria.since is not None and 0 < state.low == piece.next


def _has_ids(ids: Collection[uuid.UUID], using: str) -> bool:
    wanted = list(ids)
    found = sum(
        _published(using)
        .filter(event_id__in=wanted[start : start + _MOST_IDS])
        .values("event_id")
        .distinct()
        .count()
        for start in range(0, len(wanted), _MOST_IDS)
    )
    return found == len(wanted)


def _reaches_back(criteria: Criteria, cut: Collection[TopicPartition], using: str) -> bool:
    """Whether the outbox holds the events of some partitions from the window's beginning on."""
    if criteria.since is None:
        return False
    oldest = _published(using).order_by("id").values_list("publication__published_at", flat=True)
    first = oldest.first()
    if first is None or first > criteria.since:
        return False
    # Others write to foreign topics.
    return all(
        OutboxMessage.objects.using(using)
        .filter(topic=topics.parse_wire_topic(name).topic)
        .exists()
        for name in {place.topic for place in cut}
    )


def _outbox_log(
    criteria: Criteria,
    receivers: Sequence[Receiver],
    places: Collection[TopicPartition],
    after: int = 0,
) -> OutboxLog:
    chosen: dict[str, Any] = {
        "publication__published_at__gte": criteria.since,
        "publication__published_at__lt": criteria.until,
        "publication__partition": criteria.partition,
        "publication__topic__in": sorted({place.topic for place in places}),
    }
    if criteria.event_ids is not None and len(criteria.event_ids) <= _MOST_IDS:
        chosen["event_id__in"] = criteria.event_ids
    rows = _published(receivers[0].using)
    return OutboxLog(
        rows.filter(**{n: v for n, v in chosen.items() if v is not None}), places, after
    )


def listened_topics(broker: Broker, patterns: Collection[str]) -> set[str]:
    """The topics of the broker that are subscribed to for receivers' topics.

    Raises:
        BrokerUnavailableError: The broker does not answer.
    """
    wanted = topics.subscriptions(patterns)
    names = {name for name in wanted if not name.startswith("^")}
    found = names - broker.missing_topics(names) if names else set()
    expressions = [re.compile(name) for name in wanted if name.startswith("^")]
    if expressions:
        known = broker.list_topics("")
        found |= {name for name in known if any(one.search(name) for one in expressions)}
    return found
