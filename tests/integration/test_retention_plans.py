"""Purge and erasure go by an index, batch by batch, where tables hold thousands of rows."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from folio_events.models import (
    Backfill,
    BrokerRecord,
    BulkAction,
    ConsumerOffset,
    Delivery,
    EventCount,
    InboxEntry,
    Orphan,
    OutboxMessage,
    Process,
    RelayCursor,
    Replay,
    WithheldMessage,
)
from folio_events.operations.erasure import Erasure, erase_events
from folio_events.operations.retention import purge
from tests.integration.test_query_plans import BACKING_OFF, analyze, faults_of_all, fill_tables

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]


@pytest.fixture
def _settled(folio_events: Callable[..., None], only_test_receivers: None) -> None:
    """Thousands of rows in each table, all published, read and resolved; the first 200 are old."""
    folio_events(PURGE_BATCH_SIZE=20)
    fill_tables(BACKING_OFF)
    past, now = timezone.now() - timedelta(days=365), timezone.now()
    ids = list(OutboxMessage.objects.order_by("id").values_list("id", flat=True)[:200])
    OutboxMessage.objects.filter(id__in=ids).update(occurred_at=past)
    effects = list(InboxEntry.objects.values_list("pk", flat=True)[:200])
    InboxEntry.objects.filter(pk__in=effects).update(handled_at=past)
    WithheldMessage.objects.update(state="published", resolved_at=now)
    Delivery.objects.update(state="resolved", resolved_at=now)
    rows = list(Delivery.objects.order_by("id").values_list("id", flat=True)[:200])
    Delivery.objects.filter(id__in=rows).update(resolved_at=past)
    BrokerRecord.objects.filter(offset__gte=50).update(timestamp=int(now.timestamp() * 1000))
    ConsumerOffset.objects.all().delete()
    _fill_watching(past, now)
    last = OutboxMessage.objects.latest("id").pk
    RelayCursor.objects.create(position=last, version=1, updated_at=past)
    analyze()


def _fill_watching(past: datetime, now: datetime) -> None:
    """Orphans, processes, event counts and more: 200 old ones of each, mostly among thousands."""
    times = [past + timedelta(minutes=n) for n in range(200)]
    times += [now - timedelta(seconds=n / 10) for n in range(3000)]
    Orphan.objects.bulk_create(
        Orphan(
            topic="folio.library.book", partition=0, offset=number, state="discarded",
            fault="missing", error="", headers=b"[]", published_at=at, found_at=at, resolved_at=at,
        )
        for number, at in enumerate(times)
    )  # fmt: skip
    Process.objects.bulk_create(
        Process(
            id=uuid.uuid4(), kind="relay", name="default", host="one", pid=number,
            state="polling", interval=5, started_at=at, heartbeat_at=at,
        )
        for number, at in enumerate(times)
    )  # fmt: skip
    EventCount.objects.bulk_create(
        EventCount(span=60, started_at=at, outcome="handled", name="one", shard=0, count=1)
        for at in times
    )
    _fill_ended(times[:220])


def _fill_ended(times: list[datetime]) -> None:
    """As many replays, bulk actions and back-fills as people begin."""
    Replay.objects.bulk_create(
        Replay(
            state="done", source="outbox", receivers=[], criteria={}, worker=uuid.uuid4(),
            created_at=at, updated_at=at, finished_at=at,
        )
        for at in times
    )  # fmt: skip
    BulkAction.objects.bulk_create(
        BulkAction(
            subject="delivery", action="retry", state="done", digest="", last_id=0, total=0,
            next_at=at, created_at=at, updated_at=at, finished_at=at,
        )
        for at in times
    )  # fmt: skip
    Backfill.objects.bulk_create(
        Backfill(
            id=uuid.uuid4(), model="testapp.Book", event_type="CREATE", state="done",
            worker=uuid.uuid4(), created_at=at, updated_at=at, finished_at=at,
        )
        for at in times
    )  # fmt: skip


def undone(call: Callable[[], object]) -> Callable[[], None]:
    """The same, rolled back, so that the plans that follow find the rows."""

    def run() -> None:
        with transaction.atomic():
            call()
            transaction.set_rollback(True)

    return run


@pytest.mark.usefixtures("_settled")
def test_a_purge_goes_by_indexes() -> None:
    """No statement of it looks at more than a batch, whatever the tables hold."""
    done = []
    faults = faults_of_all({"purge": undone(lambda: done.append(purge()))})
    assert set(asdict(done[0]).values()) == {200}
    assert faults == {}


@pytest.mark.usefixtures("_settled")
def test_erasing_a_key_goes_by_indexes() -> None:
    """To find one key's rows in outbox and deliveries, neither is read from end to end."""

    done: list[Erasure] = []

    def erase() -> None:
        done.append(erase_events(topic="library.book", key="7", reason="asked to"))

    BrokerRecord.objects.all().delete()  # the database broker's log has no index of keys
    faults = faults_of_all({"erase": undone(erase)})
    assert (done[0].outbox_messages, done[0].deliveries) == (8, 1)
    assert faults == {}
