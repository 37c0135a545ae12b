"""One look tells what waits, what failed, who is behind, who holds the relay back, what is late."""

from __future__ import annotations

import io
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from folio_events import RetryPolicy, publish
from folio_events.brokers.base import Broker
from folio_events.exceptions import BrokerUnavailableError
from folio_events.models import Delivery, OutboxMessage, Process, RelayCursor
from folio_events.monitoring.blockers import opening, relay_state
from folio_events.monitoring.overdue import overdue
from folio_events.monitoring.overview import Level, Thresholds, judge, overview
from folio_events.monitoring.positions import first_unread, positions
from folio_events.relay import drain
from tests.faulty_broker import FaultyBroker
from tests.note_topic import WIRE, Mood, NoteTopic, note_receiver

pytest_plugins = ("tests.second_connection",)
pytestmark = pytest.mark.django_db(transaction=True)
LONG_AGO = timedelta(hours=1)


def grow_old() -> None:
    OutboxMessage.objects.update(occurred_at=timezone.now() - LONG_AGO)


def levels(**limits: Any) -> list[Level]:
    return [finding.level for finding in judge(overview(), Thresholds(**limits))]


def show(*arguments: str) -> tuple[str, int]:
    """The output of the command and its exit code."""
    out = io.StringIO()
    try:
        call_command("events_status", *arguments, stdout=out)
    except CommandError as error:
        return out.getvalue(), error.returncode
    return out.getvalue(), 0


class TestOverdue:
    def test_an_unpublished_event_becomes_overdue(
        self, faulty_broker: FaultyBroker, folio_events: Callable[..., None]
    ) -> None:
        """With tenant, topic, type and key, from OVERDUE_AFTER seconds on."""
        folio_events(OVERDUE_AFTER=1800)
        publish("library.note", key="a", payload={}, type="note")
        publish("library.note", key="b", payload={}, type="note")
        assert overdue() == []
        OutboxMessage.objects.filter(key="a").update(occurred_at=timezone.now() - LONG_AGO)
        (late,) = overdue()
        assert (late.stage, late.topic, late.type, late.key) == (
            "unpublished", "library.note", "note", "a",
        )  # fmt: skip
        folio_events(OVERDUE_AFTER=7200)
        assert overdue() == []

    def test_a_row_that_the_relay_holds_back_becomes_overdue(
        self, faulty_broker: FaultyBroker
    ) -> None:
        """Although the cursor is past it."""
        for key in "ab":
            publish("library.note", key=key, payload={})
        faulty_broker.acknowledges = lambda message: message.key == b"b"
        drain()
        grow_old()
        assert [(late.stage, late.key) for late in overdue()] == [("unpublished", "a")]

    def test_a_refused_message_becomes_overdue_with_its_error(
        self, faulty_broker: FaultyBroker
    ) -> None:
        """It waits for a person."""
        publish("library.note", key="a", payload={})
        faulty_broker.refuses = lambda _message: True
        drain()
        grow_old()
        (late,) = overdue()
        assert (late.stage, late.key) == ("withheld", "a")
        assert late.error

    def test_a_delivery_becomes_overdue_with_receiver_and_error(self, notes: NoteTopic) -> None:
        """Dead or retrying, by the age of its event."""
        note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
        notes.put_all("a")
        notes.consume()
        assert overdue() == []
        Delivery.objects.update(published_at=timezone.now() - LONG_AGO)
        (late,) = overdue()
        assert (late.stage, late.receiver, late.error) == (
            "failing", "one", "builtins.ValueError: a bad number",
        )  # fmt: skip

    def test_an_event_that_no_consumer_has_read_becomes_overdue(self, notes: NoteTopic) -> None:
        """The first of each partition, with its type; read from the broker."""
        note_receiver("one")
        notes.put_all("ab")

        def late() -> list[tuple[str, ...]]:
            places = positions(broker=notes.broker)
            # Counted from a second ahead, since both may happen within one millisecond.
            found = overdue(unread=first_unread(places, broker=notes.broker), after=-1)
            return [(one.stage, one.receiver, one.topic, one.type) for one in found]

        assert late() == [("unread", "events", "library.note", "note")]
        notes.consume()
        assert late() == []


