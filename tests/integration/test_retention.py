"""Purge deletes what is settled and old, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from folio_events import RetryPolicy, deliveries, publish, relay, withheld
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import (
    Backfill,
    BrokerRecord,
    BulkAction,
    Delivery,
    InboxEntry,
    OutboxMessage,
    Publication,
    RelayGap,
    Replay,
    WithheldMessage,
)
from folio_events.operations.retention import Purge, horizon, purge
from folio_events.testing import deliver_all
from tests.note_topic import Mood, NoteTopic, note_receiver
from tests.outbox_writer import outbox_writers

pytestmark = pytest.mark.django_db(transaction=True)


def note(number: int, key: str = "k", text: str = "") -> None:
    publish("library.note", key=key, payload={"number": number, "text": text})


def drain() -> None:
    """Publish what is there; the second pass finds that nothing comes below it."""
    relay.drain()
    relay.drain()


def grow_old() -> None:
    """All that is there was written a year ago."""
    past = timezone.now() - timedelta(days=365)
    OutboxMessage.objects.update(occurred_at=past)
    InboxEntry.objects.update(handled_at=past)
    Delivery.objects.exclude(resolved_at=None).update(resolved_at=past)
    BrokerRecord.objects.update(timestamp=0)


def test_published_messages_go_when_they_are_old(memory_broker: MemoryBroker) -> None:
    """Their publications go with them."""
    for number in range(5):
        note(number)
    drain()
    assert purge() == Purge()
    grow_old()
    assert purge().outbox_messages == 5
    assert not OutboxMessage.objects.exists()
    assert not Publication.objects.exists()


def test_a_purge_goes_in_batches(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """More rows than one transaction takes are deleted all the same."""
    folio_events(PURGE_BATCH_SIZE=2)
    for number in range(5):
        note(number)
    drain()
    grow_old()
    assert purge().outbox_messages == 5


def test_unpublished_messages_stay_however_old(memory_broker: MemoryBroker) -> None:
    """Age alone deletes nothing."""
    note(0)
    drain()
    note(1)
    grow_old()
    assert purge().outbox_messages == 1
    assert OutboxMessage.objects.count() == 1


def test_nothing_from_a_withheld_message_on_is_deleted(memory_broker: MemoryBroker) -> None:
    """What a person has not settled stays, with all that came later."""
    note(0, key="other")
    note(1, text="x" * 2_000_000)
    note(2, key="other")
    drain()
    grow_old()
    assert purge().outbox_messages == 1
    refused = WithheldMessage.objects.get(state="refused")
    withheld.discard([refused.pk], reason="too large")
    assert purge().outbox_messages == 2


@pytest.mark.postgres
def test_nothing_above_a_gap_is_deleted(memory_broker: MemoryBroker) -> None:
    """A row that commits late keeps its place, however old it is by then."""
    note(0)
    drain()
    with outbox_writers(1) as (late,):
        late.append()
        note(2)
        drain()
        assert RelayGap.objects.exists()
        grow_old()
        assert purge().outbox_messages == 1
        assert horizon() == RelayGap.objects.get().first_id
        late.commit()
    drain()
    grow_old()
    assert purge().outbox_messages == 2


def test_settled_deliveries_and_inbox_entries_go_when_they_are_old(notes: NoteTopic) -> None:
    """Open deliveries stay."""
    note_receiver("picky", Mood(0, 1), order="none")
    notes.put_all("abc")
    notes.consume()
    first, second = Delivery.objects.order_by("id")
    deliveries.discard([first.pk], reason="not needed")
    grow_old()
    done = purge()
    assert (done.inbox_entries, done.deliveries) == (1, 1)
    assert Delivery.objects.get() == second


def replay_row(state: str, ended: timedelta) -> Replay:
    at = timezone.now() - ended
    return Replay.objects.create(
        state=state, source="outbox", receivers=[], criteria={}, worker=uuid.uuid4(),
        created_at=at, updated_at=at, finished_at=None if state == "running" else at,
    )  # fmt: skip


def bulk_action_row(state: str, ended: timedelta) -> BulkAction:
    at = timezone.now() - ended
    return BulkAction.objects.create(
        subject="delivery", action="retry", digest="", last_id=0, total=0, next_at=at,
        state=state, created_at=at, updated_at=at,
        finished_at=None if state == "running" else at,
    )  # fmt: skip


def backfill_row(state: str, ended: timedelta) -> Backfill:
    at = timezone.now() - ended
    return Backfill.objects.create(
        id=uuid.uuid4(), model="testapp.Book", event_type="CREATE", state=state,
        worker=uuid.uuid4(), created_at=at, updated_at=at,
        finished_at=None if state == "running" else at,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "table"),
    [
        (replay_row, "replays"),
        (bulk_action_row, "bulk_actions"),
        (backfill_row, "backfills"),
    ],
)
def test_what_operators_had_done_goes_when_it_ended_long_ago(
    row: Callable[[str, timedelta], Replay | BulkAction | Backfill],
    table: str,
    folio_events: Callable[..., None],
) -> None:
    """Batch by batch; never what runs, however long ago it began."""
    folio_events(DELIVERY_RETENTION=86_400, PURGE_BATCH_SIZE=2)
    old, young = timedelta(days=2), timedelta(hours=1)
    for state in ("done", "cancelled", "done"):
        row(state, old)
    kept = {row("running", old).pk, row("done", young).pk}

    assert purge(dry_run=True) == Purge(**{table: 3})
    assert purge() == Purge(**{table: 3})

    assert set(type(row("done", young)).objects.values_list("pk", flat=True)) > kept


@pytest.mark.parametrize(
    ("row", "column"), [(replay_row, "replay"), (bulk_action_row, "bulk_action")]
)
def test_what_has_open_deliveries_stays(
    row: Callable[[str, timedelta], Replay | BulkAction], column: str, notes: NoteTopic
) -> None:
    """Whoever looks at one of them finds where it comes from."""
    note_receiver("picky", Mood(0), retry=RetryPolicy(attempts=1))
    notes.put("a", 0)
    notes.consume()
    ended = row("done", timedelta(days=365))
    Delivery.objects.update(**{column: ended.pk})

    assert purge() == Purge()

    Delivery.objects.update(state="discarded", resolved_at=timezone.now())
    assert purge() == Purge(**{f"{column}s": 1})


def test_the_database_broker_keeps_what_a_group_has_not_read(only_test_receivers: None) -> None:
    """Purge follows the slowest group."""
    note_receiver("fast")
    note(0)
    deliver_all()
    note_receiver("slow", group="slow")
    grow_old()
    assert purge().broker_records == 0
    deliver_all()
    grow_old()
    assert purge().broker_records == 1


def test_the_command_says_what_it_deleted(
    memory_broker: MemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each table."""
    note(0)
    drain()
    grow_old()
    call_command("purge_events")
    assert "outbox messages: 1 deleted" in capsys.readouterr().out


