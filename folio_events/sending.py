"""A batch of outbox rows to the broker, and what becomes of each."""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from folio_events import topics
from folio_events.brokers.base import Acknowledgement, Broker, Report
from folio_events.conf import get_settings
from folio_events.cursor import OutboxRow
from folio_events.dialects import wire_headers
from folio_events.exceptions import (
    BrokerError,
    MessageTooLargeError,
    MissingTenantError,
    MissingTopicError,
    TopicRefusedError,
)
from folio_events.message import MAX_KEY_BYTES, Headers, Message
from folio_events.models import OutboxMessage
from folio_events.provisioning import create_missing
from folio_events.withheld import Chain

logger = logging.getLogger("folio_events.relay")

#: Most bytes of a key and of the headers that a message gets when it is published.
_MOST_ADDED = MAX_KEY_BYTES + 200

_Sendable = tuple[OutboxRow, Message]


class Round(NamedTuple):
    """One call of the broker; times in seconds since 1970."""

    handed_at: float
    #: When the last of its acknowledgements was there.
    answered_at: float
    #: How many rows were acknowledged up to then.
    acknowledged: int


@dataclass(slots=True)
class Outcome:
    """What became of a batch of rows."""

    #: By outbox id: the topic on the broker, and where the message stands there.
    acknowledged: dict[int, tuple[str, Acknowledgement]] = field(default_factory=dict)
    #: Refused for good, with the reason.
    refused: list[tuple[OutboxRow, str]] = field(default_factory=list)
    #: Chains that a refused row holds up.
    blocked: set[Chain] = field(default_factory=set)
    #: Not acknowledged, in ascending order of id.
    left: list[OutboxRow] = field(default_factory=list)
    #: Why, where the broker is the reason.
    unavailable: str = ""
    rounds: list[Round] = field(default_factory=list)

    def refuse(self, row: OutboxRow, error: Exception) -> None:
        """Note a refusal, which holds up the later rows of the chain."""
        self.refused.append((row, f"{type(error).__name__}: {error}"))
        if row.chain is not None:
            self.blocked.add(row.chain)


class PublishedEvent(NamedTuple):
    """An event that the broker has acknowledged; times in seconds since 1970."""

    row: OutboxRow
    #: On the broker.
    topic: str
    partition: int
    offset: int
    handed_at: float
    #: When all of those that were handed over with it were acknowledged.
    acknowledged_at: float


class PublishedBatch:
    """What one drain has published, in the order of the acknowledgements; read when asked."""

    def __init__(self, rows: Sequence[OutboxRow], outcome: Outcome) -> None:
        self._rows = rows
        self._outcome = outcome

    def __len__(self) -> int:
        return len(self._outcome.acknowledged)

    def rounds(self) -> Iterator[tuple[Round, list[OutboxRow]]]:
        """The rows that were acknowledged together."""
        by_id = {row.id: row for row in self._rows}
        acknowledged = iter(self._outcome.acknowledged)
        done = 0
        for one in self._outcome.rounds:
            yield one, [by_id[number] for number in islice(acknowledged, one.acknowledged - done)]
            done = one.acknowledged

    def __iter__(self) -> Iterator[PublishedEvent]:
        for one, rows in self.rounds():
            for row in rows:
                topic, place = self._outcome.acknowledged[row.id]
                yield PublishedEvent(row, topic, *place, one.handed_at, one.answered_at)


class _Target(NamedTuple):
    """Where the rows of one topic and tenant go."""

    #: On the broker.
    topic: str
    #: Why it takes nothing.
    refusal: Exception | None
    #: Bytes that the topic takes, as far as that is known.
    limit: float
    #: Bytes of body and stored headers with which a message keeps within the limit, whatever
    #: its key and the headers that it gets.
    cheap_limit: float


def send(rows: Sequence[OutboxRow], broker: Broker, *, deadline: float) -> Outcome:
    """Publish rows; one that is refused stops the later ones of its chain.

    Args:
        rows: In ascending order of id.
        broker: Where to.
        deadline: When to give up, by ``time.monotonic()``.
    """
    outcome = Outcome()
    try:
        targets = _targets(rows, broker)
    except BrokerError as error:
        outcome.left, outcome.unavailable = list(rows), str(error)
        return outcome
    segments = deque([_sendable(rows, targets, outcome)])
    while segments:
        segment = segments.popleft()
        if outcome.blocked:
            segment = [pair for pair in segment if pair[0].chain not in outcome.blocked]
        if not segment:
            continue
        timeout = max(deadline - time.monotonic(), 0.1)
        handed_at = time.time()
        reports = broker.publish([message for _, message in segment], timeout=timeout)
        answered_at = time.time()
        rest, suspects = _sort_out(segment, reports, outcome, broker)
        outcome.rounds.append(Round(handed_at, answered_at, len(outcome.acknowledged)))
        if suspects:
            segments.extendleft(reversed(_narrowed(rest, suspects)))
        elif rest:
            segments.appendleft(rest)
            if len(rest) == len(segment) or time.monotonic() > deadline:
                break
    else:
        outcome.unavailable = ""
    if len(outcome.acknowledged) < len(rows):
        known = {*outcome.acknowledged, *(row.id for row, _error in outcome.refused)}
        outcome.left = [row for row in rows if row.id not in known]
    if outcome.unavailable:
        # One of them may be gone, and a producer is given up before it finds that out.
        waiting = ((row.topic, row.tenant) for row in outcome.left)
        broker.known_topics -= {targets[pair].topic for pair in waiting}
    return outcome


