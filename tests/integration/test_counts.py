"""What was published, handled and failed is counted minute by minute, at nobody's cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from folio_events import RetryPolicy, counts, publish
from folio_events.brokers.memory import MemoryBroker
from folio_events.counts import Outcome
from folio_events.models import Delivery, EventCount
from folio_events.operations.retention import purge
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from tests.note_topic import LOGICAL, Mood, NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _nothing_counted() -> Iterator[None]:
    counts._pending.clear()
    yield
    counts._pending.clear()


def counted() -> Counter[tuple[str, str]]:
    """Write what was counted, and read the minutes."""
    counts.flush(using="default", at_once=True)
    found: Counter[tuple[str, str]] = Counter()
    for outcome, name, count in EventCount.objects.filter(span=60).values_list(
        "outcome", "name", "count"
    ):
        found[outcome, name] += count
    return found


class TestWhatIsCounted:
    def test_published_messages_by_logical_topic(self, memory_broker: MemoryBroker) -> None:
        """Of tenants' topics together: names are as many as topics, not as tenants."""
        for number in range(3):
            publish(LOGICAL, key=str(number), payload={"number": number})
        publish("library.loan", key="k", payload={})
        drain()
        assert counted() == {("published", LOGICAL): 3, ("published", "library.loan"): 1}

    def test_handled_failed_and_dead_by_receiver(self, notes: NoteTopic) -> None:
        """A batch that is rolled back and runs one by one counts once."""
        note_receiver("good")
        note_receiver("bad", Mood(1), retry=RetryPolicy(attempts=1), order="none")
        notes.put_all("abc")
        notes.consume()
        assert counted() == {
            ("handled", "good"): 3,
            ("handled", "bad"): 2,
            ("failed", "bad"): 1,
            ("dead", "bad"): 1,
        }

    def test_what_a_retry_pass_does(self, notes: NoteTopic) -> None:
        """A failure that was mended is one failed and one handled."""
        mood = Mood(0)
        note_receiver("bad", mood, retry=RetryPolicy(attempts=5, backoff=0.0))
        notes.put()
        notes.consume()
        mood.bad.clear()
        Delivery.objects.update(next_attempt_at=timezone.now())
        retry_due()
        assert counted() == {("failed", "bad"): 1, ("handled", "bad"): 1}

    def test_an_event_that_has_had_its_effect_is_not_counted_again(self, notes: NoteTopic) -> None:
        """What the inbox skips was not handled now."""
        note_receiver("good")
        event_id = notes.put()
        notes.put(event_id=event_id)
        notes.consume()
        assert counted() == {("handled", "good"): 1}


class TestCost:
    def test_a_drain_of_many_takes_no_more_statements(self, memory_broker: MemoryBroker) -> None:
        """What is counted waits in memory."""

        def statements(messages: int) -> int:
            for number in range(messages):
                publish(LOGICAL, key=str(number), payload={"number": number})
            with CaptureQueriesContext(connection) as queries:
                drain()
            assert not any(EventCount._meta.db_table in query["sql"] for query in queries)
            return len(queries)

        for _ in range(2):
            statements(1)
        assert statements(50) <= statements(1)

    def test_counts_are_written_together_and_seldom(self) -> None:
        """One statement for all, not before the interval is over."""
        for _ in range(1000):
            for name in ("a", "b"):
                counts.add(Outcome.HANDLED, name, using="default")
        with CaptureQueriesContext(connection) as queries:
            counts.flush(using="default")
            assert len(queries) == 0
            counts._pending["default"].due = time.monotonic()
            counts.flush(using="default")
        assert sum("INSERT" in query["sql"] for query in queries) == 1
        with CaptureQueriesContext(connection) as queries:
            counts.flush(using="default", at_once=True)
        assert len(queries) == 0

    def test_nothing_is_written_in_a_transaction(self) -> None:
        """It is a receiver's."""
        counts.add(Outcome.HANDLED, "a", using="default")
        with transaction.atomic(), CaptureQueriesContext(connection) as queries:
            counts.flush(using="default", at_once=True)
        assert len(queries) == 0
        assert counted() == {("handled", "a"): 1}


class TestRows:
    def test_processes_add_to_each_other(self) -> None:
        """Whether they share a row or have their own."""
        for shard in (0, 1):
            for _ in range(2):
                counts.add(Outcome.HANDLED, "a", 5, using="default")
                counts.flush(using="default", at_once=True)
            EventCount.objects.filter(shard__gt=1).update(shard=shard)
        assert counts.last_hour().counts["handled", "a"][-2:].count(0) <= 1
        assert sum(counts.last_hour().total("handled")) == 20

    def test_a_database_that_is_away_loses_no_count(self, caplog: pytest.LogCaptureFixture) -> None:
        """They are written when it is there again, none twice."""
        for number in range(120):
            counts.add(Outcome.HANDLED, f"receiver {number}", using="default")

        def fail(execute: Any, sql: str, *rest: Any) -> Any:
            if "receiver 119" in str(rest):
                raise OperationalError
            return execute(sql, *rest)

        with connection.execute_wrapper(fail):
            counts.flush(using="default", at_once=True)
        assert "counts wait" in caplog.text
        assert not EventCount.objects.exists()
        assert counted() == {("handled", f"receiver {number}"): 1 for number in range(120)}

    def test_hour_and_day_show_the_same_events(self) -> None:
        """Minutes for an hour, spans of ten minutes for a day, the newest last."""
        counts.add(Outcome.PUBLISHED, "t", 4, using="default")
        counts.add(Outcome.FAILED, "r", 2, using="default")
        counts.flush(using="default", at_once=True)
        hour, day = counts.last_hour(), counts.last_day()
        assert (len(hour.starts), len(day.starts)) == (60, 144)
        assert hour.starts[1] - hour.starts[0] == timedelta(minutes=1)
        assert day.starts[1] - day.starts[0] == timedelta(minutes=10)
        assert hour.starts[-1] <= timezone.now() < hour.starts[-1] + timedelta(minutes=1)
        assert sum(hour.total("published")[-2:]) == sum(day.total("published")[-2:]) == 4
        assert sum(hour.total("failed")) == sum(day.total("failed")) == 2
        assert day.total("handled") == [0] * 144

    def test_counts_are_purged_after_two_days(self) -> None:
        """Of both spans."""
        counts.add(Outcome.HANDLED, "a", using="default")
        counts.flush(using="default", at_once=True)
        assert purge().event_counts == 0
        EventCount.objects.update(started_at=timezone.now() - timedelta(days=2, minutes=11))
        assert purge().event_counts == 2
        assert not EventCount.objects.exists()