def test_a_topic_that_no_group_reads_is_purged_by_age(only_test_receivers: None) -> None:
    """Records that nobody waits for do not stay for ever."""
    note(0)
    drain()
    grow_old()
    assert purge().broker_records == 1


def test_each_batch_is_a_transaction_of_its_own(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """A purge that breaks off keeps what it has done; no statement holds more than a batch."""
    folio_events(PURGE_BATCH_SIZE=2)
    for number in range(5):
        note(number)
    drain()
    grow_old()
    deletions = 0

    def fail_at_the_third(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal deletions
        if sql.startswith("DELETE") and "outboxmessage" in sql:
            deletions += 1
            assert len(params) <= 2
            if deletions == 3:
                raise ZeroDivisionError
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail_at_the_third), pytest.raises(ZeroDivisionError):
        purge()
    assert OutboxMessage.objects.count() == Publication.objects.count() == 1
    assert purge().outbox_messages == 1


def test_a_purge_reads_ids_and_no_payload(memory_broker: MemoryBroker) -> None:
    """Memory stays flat, however large the events are."""
    note(0)
    drain()
    grow_old()
    with CaptureQueriesContext(connection) as captured:
        assert purge().outbox_messages == 1
    read = [q["sql"] for q in captured.captured_queries if q["sql"].startswith("SELECT")]
    assert read
    assert not [sql for sql in read if "payload" in sql or "value" in sql]


def test_rows_of_one_moment_are_no_larger_batch(
    notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """Thousands that were settled at once are deleted a batch at a time, as others are."""
    folio_events(PURGE_BATCH_SIZE=2)
    note_receiver("picky", Mood(*range(5)), order="none")
    note_receiver("fine")
    notes.put_all("abcde")
    notes.consume()
    deliveries.discard([row.pk for row in Delivery.objects.all()], reason="not needed")
    grow_old()
    with CaptureQueriesContext(connection) as captured:
        done = purge()
    assert (done.deliveries, done.inbox_entries) == (5, 5)
    for table in ("folio_events_delivery", "folio_events_inboxentry"):
        statements = [q["sql"] for q in captured.captured_queries if f'FROM "{table}"' in q["sql"]]
        assert sum(sql.startswith("DELETE") for sql in statements) == 3