class TestPositions:
    def test_lag_is_what_a_group_has_not_handled(self, notes: NoteTopic) -> None:
        """Of a group that has not begun all that is there."""
        note_receiver("one")
        notes.put_all("abc")
        (place,) = overview().positions
        assert (place.group, place.offset, place.lag) == ("events", None, 3)
        notes.consume()
        notes.put_all("ab")
        (place,) = overview().positions
        assert (place.offset, place.lag) == (3, 2)
        assert [one.lag for one in overview(ask_broker=False).positions] == [None]

    def test_a_broker_that_is_away_hides_nothing_else(
        self, faulty_broker: FaultyBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its error is told, lags are unknown, all that the database knows is there."""

        def fail(*_args: object) -> None:
            raise BrokerUnavailableError("nobody is there")

        monkeypatch.setattr(faulty_broker, "list_topics", fail)
        publish("library.note", key="a", payload={})
        seen = overview()
        assert seen.broker_error == "nobody is there"
        assert seen.status.waiting == 1
        assert levels() == [Level.DEGRADED]


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("INSERT INTO loans (patron) VALUES ('Miller')", "INSERT INTO loans"),
        ('UPDATE "loans" SET patron = 5', "UPDATE"),
        ("SELECT secret_word FROM t WHERE x = 'y'", "SELECT secret_word FROM t WHERE x"),
        ("'Miller'", ""),
        ("", ""),
        ("<insufficient privilege>", ""),
    ],
)
def test_a_statement_is_shown_without_values(statement: str, shown: str) -> None:
    """Its opening words, up to the first sign, number or quote."""
    assert opening(statement) == shown


@pytest.mark.postgres
class TestBlockers:
    def test_the_session_that_holds_the_oldest_message_back_is_named(
        self, faulty_broker: FaultyBroker
    ) -> None:
        """By process, program, age, state and the opening of its statement."""
        from tests.outbox_writer import outbox_writers

        with outbox_writers(2) as (slow, quick):
            slow.execute("SET application_name = 'night import'")
            slow.append("a")
            pid = slow.one("SELECT pg_backend_pid()")
            slow.execute("UPDATE testapp_book SET title = 'Miller' WHERE false")
            quick.append("b")
            quick.commit()
            drain()
            state = relay_state()
            assert state.gaps == 1
            assert state.oldest_gap is not None
            holder = state.holder
            assert holder is not None
            assert (holder.pid, holder.name, holder.state) == (
                pid, "night import", "idle in transaction",
            )  # fmt: skip
            assert holder.statement == "UPDATE testapp_book SET title"
            assert 0 <= holder.age < 60
            screen, _ = show("--no-broker")
            assert f"held back   by pid {pid} night import" in screen
            assert "Miller" not in screen
            slow.rollback()
        drain()
        assert relay_state().holder is None

    def test_a_prepared_transaction_is_named(self, faulty_broker: FaultyBroker) -> None:
        """It has no process; its id is what an operator needs to end it."""
        from tests.outbox_writer import outbox_writers

        with connection.cursor() as cursor:
            cursor.execute("SHOW max_prepared_transactions")
            if cursor.fetchone()[0] == "0":
                pytest.skip("max_prepared_transactions is 0")
        with outbox_writers(1) as (writer,):
            writer.append("a")
            writer.execute("PREPARE TRANSACTION 'left behind'")
            publish("library.note", key="b", payload={})
            drain()
            try:
                (session,) = relay_state().writers
                assert (session.pid, session.name, session.state) == (
                    None, "left behind", "prepared",
                )  # fmt: skip
            finally:
                writer.rollback()
                writer.session.autocommit = True
                writer.execute("ROLLBACK PREPARED 'left behind'")

    def test_the_relay_that_publishes_is_named(
        self, other: Callable[..., Any], faulty_broker: FaultyBroker
    ) -> None:
        """While it holds its lock."""
        import threading

        from folio_events.relay import LOCK

        locked, seen = threading.Event(), threading.Event()

        def hold() -> int:
            with connection.cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute(f"SELECT pg_advisory_xact_lock({LOCK}), pg_backend_pid()")
                pid: int = cursor.fetchone()[1]
                locked.set()
                seen.wait(20)
                cursor.execute("ROLLBACK")
            return pid

        holding = other(hold)
        assert locked.wait(20)
        relay = relay_state().relay
        seen.set()
        assert relay is not None
        assert relay.pid == holding.result(20)
        assert relay_state().relay is None

    def test_a_look_is_quick_among_many_rows(self, faulty_broker: FaultyBroker) -> None:
        """Nothing is counted, and no statement reads the outbox whole."""
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO folio_events_outboxmessage (event_id, topic, event_type, tenant, key,"
                " payload, repeating_headers, own_headers, occurred_at)"
                " SELECT gen_random_uuid(), 'library.note', 'note', '', 'k' || n, '{}', '[]', '',"
                " now() FROM generate_series(1, 100000) n"
            )
            cursor.execute("ANALYZE folio_events_outboxmessage")
        last = OutboxMessage.objects.order_by("-id").first()
        assert last is not None
        RelayCursor.objects.create(position=last.pk - 10, version=1, updated_at=timezone.now())
        with CaptureQueriesContext(connection) as asked:
            seen = overview(ask_broker=False)
        assert seen.status.waiting == 10
        with connection.cursor() as cursor:
            for query in asked.captured_queries:
                if query["sql"] in ("BEGIN", "COMMIT"):
                    continue
                cursor.execute(f"EXPLAIN {query['sql']}")
                plan = "\n".join(line for (line,) in cursor.fetchall())
                assert "Seq Scan on folio_events_outboxmessage" not in plan, query["sql"]


class TestJudgement:
    def test_all_is_well_in_an_idle_project(self, faulty_broker: FaultyBroker) -> None:
        """No finding, and exit code 0."""
        assert levels() == []
        screen, code = show()
        assert screen.startswith("ok\n")
        assert code == 0

    def test_the_age_of_the_oldest_message_degrades_and_then_fails(
        self, faulty_broker: FaultyBroker
    ) -> None:
        """By two thresholds, which an operator may move."""
        publish("library.note", key="a", payload={})
        grow_old()
        quiet: dict[str, Any] = {"degraded_overdue": None, "failing_overdue": None}
        assert levels(**quiet) == [Level.FAILING]
        assert levels(**quiet, failing_age=7200) == [Level.DEGRADED]
        assert levels(**quiet, failing_age=None, degraded_age=None) == []
        assert show()[1] == 2
        assert show("--failing-age", "7200")[1] == 1

    def test_what_failed_degrades(self, notes: NoteTopic) -> None:
        """Dead deliveries; the lag of a group from the threshold on."""
        note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
        notes.put_all("a")
        assert levels(degraded_lag=1) == [Level.DEGRADED]
        notes.consume()
        assert levels(degraded_lag=1) == [Level.DEGRADED]
        screen, code = show()
        assert "one  1 dead" in screen
        assert code == 1

    def test_a_process_that_vanished_fails_until_another_takes_its_place(
        self, faulty_broker: FaultyBroker
    ) -> None:
        """One that was ended as it should be leaves no trace, and is no finding."""
        now = timezone.now()
        beat: dict[str, Any] = {"kind": "consumer", "name": "library", "state": "waiting"}
        beat |= {"host": "h", "interval": 10, "started_at": now}
        Process.objects.create(
            id=uuid.uuid4(), pid=1, heartbeat_at=now - timedelta(minutes=5), **beat
        )
        assert levels() == [Level.FAILING]
        screen, code = show()
        assert "failing: consumer library on h, pid 1, silent for 300 s: it vanished" in screen
        assert code == 2
        Process.objects.create(id=uuid.uuid4(), pid=2, heartbeat_at=now, **beat)
        assert levels() == []


class TestStoppedPartitions:
    @pytest.mark.parametrize("attempts", [1, 5], ids=["dead", "retrying"])
    def test_a_partition_that_waits_for_a_delivery_is_named_at_once(
        self, notes: NoteTopic, attempts: int
    ) -> None:
        """With the receiver that stops it and since when, long before anything is overdue."""
        note_receiver(
            "ledger",
            Mood(0),
            order="partition",
            retry=RetryPolicy(attempts=attempts),
            group="books",
        )
        notes.put_all("ab")
        notes.consume("books")
        failed = Delivery.objects.get()
        Delivery.objects.update(created_at=timezone.now() - timedelta(seconds=90))

        seen = overview()

        (one,) = seen.stopped
        assert (one.group, one.receiver, one.topic, one.partition) == ("books", "ledger", WIRE, 0)
        assert (one.delivery, one.state, one.error) == (
            failed.pk, failed.state, "builtins.ValueError",
        )  # fmt: skip
        assert seen.overdue == []
        screen, code = show()
        said = r"^degraded: group books is stopped in 1 partition, for 9\d s at longest: ledger$"
        assert re.search(said, screen, re.M)
        at = f"2 min  books  {WIRE}/0  ledger waits for delivery {failed.pk}, {failed.state}"
        assert at in screen
        assert code == 1

        Delivery.objects.update(state="discarded", resolved_at=timezone.now())
        assert overview().stopped == []

    def test_a_key_that_waits_stops_no_partition(self, notes: NoteTopic) -> None:
        """Nor does a delivery of a receiver that has no order, or is there no more."""
        for name, order in (("by key", "key"), ("in any order", "none")):
            note_receiver(name, Mood(0), order=order)
        notes.put("a", 0)
        notes.consume()
        Delivery.objects.create(
            receiver="gone", group="events", order="partition", event_id=uuid.uuid4(), topic=WIRE,
            partition=0, offset=0, state="dead", headers=b"[]", published_at=timezone.now(),
            created_at=timezone.now(),
        )  # fmt: skip

        assert overview().stopped == []


class TestWhatDoesNotAnswer:
    @pytest.mark.postgres
    @pytest.mark.parametrize(
        ("table", "what"),
        [
            ("folio_events_outboxmessage", "outbox, deliveries and orphans"),
            ("folio_events_process", "processes"),
            ("folio_events_consumeroffset", "offsets of groups"),
        ],
    )
    def test_a_table_that_somebody_has_locked_is_not_waited_for(
        self,
        faulty_broker: FaultyBroker,
        other: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
        table: str,
        what: str,
    ) -> None:
        """The command says which look failed; the next one finds all as it was."""
        monkeypatch.setattr("folio_events.monitoring.overview._PATIENCE", 0.2)
        locked, seen = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
                locked.set()
                assert seen.wait(5)

        holding = other(hold)
        assert locked.wait(5)
        screen, code = show()
        seen.set()
        holding.result(5)

        assert code == 2
        assert screen.startswith(f"failing: database 'default' cannot be read: {what}: ")
        assert "lock timeout" in screen
        assert show()[1] == 0

    @pytest.mark.postgres
    def test_a_look_leaves_the_callers_transaction_as_it_was(
        self, faulty_broker: FaultyBroker
    ) -> None:
        """Its timeouts are the caller's own."""

        def timeouts() -> tuple[str, str]:
            with connection.cursor() as cursor:
                cursor.execute("SHOW lock_timeout")
                (lock,) = cursor.fetchone()
                cursor.execute("SHOW statement_timeout")
                return lock, cursor.fetchone()[0]

        with transaction.atomic():
            before = timeouts()
            overview(ask_broker=False)
            assert timeouts() == before

    @pytest.mark.postgres
    def test_the_database_brokers_tables_are_not_waited_for_either(
        self, other: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the database knows beside them is told."""
        monkeypatch.setattr("folio_events.monitoring.overview._PATIENCE", 0.2)
        locked, seen = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("LOCK TABLE folio_events_brokerrecord IN ACCESS EXCLUSIVE MODE")
                locked.set()
                assert seen.wait(5)

        holding = other(hold)
        assert locked.wait(5)
        screen, code = show()
        seen.set()
        holding.result(5)

        assert "degraded: the broker does not answer: database 'default': " in screen
        assert code == 1

    def test_kafka_that_is_away_is_not_waited_for(
        self, folio_events: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its other calls wait for fifteen seconds; why it does not answer is told all the same."""
        monkeypatch.setattr("folio_events.monitoring.overview._PATIENCE", 0.3)
        options = {"bootstrap.servers": "127.0.0.1:1"}
        backend = "folio_events.brokers.kafka.KafkaBroker"
        folio_events(BROKER={"BACKEND": backend, "OPTIONS": options})

        began = time.monotonic()
        seen = overview()

        assert time.monotonic() - began < 5
        assert "127.0.0.1:1" in seen.broker_error


class TestCommand:
    def test_machines_get_json(self, notes: NoteTopic) -> None:
        """All that the screen shows, and the level by name."""
        note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
        notes.put_all("a")
        notes.consume()
        text, code = show("--json")
        state = json.loads(text)
        assert (state["level"], code) == ("degraded", 1)
        assert state["status"]["deliveries"] == [{"receiver": "one", "state": "dead", "count": 1}]
        assert state["positions"][0]["lag"] == 0

    def test_the_screen_shows_overdue_events_with_their_errors(self, notes: NoteTopic) -> None:
        """Age, stage, event, receiver, error."""
        note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
        notes.put_all("a")
        notes.consume()
        Delivery.objects.update(published_at=timezone.now() - LONG_AGO)
        late = "library.note note, key a, one, builtins.ValueError: a bad number"
        assert f"60 min  failing  {late}" in show()[0]

    @pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["screen", "json"])
    def test_a_database_that_cannot_be_read_is_failing(
        self, monkeypatch: pytest.MonkeyPatch, as_json: tuple[str, ...]
    ) -> None:
        """Said in one line and by exit code 2, not by a traceback and that of 'degraded'."""

        def away(**_options: Any) -> None:
            raise OperationalError("connection refused\n")

        monkeypatch.setattr("folio_events.management.commands.events_status.overview", away)
        out, code = show(*as_json)
        assert code == 2
        said = json.loads(out)["findings"][0] if as_json else out.strip()
        assert said.removeprefix("failing: ") == (
            "database 'default' cannot be read: connection refused"
        )

    def test_long_lists_are_cut(self, faulty_broker: FaultyBroker) -> None:
        """And their rest is counted."""
        for number in range(12):
            publish("library.note", key=str(number), payload={"id": str(uuid.uuid4())})
        grow_old()
        assert "and 2 younger ones" in show("--no-broker")[0]


@pytest.mark.kafka
def test_kafka_tells_lag_and_the_first_unread_event(
    kafka_broker: Broker, only_test_receivers: None
) -> None:
    """Of a group that has not begun."""
    note_receiver("one")
    for number in range(3):
        publish("library.note", key="k", payload={"number": number}, type="note")
    drain()
    places = [place for place in positions(broker=kafka_broker) if place.lag]
    assert [(place.topic.endswith(".library.note"), place.lag) for place in places] == [(True, 3)]
    (event,) = first_unread(places, broker=kafka_broker)
    assert (event.type, event.offset) == ("note", 0)
    seen = overview()
    assert seen.broker_error == ""
