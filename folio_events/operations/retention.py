"""Purge: delete what is settled and past its retention, in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.models import Exists, Max, Min, OuterRef, Q, QuerySet
from django.utils import timezone

from folio_events import attempts, counts, processes, topics
from folio_events.conf import get_settings
from folio_events.models import (
    Backfill,
    BrokerPartition,
    BrokerRecord,
    BulkAction,
    ConsumerOffset,
    Delivery,
    EventCount,
    InboxEntry,
    Orphan,
    OutboxMessage,
    Process,
    Publication,
    RelayCursor,
    RelayGap,
    Replay,
    WithheldMessage,
)
from folio_events.receivers import registry
from folio_events.topics.declared import TOMBSTONE_RETENTION, topic_options

logger = logging.getLogger("folio_events.retention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """How many rows a purge deleted, or would delete, by table."""

    outbox_messages: int = 0
    inbox_entries: int = 0
    deliveries: int = 0
    orphans: int = 0
    replays: int = 0
    bulk_actions: int = 0
    backfills: int = 0
    broker_records: int = 0
    processes: int = 0
    event_counts: int = 0


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


def of_progress(progress: OutboxMessage.Progress, *, using: str) -> tuple[Q, Q]:
    """Conditions of outbox messages that got so far: those that an index serves, and the rest."""
    match progress:
        case OutboxMessage.Progress.WAITING:
            # Below the horizon none is, and nothing has to be read.
            rest = Q(publication__isnull=True, withheldmessage__isnull=True)
            return Q(pk__gte=horizon(using=using)), rest
        case OutboxMessage.Progress.PUBLISHED:
            return Q(), Q(publication__isnull=False)
        case OutboxMessage.Progress.WITHHELD:
            return Q(withheldmessage__state__in=WithheldMessage.OPEN), Q()
        case OutboxMessage.Progress.DISCARDED:
            return Q(withheldmessage__state=WithheldMessage.State.DISCARDED), Q()


@dataclass(frozen=True, slots=True)
class _Sweep:
    """How a purge goes about it."""

    dry_run: bool
    told: Callable[[int], None]


def purge(
    *,
    dry_run: bool = False,
    told: Callable[[int], None] = lambda _rows: None,
    using: str = DEFAULT_DB_ALIAS,
) -> Purge:
    """Delete settled rows past OUTBOX_, INBOX_, DELIVERY_ and BROKER_RETENTION.

    Replays, bulk actions and back-fills that ended are kept as long as deliveries. Processes that vanished a day ago and event counts older than two days go too.

    Never what is unpublished, withheld, retrying, dead, running or an open orphan, and of the
    database broker's log nothing that a group has not read, nor the last record of a key of a
    compacted topic. Each batch is a transaction of its own.

    Args:
        dry_run: Whether only to count.
        told: Told how many rows each batch deleted.
        using: Database alias.

    Returns:
        How many rows of each table were deleted, or would be.
    """
    settings = get_settings()
    now = timezone.now()
    sweep = _Sweep(dry_run, told)

    def before(retention: float) -> datetime:
        return now - timedelta(seconds=retention)

    kept = before(settings.DELIVERY_RETENTION)
    done = Purge(
        outbox_messages=_purge_outbox(before(settings.OUTBOX_RETENTION), sweep, using),
        inbox_entries=_delete(
            InboxEntry.objects.using(using).filter(handled_at__lt=before(settings.INBOX_RETENTION)),
            "handled_at",
            sweep,
        ),
        deliveries=_delete(
            Delivery.objects.using(using)
            .exclude(state__in=Delivery.OPEN)
            .filter(resolved_at__lt=kept),
            "resolved_at",
            sweep,
        ),
        orphans=_delete(
            Orphan.objects.using(using).filter(resolved_at__lt=kept), "resolved_at", sweep
        ),
        replays=_delete(_ended(Replay, kept, using, named_by="replay"), "finished_at", sweep),
        bulk_actions=_delete(
            _ended(BulkAction, kept, using, named_by="bulk_action"), "finished_at", sweep
        ),
        backfills=_delete(_ended(Backfill, kept, using), "finished_at", sweep),
        broker_records=_purge_broker(before(settings.BROKER_RETENTION), sweep, using),
        processes=_delete(
            Process.objects.using(using).filter(heartbeat_at__lt=now - processes.KEPT),
            "heartbeat_at",
            sweep,
        ),
        event_counts=sum(
            _delete(
                EventCount.objects.using(using).filter(span=span, started_at__lt=now - counts.KEPT),
                "started_at",
                sweep,
            )
            for span in (counts.MINUTE, counts.TEN_MINUTES)
        ),
    )
    if not dry_run and any(asdict(done).values()):
        logger.info("purged database %s: %s", using, done)
    return done


def table_sizes(*, using: str = DEFAULT_DB_ALIAS) -> dict[str, int]:
    """Bytes of this app's tables with their indexes, by table; empty where only PostgreSQL knows."""
    if connections[using].vendor != "postgresql":
        return {}
    tables = [model._meta.db_table for model in apps.get_app_config("folio_events").get_models()]
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT name, pg_total_relation_size(to_regclass(name)) FROM unnest(%s::text[]) AS name"
            " WHERE to_regclass(name) IS NOT NULL",
            [tables],
        )
        return dict(cursor.fetchall())


