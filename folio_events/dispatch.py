"""One batch of records to the receivers of a group, in transactions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from django.db import Error as DatabaseError
from django.db import connections, transaction

from folio_events import deliveries, inbox
from folio_events.deliveries import Failure
from folio_events.dialects import decode
from folio_events.event import Event
from folio_events.exceptions import DecodingError, FencedError, FolioEventsError
from folio_events.inbox import Effect
from folio_events.message import Record, TopicPartition, key_text
from folio_events.receivers import Receiver
from folio_events.retry import is_transient
from folio_events.tenants import event_context
from folio_events.topics import parse_wire_topic

logger = logging.getLogger("folio_events.dispatch")

#: Times that a receiver is started again after a transient fault of the database.
_TRANSIENT_ATTEMPTS = 3


class BrokenTransactionError(FolioEventsError):
    """A receiver caught a database error and went on; its transaction cannot be committed."""


class _ReceiverFailedError(Exception):
    """A receiver failed within a batch: the batch is rolled back and goes one by one."""


class _Incoming(NamedTuple):
    """A record as far as it could be read."""

    record: Record
    event: Event | None
    error: DecodingError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Which offsets a batch starts from; who holds others has been overtaken.

    Attributes:
        group: Consumer group.
        expected: Next offset of each partition of the batch.
        wait: Whether to wait for another consumer's lock, or give way to it.
    """

    group: str
    expected: Mapping[TopicPartition, int]
    wait: bool

    def lock(self, using: str, expected: Mapping[TopicPartition, int] | None = None) -> None:
        """Lock the offsets in the transaction of the caller.

        Raises:
            FencedError: Another consumer holds them or has moved them.
        """
        wanted = self.expected if expected is None else expected
        found = inbox.lock_offsets(self.group, wanted, using=using, wait=self.wait)
        if found != dict(wanted):
            raise FencedError(
                f"another consumer of group {self.group!r} is at work on these partitions"
            )


def run(receiver: Receiver, event: Event) -> None:
    """Run one receiver in the transaction of the caller, as the event's tenant.

    Raises:
        BrokenTransactionError: It swallowed a database error.
        Exception: Whatever it raises.
    """
    with event_context(event):
        receiver.function(event)
    if connections[receiver.using].needs_rollback:
        raise BrokenTransactionError(
            f"{receiver.name} caught a database error and went on. Let it pass, or wrap the "
            "failing part in transaction.atomic()."
        )


def dispatch(
    records: Sequence[Record], receivers: Sequence[Receiver], fence: Fence, *, using: str
) -> None:
    """Bring a batch to all receivers that work in one database, and move the offsets on.

    One transaction for the batch. If anything in it fails, the batch runs again record by
    record and receiver by receiver, each in a transaction of its own.

    Args:
        records: Ascending by offset within each partition, none before the fence.
        receivers: Those of the group with this alias.
        fence: Where the batch starts.
        using: Database alias.

    Raises:
        FencedError: Another consumer has these partitions; nothing took effect.
        django.db.Error: The database failed; what took effect is recorded.
    """
    batch = [_read(record) for record in records]
    try:
        with transaction.atomic(using=using):
            fence.lock(using)
            _dispatch_together(batch, receivers, using)
            ends = {record.topic_partition: record.offset + 1 for record in records}
            inbox.advance(fence.group, ends, using=using)
    except (_ReceiverFailedError, DatabaseError) as error:
        if isinstance(error, DatabaseError):
            connections[using].close_if_unusable_or_obsolete()
        _dispatch_apart(batch, receivers, fence, using)


def _read(record: Record) -> _Incoming:
    try:
        return _Incoming(record, decode(record), None)
    except DecodingError as error:
        return _Incoming(record, None, error)


def _wanting(incoming: _Incoming, receivers: Sequence[Receiver]) -> list[Receiver]:
    if incoming.event is not None:
        event = incoming.event
        return [receiver for receiver in receivers if receiver.wants(event)]
    # Nobody knows what it is: whoever listens to the topic may have missed something.
    topic = parse_wire_topic(incoming.record.topic).topic
    return [receiver for receiver in receivers if receiver.listens_to(topic)]