def _targets(rows: Sequence[OutboxRow], broker: Broker) -> dict[tuple[str, str], _Target]:
    """Say where the rows of each topic and tenant go, creating the topics that do not exist.

    Raises:
        BrokerError: The broker does not answer, or cannot create a topic just now.
    """
    pairs = {(row.topic, row.tenant) for row in rows}
    names = {pair: topics.wire_topic(*pair) for pair in pairs}
    refusals: dict[str, Exception] = {
        names[pair]: MissingTenantError(
            f"It was recorded without a tenant, and topic {pair[0]!r} has one topic for each."
        )
        for pair in pairs
        if not pair[1] and topics.is_of_tenant(pair[0])
    }
    wanted = {name: pair for pair, name in names.items() if name not in refusals}
    refusals |= create_missing(wanted, broker)
    targets: dict[tuple[str, str], _Target] = {}
    for pair, name in names.items():
        known = None if name in refusals else broker.max_message_bytes(name)
        limit = math.inf if known is None else known
        targets[pair] = _Target(name, refusals.get(name), limit, limit - _MOST_ADDED)
    return targets


def _sendable(
    rows: Sequence[OutboxRow], targets: dict[tuple[str, str], _Target], outcome: Outcome
) -> list[_Sendable]:
    """Make the messages of all rows but those known to be refused, and their followers.

    In the producer, one that is refused would stop the others.
    """
    sendable: list[_Sendable] = []
    settings = get_settings()
    source = settings.SOURCE or f"/{settings.GROUP}"
    # Once for each message: what can be taken out of this loop is.
    for row in rows:
        number, event_id, topic, tenant, key, payload, repeating, own, occurred_at = row
        target = targets[topic, tenant]
        if outcome.blocked and row.chain in outcome.blocked:
            continue
        if target.refusal is not None:
            outcome.refuse(row, target.refusal)
            continue
        headers = wire_headers(
            _repeating_headers(repeating, source),
            _parse_headers(own) if own else (),
            event_id,
            occurred_at,
            number,
        )
        message = Message(target.topic, None if key is None else key.encode(), payload, headers)
        # As they are stored, headers are longer than as they are sent.
        if len(payload or b"") + len(repeating) + len(own) > target.cheap_limit:
            size = message.size
            if size > target.limit:
                text = f"{size} bytes; topic {target.topic!r} takes {target.limit}."
                outcome.refuse(row, MessageTooLargeError(text))
                continue
        sendable.append((row, message))
    return sendable


def headers_of(row: OutboxRow | OutboxMessage) -> Headers:
    """The headers that a row is published with."""
    settings = get_settings()
    repeating, own = bytes(row.repeating_headers), bytes(row.own_headers)
    return wire_headers(
        _repeating_headers(repeating, settings.SOURCE or f"/{settings.GROUP}"),
        _parse_headers(own) if own else (),
        str(row.event_id),
        row.occurred_at,
        row.id,
    )


@functools.lru_cache(maxsize=1024)
def _repeating_headers(stored: bytes, source: str) -> Headers:
    headers = _parse_headers(stored)
    # A trigger stores none: it does not know the settings.
    if any(name == "ce_source" for name, _value in headers):
        return headers
    return [*headers[:2], ("ce_source", source.encode()), *headers[2:]]


@functools.lru_cache(maxsize=1024)
def _parse_headers(stored: bytes) -> Headers:
    return [(name, value.encode()) for name, value in json.loads(stored)]


def _sort_out(
    segment: Sequence[_Sendable], reports: Sequence[Report], outcome: Outcome, broker: Broker
) -> tuple[list[_Sendable], list[int]]:
    """Take in what the broker says of a segment.

    Returns:
        What is neither acknowledged nor refused, and where in it stands what the broker may
        have refused the rest for.
    """
    rest: list[_Sendable] = []
    suspects: list[int] = []
    for (row, message), report in zip(segment, reports, strict=True):
        if isinstance(report, Acknowledgement):
            outcome.acknowledged[row.id] = message.topic, report
        elif isinstance(report, TopicRefusedError):
            if row.chain not in outcome.blocked:
                outcome.refuse(row, report)
        elif isinstance(report, MissingTopicError):
            # Deleted since it was seen: the next drain creates it, or says that it cannot.
            broker.known_topics.discard(message.topic)
            outcome.unavailable = str(report)
            rest.append((row, message))
        elif report.retryable:
            outcome.unavailable = str(report)
            rest.append((row, message))
        elif len(segment) == 1:
            outcome.refuse(row, report)
        else:
            suspects.append(len(rest))
            rest.append((row, message))
    return rest, suspects


def _narrowed(rest: list[_Sendable], suspects: Sequence[int]) -> list[list[_Sendable]]:
    # A whole batch is refused for one message of it: halve what it may be.
    first, middle, after = suspects[0], suspects[len(suspects) // 2], suspects[-1] + 1
    if len(suspects) == 1:
        return [rest[:first], rest[first:after], rest[after:]]
    return [rest[:first], rest[first:middle], rest[middle:after], rest[after:]]
