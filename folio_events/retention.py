"""Purge: delete what is settled and past its retention, in batches."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import Exists, Min, OuterRef, Q, QuerySet
from django.utils import timezone

from folio_events import topics
from folio_events.conf import get_settings
from folio_events.models import (
    BrokerPartition,
    BrokerRecord,
    ConsumerOffset,
    Delivery,
    InboxEntry,
    OutboxMessage,
    Publication,
    RelayCursor,
    RelayGap,
    WithheldMessage,
)
from folio_events.receivers import registry

logger = logging.getLogger("folio_events.retention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """How many rows a purge deleted, or would delete, by table."""

    outbox_messages: int = 0
    inbox_entries: int = 0
    deliveries: int = 0
    broker_records: int = 0


def horizon(*, using: str = DEFAULT_DB_ALIAS) -> int:
    """The outbox id below which every row is published or was settled by a person.

    Deleting by age alone would lose a row that commits after its age has passed.
    """
    # The cursor first: gaps that come afterwards lie above it.
    position = RelayCursor.objects.using(using).values_list("position", flat=True).first()
    if position is None:
        return 0
    gap = RelayGap.objects.using(using).aggregate(first=Min("first_id"))["first"]
    aside = WithheldMessage.objects.using(using).filter(state__in=WithheldMessage.OPEN)
    withheld = aside.aggregate(first=Min("outbox_message"))["first"]
    return min(bound for bound in (position + 1, gap, withheld) if bound is not None)


def unpublished(rows: QuerySet[OutboxMessage]) -> QuerySet[OutboxMessage]:
    """Those of some rows that are neither acknowledged by the broker nor given up by a person."""
    published = Publication.objects.using(rows.db).filter(outbox_message=OuterRef("pk"))
    discarded = WithheldMessage.objects.using(rows.db).filter(
        Q(outbox_message=OuterRef("pk")), ~Q(state__in=WithheldMessage.OPEN)
    )
    return rows.filter(~Exists(published), ~Exists(discarded))


def purge(*, using: str = DEFAULT_DB_ALIAS) -> Purge:
    """Delete settled rows past OUTBOX_, INBOX_, DELIVERY_ and BROKER_RETENTION.

    Never what is unpublished, withheld, retrying or dead, and of the database broker's log
    nothing that a group has not read. Each batch is a transaction of its own.

    Args:
        using: Database alias.

    Returns:
        How many rows of each table were deleted.
    """
    settings = get_settings()
    now = timezone.now()

    def before(retention: float) -> datetime:
        return now - timedelta(seconds=retention)

    done = Purge(
        outbox_messages=_purge_outbox(before(settings.OUTBOX_RETENTION), using),
        inbox_entries=_delete(
            InboxEntry.objects.using(using).filter(handled_at__lt=before(settings.INBOX_RETENTION)),
            "handled_at",
        ),
        deliveries=_delete(
            Delivery.objects.using(using)
            .exclude(state__in=Delivery.OPEN)
            .filter(resolved_at__lt=before(settings.DELIVERY_RETENTION)),
            "resolved_at",
        ),
        broker_records=_purge_broker(before(settings.BROKER_RETENTION), using),
    )
    if any(asdict(done).values()):
        logger.info("purged database %s: %s", using, done)
    return done


def _delete(rows: QuerySet, column: str) -> int:  # type: ignore[type-arg]  # of any model
    """Delete in batches along an indexed column, of which many rows may have one value."""
    size = get_settings().PURGE_BATCH_SIZE
    table = rows.model._base_manager.using(rows.db)
    deleted = 0
    while True:
        # Named one by one: a subquery is planned as a join with the whole table.
        batch = list(rows.order_by(column).values_list("pk", flat=True)[:size])
        count, _ = table.filter(pk__in=batch).delete()
        deleted += int(count)
        if len(batch) < size:
            return deleted


def _purge_outbox(cutoff: datetime, using: str) -> int:
    size = get_settings().PURGE_BATCH_SIZE
    settled = OutboxMessage.objects.using(using).filter(id__lt=horizon(using=using)).order_by("id")
    after = deleted = 0
    while True:
        page = list(settled.filter(id__gt=after).values_list("id", "occurred_at")[:size])
        old = [number for number, occurred_at in page if occurred_at < cutoff]
        if not old:
            # Ids grow with time: behind a page without old rows there are none.
            return deleted
        with transaction.atomic(using=using):
            Publication.objects.using(using).filter(outbox_message__in=old).delete()
            WithheldMessage.objects.using(using).filter(outbox_message__in=old).delete()
            OutboxMessage.objects.using(using).filter(id__in=old).delete()
        deleted += len(old)
        after = page[-1][0]


def _purge_broker(cutoff: datetime, using: str) -> int:
    stamp = int(cutoff.timestamp() * 1000)
    places = BrokerPartition.objects.using(using).values_list("topic", "partition")
    return sum(_purge_partition(topic, number, stamp, using) for topic, number in list(places))


def _purge_partition(topic: str, partition: int, stamp: int, using: str) -> int:
    size = get_settings().PURGE_BATCH_SIZE
    rows = BrokerRecord.objects.using(using).filter(topic=topic, partition=partition)
    unread = first_unread(topic, partition, using=using)
    read = rows if unread is None else rows.filter(offset__lt=unread)
    after, deleted = -1, 0
    while True:
        page = read.filter(offset__gt=after).order_by("offset")
        found = list(page.values_list("offset", "timestamp")[:size])
        old = [offset for offset, timestamp in found if timestamp < stamp]
        if not old:
            # Offsets grow with time: behind a page without old records there are none.
            return deleted
        deleted += rows.filter(offset__in=old).delete()[0]
        after = found[-1][0]


def first_unread(topic: str, partition: int, *, using: str) -> int | None:
    """The next offset of the group that is furthest behind, of the database broker's topic.

    Returns:
        0 while a group has not begun; None if there is no group.
    """
    logical = topics.parse_wire_topic(topic).topic
    listening = {receiver.group for receiver in registry if receiver.listens_to(logical)}
    rows = ConsumerOffset.objects.using(using).filter(topic=topic, partition=partition)
    offsets = dict(rows.values_list("group").annotate(Min("offset")))
    return min((offsets.get(group, 0) for group in {*listening, *offsets}), default=None)