def _dispatch_together(
    batch: Sequence[_Incoming], receivers: Sequence[Receiver], using: str
) -> None:
    pairs = [
        (incoming, receiver) for incoming in batch for receiver in _wanting(incoming, receivers)
    ]
    names = {receiver.name for _, receiver in pairs}
    known = [incoming.event for incoming, _ in pairs if incoming.event is not None]
    keys = {event.key for event in known if event.key is not None}
    # An event may come twice; what has become a delivery is the retry pass's to run.
    blocked, kept = deliveries.standing(names, keys, {event.id for event in known}, using=using)
    todo: list[tuple[Receiver, Event]] = []
    for incoming, receiver in pairs:
        chain = _chain(receiver, incoming.record)
        if incoming.event is None:
            _record_undecodable(incoming, receiver, using)
            if chain is not None:
                blocked.add(chain)
        elif (receiver.name, incoming.event.id) in kept:
            continue
        elif chain in blocked:
            deliveries.record_held(receiver, incoming.record, incoming.event, using=using)
        else:
            todo.append((receiver, incoming.event))
    fresh = inbox.record({Effect(r.name, event.id) for r, event in todo}, using=using)
    for receiver, event in todo:
        effect = Effect(receiver.name, event.id)
        if effect in fresh:
            fresh.discard(effect)  # the same event may stand in the batch twice
            _run_in_batch(receiver, event)


def _run_in_batch(receiver: Receiver, event: Event) -> None:
    try:
        run(receiver, event)
    except DatabaseError:
        raise
    except Exception as error:
        raise _ReceiverFailedError from error


def _chain(receiver: Receiver, record: Record) -> tuple[str, str, str] | None:
    key = key_text(record.key)
    if key is None or receiver.order != "key":
        return None
    return receiver.name, record.topic, key


def _record_undecodable(incoming: _Incoming, receiver: Receiver, using: str) -> None:
    if incoming.error is not None:
        failure = Failure(error=incoming.error, attempt=1, pause=None)
        deliveries.record_failure(receiver, incoming.record, None, failure, using=using)


def _dispatch_apart(
    batch: Sequence[_Incoming], receivers: Sequence[Receiver], fence: Fence, using: str
) -> None:
    positions = dict(fence.expected)
    for incoming in batch:
        place = incoming.record.topic_partition
        here = {place: positions[place]}
        for receiver in _wanting(incoming, receivers):
            _deliver(incoming, receiver, fence, here, using)
        with transaction.atomic(using=using):
            fence.lock(using, here)
            positions[place] = incoming.record.offset + 1
            inbox.advance(fence.group, {place: positions[place]}, using=using)


def _deliver(
    incoming: _Incoming,
    receiver: Receiver,
    fence: Fence,
    here: Mapping[TopicPartition, int],
    using: str,
) -> None:
    """Bring one record to one receiver; a failure becomes a delivery."""

    def attempt() -> None:
        with transaction.atomic(using=using):
            fence.lock(using, here)
            _dispatch_one(incoming, receiver, using)

    event = incoming.event
    try:
        retrying_transients(attempt, using=using)
    except FencedError:
        raise
    except Exception as error:
        if event is None or is_transient(error):
            raise
        with transaction.atomic(using=using):
            fence.lock(using, here)
            failure = Failure(error=error, attempt=1, pause=receiver.retry.pause(error, 1))
            deliveries.record_failure(receiver, incoming.record, event, failure, using=using)


def _dispatch_one(incoming: _Incoming, receiver: Receiver, using: str) -> None:
    event, record = incoming.event, incoming.record
    if event is None:
        _record_undecodable(incoming, receiver, using)
        return
    blocked, kept = deliveries.standing(
        [receiver.name], [] if event.key is None else [event.key], [event.id], using=using
    )
    if (receiver.name, event.id) in kept:
        return
    if _chain(receiver, record) in blocked:
        deliveries.record_held(receiver, record, event, using=using)
    elif inbox.record([Effect(receiver.name, event.id)], using=using):
        run(receiver, event)


def retrying_transients(attempt: Callable[[], None], *, using: str) -> None:
    """Run something in a transaction of its own, again where the database had a passing fault.

    Raises:
        Exception: What the last run raised.
    """
    for left in reversed(range(_TRANSIENT_ATTEMPTS)):
        try:
            attempt()
        except DatabaseError as error:
            if not left or not is_transient(error):
                raise
            logger.info(
                "a transient fault of database %s, trying again: %s", using, type(error).__name__
            )
            connections[using].close_if_unusable_or_obsolete()
        else:
            return
