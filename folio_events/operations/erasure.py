"""Erase what is kept of a tenant's events, or of one key's, past all retention."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Q, QuerySet

from folio_events import deliveries, orphans, relay, topics
from folio_events.audit import Actor, log_erasure
from folio_events.conf import get_settings
from folio_events.dialects import decode
from folio_events.exceptions import DecodingError, InvalidStateError
from folio_events.message import Record, TopicPartition, decode_headers, key_text
from folio_events.models import (
    Backfill,
    BrokerPartition,
    BrokerRecord,
    Delivery,
    Orphan,
    OutboxMessage,
    Publication,
    WithheldMessage,
)
from folio_events.operations import backfill
from folio_events.operations.known_names import refuse_unknown
from folio_events.operations.retention import first_unread, unpublished


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """How many rows were erased, or would be, by table."""

    outbox_messages: int = 0
    deliveries: int = 0
    orphans: int = 0
    broker_records: int = 0
    #: Of a tenant that is erased as a whole.
    backfills: int = 0
    #: Of the outbox messages: those not published, withheld ones among them.
    unpublished: int = 0
    #: Of the deliveries: those retrying or dead.
    open_deliveries: int = 0
    #: Of the orphans: those that nobody has settled.
    open_orphans: int = 0
    #: Of the broker records: those that a group has not read.
    unread_records: int = 0

    @property
    def is_open(self) -> bool:
        """Whether some are unpublished, open or unread."""
        return any((self.unpublished, self.open_deliveries, self.open_orphans, self.unread_records))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """Whose data it is; what is None does not matter."""

    tenant: str | None
    topic: str | None
    key: str | None

    def __str__(self) -> str:
        # The key may be personal itself; who knows it can make the digest again.
        digest = None if self.key is None else hashlib.sha256(self.key.encode()).hexdigest()
        parts = {"tenant": self.tenant, "topic": self.topic, "key-sha256": digest}
        return " ".join(f"{name}={value}" for name, value in parts.items() if value is not None)

    @property
    def whole_tenant(self) -> str | None:
        return self.tenant if self.topic is None and self.key is None else None

    def messages(self, using: str) -> QuerySet[OutboxMessage]:
        wanted = {name: value for name, value in asdict(self).items() if value is not None}
        return OutboxMessage.objects.using(using).filter(**wanted)

    def deliveries(self, using: str) -> QuerySet[Delivery]:
        rows = Delivery.objects.using(using).exclude(headers=b"")  # blanked before
        if self.key is not None:
            rows = rows.filter(key=key_text(self.key.encode()))
        if self.tenant is not None:
            # One that cannot be decoded names its tenant by its topic alone.
            unnamed = rows.filter(tenant="").order_by().values_list("topic", flat=True).distinct()
            own = [name for name in unnamed if topics.parse_wire_topic(name).tenant == self.tenant]
            rows = rows.filter(Q(tenant=self.tenant) | Q(tenant="", topic__in=own))
        if self.topic is not None:
            names = rows.order_by().values_list("topic", flat=True).distinct()
            rows = rows.filter(topic__in=[n for n in names if self._has_topic(n)])
        return rows

    def orphans(self, using: str) -> Iterator[list[int]]:
        """Orphans by id, a batch at a time: those with the key that name the tenant anywhere."""
        rows = Orphan.objects.using(using).exclude(headers=b"")  # blanked before
        if self.key is not None:
            rows = rows.filter(key=key_text(self.key.encode()))
        for ids in _batches(rows, "id"):
            yield [
                orphan.pk
                for orphan in rows.filter(pk__in=ids).order_by("pk")
                if self._has_topic(orphan.topic)
                and (self.tenant is None or orphans.names_tenant(orphan, self.tenant))
            ]

    def records(self, using: str) -> Iterator[tuple[TopicPartition, list[int]]]:
        """Offsets in the database broker's log, a batch of one partition at a time."""
        places = BrokerPartition.objects.using(using).values_list("topic", "partition")
        for place in [TopicPartition(*pair) for pair in places.order_by("topic", "partition")]:
            if not self._has_topic(place.topic):
                continue
            rows = BrokerRecord.objects.using(using).filter(**place._asdict())
            if self.key is not None:
                rows = rows.filter(key=self.key.encode())
            segment = topics.parse_wire_topic(place.topic).tenant
            if self.tenant in (None, segment):
                yield from ((place, offsets) for offsets in _batches(rows, "offset"))
            elif segment is not None and segment == get_settings().TENANT_COLLECTION:
                for offsets in _batches(rows, "offset"):
                    yield place, self._of_tenant(rows.filter(offset__in=offsets), place)

    def _of_tenant(self, rows: QuerySet[BrokerRecord], place: TopicPartition) -> list[int]:
        found = []
        columns = ("offset", "value", "headers", "timestamp")
        for offset, value, headers, timestamp in rows.values_list(*columns).iterator():
            stored = decode_headers(bytes(headers))
            record = Record(*place, offset, None, value and bytes(value), stored, timestamp)
            try:
                tenant = decode(record).tenant
            except DecodingError as error:
                tenant = error.tenant
            if tenant == self.tenant:
                found.append(offset)
        return found

    def _has_topic(self, wire_topic: str) -> bool:
        return self.topic in (None, topics.parse_wire_topic(wire_topic).topic)