def _ended(
    model: type[Replay | BulkAction | Backfill],
    cutoff: datetime,
    using: str,
    *,
    named_by: str | None = None,
) -> QuerySet:  # type: ignore[type-arg]  # of any of them
    """What ended before a time, and is not named by an open delivery in a column of it."""
    rows = model._base_manager.using(using).filter(finished_at__lt=cutoff)  # none that runs
    if named_by is None:
        return rows
    still_open = Delivery.objects.using(using).filter(state__in=Delivery.OPEN)
    return rows.filter(~Exists(still_open.filter(**{named_by: OuterRef("pk")})))


def _delete(rows: QuerySet, column: str, sweep: _Sweep) -> int:  # type: ignore[type-arg]  # of any model
    """Delete in batches along an indexed column, of which many rows may have one value."""
    if sweep.dry_run:
        return int(rows.count())
    size = get_settings().PURGE_BATCH_SIZE
    table = rows.model._base_manager.using(rows.db)
    deleted = 0
    while True:
        # Named one by one: a subquery is planned as a join with the whole table.
        batch = list(rows.order_by(column).values_list("pk", flat=True)[:size])
        if rows.model is Delivery:
            attempts.forget(batch, using=rows.db)
        count, _ = table.filter(pk__in=batch).delete()
        deleted += int(count)
        sweep.told(int(count))
        if len(batch) < size:
            return deleted


def _purge_outbox(cutoff: datetime, sweep: _Sweep, using: str) -> int:
    size = get_settings().PURGE_BATCH_SIZE
    settled = OutboxMessage.objects.using(using).filter(id__lt=horizon(using=using)).order_by("id")
    after = deleted = 0
    while True:
        page = list(settled.filter(id__gt=after).values_list("id", "occurred_at")[:size])
        old = [number for number, occurred_at in page if occurred_at < cutoff]
        if not old:
            # Ids grow with time: behind a page without old rows there are none.
            return deleted
        if not sweep.dry_run:
            with transaction.atomic(using=using):
                Publication.objects.using(using).filter(outbox_message__in=old).delete()
                WithheldMessage.objects.using(using).filter(outbox_message__in=old).delete()
                OutboxMessage.objects.using(using).filter(id__in=old).delete()
            sweep.told(len(old))
        deleted += len(old)
        after = page[-1][0]


def _purge_broker(cutoff: datetime, sweep: _Sweep, using: str) -> int:
    stamp = int(cutoff.timestamp() * 1000)
    places = BrokerPartition.objects.using(using).values_list("topic", "partition")
    return sum(
        _purge_partition(topic, number, stamp, sweep, using) for topic, number in list(places)
    )


def _purge_partition(topic: str, partition: int, stamp: int, sweep: _Sweep, using: str) -> int:
    size = get_settings().PURGE_BATCH_SIZE
    rows = BrokerRecord.objects.using(using).filter(topic=topic, partition=partition)
    unread = first_unread(topic, partition, using=using)
    read = rows if unread is None else rows.filter(offset__lt=unread)
    kept = _kept(topic, rows)
    after, deleted = -1, 0
    while True:
        page = read.filter(offset__gt=after).order_by("offset")
        found = list(page.values_list("offset", "timestamp")[:size])
        old = [offset for offset, timestamp in found if timestamp < stamp]
        if not old:
            # Offsets grow with time: behind a page without old records there are none.
            return deleted
        doomed = [offset for offset in old if offset not in kept]
        if not sweep.dry_run:
            rows.filter(offset__in=doomed).delete()
            sweep.told(len(doomed))
        deleted += len(doomed)
        after = found[-1][0]


def _kept(topic: str, rows: QuerySet[BrokerRecord]) -> set[int]:
    """The offsets that a compacted topic keeps whatever their age."""
    options = topic_options(topics.parse_wire_topic(topic).topic)
    if options.cleanup_policy != "compact":
        return set()
    lasts = rows.exclude(key=None).order_by().values("key").annotate(last=Max("offset"))
    stamp = (time.time() - (options.delete_retention or TOMBSTONE_RETENTION)) * 1000
    told = rows.filter(value=None, timestamp__lt=stamp)
    return set(lasts.values_list("last", flat=True)) - set(told.values_list("offset", flat=True))


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