def erase_events(
    *,
    tenant: str | None = None,
    topic: str | None = None,
    key: str | None = None,
    reason: str,
    discard_open: bool = False,
    dry_run: bool = False,
    by: Actor = None,
    using: str = DEFAULT_DB_ALIAS,
) -> Erasure:
    """Erase the events of a tenant, or of a topic and key, from every table that holds them.

    Outbox messages, their publications and withheld copies, and the database broker's records
    are deleted. Deliveries and orphans are blanked, and inbox entries, which hold ids only, stay: both keep
    an event that is read again from taking effect again. Safe while everything runs, but what
    is written meanwhile may stay: end the writers first, or do it again.

    Each batch of PURGE_BATCH_SIZE rows is a transaction of its own, so not to be called within
    one. Erasing is written to Django's log, the key by its digest only.

    Args:
        tenant: All topics of this tenant; with a topic, or a topic and key, only those.
        topic: Logical topic; without a tenant it needs a key.
        key: As the event has it; it needs a topic.
        reason: Kept with deliveries and in Django's log.
        discard_open: Whether to erase what is not published, open or unread too. It reaches no
            receiver then.
        dry_run: Only count.
        by: The user who asks.
        using: Database alias.

    Returns:
        How many rows of each table.

    Raises:
        ValueError: Neither a tenant, nor a topic and key, is named; or there is no reason; or
            there is nothing to erase, since no row and no declaration names the tenant or topic.
        InvalidStateError: There are rows unpublished, open or unread; nothing is erased.
    """
    scope = _Scope(tenant=tenant, topic=topic, key=key)
    # An empty tenant or topic would be that of everybody who has none.
    if "" in (tenant, topic) or (key is not None and topic is None):
        raise ValueError("Name a tenant, or a topic and a key; a key means something in its topic.")
    if tenant is None and key is None:
        raise ValueError("Name a tenant, or a topic and a key: a whole topic is not erased.")
    if dry_run:
        return _known(_count(scope, using), scope, using)
    if not reason.strip():
        raise ValueError("Say why: the reason is kept in Django's log.")
    if not discard_open:
        _refuse_open(_count(scope, using))
    done: Counter[str] = Counter()
    try:
        for ids in _batches(scope.messages(using), "id"):
            done.update(_erase_messages(ids, discard_open, using))
        for ids in _batches(scope.deliveries(using), "id"):
            erased = deliveries.erase(ids, reason=reason, discard_open=discard_open, using=using)
            done.update(deliveries=erased.blanked, open_deliveries=erased.discarded)
        for ids in scope.orphans(using):
            lost = orphans.erase(ids, reason=reason, discard_open=discard_open, using=using)
            done.update(orphans=lost.blanked, open_orphans=lost.discarded)
        for place, offsets in scope.records(using):
            done.update(_erase_records(place, offsets, discard_open, using))
        if scope.whole_tenant is not None:
            done.update(backfills=backfill.erase(scope.whole_tenant, using=using))
    finally:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in done.items())
        log_erasure(f"{scope} in database {using}: {counts or 'nothing'}; {reason}", by=by)
    return _known(Erasure(**done), scope, using)


def _known(found: Erasure, scope: _Scope, using: str) -> Erasure:
    """Return what was found; nothing may mean that a name is misspelt."""
    if found == Erasure():
        refuse_unknown(topic=scope.topic, tenant=scope.tenant, using=using)
    return found


def _batches(rows: QuerySet, column: str) -> Iterator[list[int]]:  # type: ignore[type-arg]  # any
    """Values of a column that orders the rows, a batch at a time."""
    size, after = get_settings().PURGE_BATCH_SIZE, -1
    while True:
        part = rows.filter(**{f"{column}__gt": after}).order_by(column)
        found = list(part.values_list(column, flat=True)[:size])
        if found:
            yield found
        if len(found) < size:
            return
        after = found[-1]


def _count(scope: _Scope, using: str) -> Erasure:
    messages, rows = scope.messages(using), scope.deliveries(using)
    kept = [pk for ids in scope.orphans(using) for pk in ids]
    still_open = Orphan.objects.using(using).filter(state=Orphan.State.OPEN)
    unread = total = 0
    for place, offsets in scope.records(using):
        total += len(offsets)
        unread += len(_unread(place, offsets, using))
    return Erasure(
        outbox_messages=messages.count(),
        unpublished=unpublished(messages).count(),
        deliveries=rows.count(),
        open_deliveries=rows.filter(state__in=Delivery.OPEN).count(),
        orphans=len(kept),
        open_orphans=still_open.filter(pk__in=kept).count(),
        broker_records=total,
        backfills=0
        if scope.whole_tenant is None
        else Backfill.objects.using(using).filter(tenant=scope.whole_tenant).count(),
        unread_records=unread,
    )


def _refuse_open(found: Erasure) -> None:
    if found.is_open:
        raise InvalidStateError(
            f"{found.unpublished} outbox messages are not published, {found.open_deliveries} "
            f"deliveries are open and {found.unread_records} records of the database broker are "
            f"unread; {found.open_orphans} orphans are open. Let them be settled, or erase them "
            "too with discard_open=True (--discard-open): they reach no receiver then. Nothing was erased."
        )


def _erase_messages(ids: list[int], discard_open: bool, using: str) -> dict[str, int]:
    # A drain that has read a row would publish it, and record that, after it was deleted.
    with relay.paused(using):
        rows = OutboxMessage.objects.using(using).filter(id__in=ids)
        waiting = set(unpublished(rows).values_list("id", flat=True))
        if not discard_open:
            ids, waiting = [number for number in ids if number not in waiting], set()
        Publication.objects.using(using).filter(outbox_message__in=ids).delete()
        WithheldMessage.objects.using(using).filter(outbox_message__in=ids).delete()
        deleted, _ = OutboxMessage.objects.using(using).filter(id__in=ids).delete()
    return {"outbox_messages": deleted, "unpublished": len(waiting)}


def _unread(place: TopicPartition, offsets: list[int], using: str) -> list[int]:
    first = first_unread(*place, using=using)
    return [] if first is None else [offset for offset in offsets if offset >= first]


def _erase_records(
    place: TopicPartition, offsets: list[int], discard_open: bool, using: str
) -> dict[str, int]:
    unread = _unread(place, offsets, using)
    if not discard_open:
        offsets, unread = [offset for offset in offsets if offset not in set(unread)], []
    rows = BrokerRecord.objects.using(using).filter(**place._asdict(), offset__in=offsets)
    deleted, _ = rows.delete()
    return {"broker_records": deleted, "unread_records": len(unread)}
