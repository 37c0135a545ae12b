"""Erasing a tenant's or a key's events: all that holds them, and nothing twice or out of order."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.utils import timezone

from folio_events import publish, relay
from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.encoding import dump
from folio_events.exceptions import InvalidStateError
from folio_events.message import Message
from folio_events.models import (
    Backfill,
    BrokerRecord,
    Delivery,
    InboxEntry,
    OutboxMessage,
    Publication,
    RelayGap,
    WithheldMessage,
)
from folio_events.operations.erasure import Erasure, erase_events
from folio_events.operations.retention import horizon
from folio_events.provisioning import topic_spec
from folio_events.redelivery import retry_due
from folio_events.tenants import tenant_context
from folio_events.testing import deliver_all
from folio_events.topics import wire_topic
from tests.faulty_broker import FaultyBroker
from tests.note_topic import LOGICAL, Mood, NoteTopic, effects, note_receiver
from tests.outbox_writer import outbox_writers

pytestmark = pytest.mark.django_db(transaction=True)

#: Longest wait for another thread, in seconds.
_PATIENCE = 30
#: What must be nowhere once it is erased.
SECRET = "barcode-4711"


def note(key: str = SECRET, number: int = 0, tenant: str = "diku") -> None:
    with tenant_context(tenant):
        publish(LOGICAL, key=key, payload={"number": number, "patron": f"of {key}"})


def drain() -> None:
    """Publish what is there; the second pass finds that nothing comes below it."""
    relay.drain()
    relay.drain()


def stored() -> str:
    """All that the tables hold, as text."""
    found = []
    for model in apps.get_app_config("folio_events").get_models():
        for row in model._base_manager.values_list():
            found += [
                bytes(v).decode("utf-8", "replace") if isinstance(v, (bytes, memoryview)) else v
                for v in row
            ]
    return "\n".join(map(str, found))


def erase_secret(**options: Any) -> Erasure:
    return erase_events(topic=LOGICAL, key=SECRET, reason="asked to", **options)


@contextmanager
def beside() -> Iterator[Callable[[Callable[[], Any]], Future[Any]]]:
    """Runs functions in a thread and on a connection of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit
        pool.submit(connections.close_all).result(_PATIENCE)


def wait_until_somebody_waits_for_a_lock() -> None:
    for _ in range(_PATIENCE * 100):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*), pg_sleep(0.01) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"
            )
            if cursor.fetchone()[0]:
                return
    raise AssertionError


class TestScope:
    def test_a_key_is_gone_from_every_table(self, only_test_receivers: None) -> None:
        """Outbox, publications, broker's log and deliveries hold nothing of it; others stay."""

        def fail(event: Any) -> None:
            raise ValueError(f"cannot do {event.key}")

        note_receiver("picky", fail)
        note()
        note("other")
        deliver_all()
        assert SECRET in stored()
        done = erase_secret(discard_open=True)
        assert done == Erasure(outbox_messages=1, deliveries=1, broker_records=1, open_deliveries=1)
        assert SECRET not in stored()
        assert [row.key for row in OutboxMessage.objects.all()] == ["other"]
        assert Publication.objects.count() == BrokerRecord.objects.count() == 1
        assert Delivery.objects.get(state="retrying").key == "other"

    def test_a_withheld_copy_goes_too(self, memory_broker: MemoryBroker) -> None:
        """What the broker refused, and its follower, are erased when that is asked for."""
        publish(LOGICAL, key=SECRET, payload={"text": "x" * 2_000_000})
        note(number=1)
        note("other", 2)
        drain()
        assert WithheldMessage.objects.count() == 2
        assert erase_secret(discard_open=True).unpublished == 2
        assert not WithheldMessage.objects.exists()
        assert SECRET not in stored()
        assert [row.key for row in OutboxMessage.objects.all()] == ["other"]

    def test_a_withheld_copy_that_was_discarded_is_no_open_one(
        self, memory_broker: MemoryBroker
    ) -> None:
        """What a person has given up is settled: erasing it needs no further word."""
        publish(LOGICAL, key=SECRET, payload={"text": "x" * 2_000_000})
        drain()
        WithheldMessage.objects.update(state="discarded")
        assert erase_secret() == Erasure(outbox_messages=1)
        assert SECRET not in stored()

    @pytest.mark.parametrize("collection", [None, "ALL"])
    def test_a_tenant_is_gone_from_every_table(
        self, only_test_receivers: None, folio_events: Callable[..., None], collection: str | None
    ) -> None:
        """Its rows alone, also where all tenants share a topic."""
        folio_events(TENANCY="folio", TENANT_COLLECTION=collection)
        note_receiver("picky", Mood(1), order="none")
        for tenant in ("diku", "diku2"):
            for number in range(2):
                note(f"key of {tenant}", number, tenant)
        deliver_all()
        assert Delivery.objects.count() == 2
        assert erase_events(tenant="diku", reason="left", discard_open=True) == Erasure(
            outbox_messages=2, deliveries=1, broker_records=2, open_deliveries=1
        )
        assert "key of diku\n" not in stored()
        assert OutboxMessage.objects.filter(tenant="diku2").count() == 2
        assert BrokerRecord.objects.count() == 2

    def test_back_fills_of_a_tenant_are_gone(self) -> None:
        """Their filters may name people; those of others stay, and all do where one key is erased."""
        now = timezone.now()
        for tenant in ("diku", "diku2"):
            Backfill.objects.create(
                id=uuid.uuid4(), model="testapp.Book", event_type="REINDEX", tenant=tenant,
                filters={"patron": SECRET}, state="done", worker=uuid.uuid4(), created_at=now,
                updated_at=now,
            )  # fmt: skip
        assert erase_events(tenant="diku", reason="left", dry_run=True).backfills == 1
        erase_events(tenant="diku", topic="library.book", reason="left")
        assert Backfill.objects.count() == 2

        assert erase_events(tenant="diku", reason="left") == Erasure(backfills=1)

        assert Backfill.objects.get().tenant == "diku2"

    @pytest.mark.parametrize("namespace", [None, "Default"])
    def test_an_unreadable_delivery_belongs_to_the_tenant_of_its_topic(
        self,
        memory_broker: MemoryBroker,
        only_test_receivers: None,
        folio_events: Any,
        namespace: str | None,
    ) -> None:
        """A record that is no event names its tenant by the topic that it stands in."""
        folio_events(TENANCY="folio", TOPICS={"library.note": {"NAMESPACE": namespace}})
        note_receiver("picky")
        notes = NoteTopic(memory_broker, wire=wire_topic("library.note", "diku"))
        notes.put_raw(SECRET.encode())
        notes.consume()
        assert Delivery.objects.get().tenant == "diku"
        Delivery.objects.update(tenant="")  # as versions before have kept it
        with pytest.raises(ValueError, match="did you mean 'diku'"):
            erase_events(tenant="dik", reason="left", discard_open=True)
        assert erase_events(tenant="diku", reason="left", discard_open=True).deliveries == 1
        assert SECRET not in stored()

    def test_the_same_key_of_another_topic_or_tenant_stays(
        self, memory_broker: MemoryBroker, folio_events: Callable[..., None]
    ) -> None:
        """A key means something within its topic, and a tenant may be named beside it."""
        folio_events(TENANCY="folio")
        note()
        note(tenant="other")
        with tenant_context("diku"):
            publish("library.book", key=SECRET, payload={})
        drain()
        assert erase_secret(tenant="diku").outbox_messages == 1
        assert {(row.tenant, row.topic) for row in OutboxMessage.objects.all()} == {
            ("other", LOGICAL),
            ("diku", "library.book"),
        }

    @pytest.mark.parametrize(
        "scope",
        [
            {},
            {"tenant": ""},
            {"topic": LOGICAL},
            {"key": SECRET},
            {"tenant": "diku", "key": SECRET},
            {"topic": "", "key": SECRET},
            {"topic": LOGICAL, "key": SECRET, "reason": " "},
        ],
        ids=str,
    )
    def test_a_scope_that_is_too_wide_or_has_no_reason_is_refused(
        self, scope: dict[str, Any]
    ) -> None:
        """Nothing is erased by a name that was left empty."""
        note()
        with pytest.raises(ValueError, match=r"Name a tenant|Say why"):
            erase_events(**{"reason": "asked to", "discard_open": True, **scope})
        assert OutboxMessage.objects.count() == 1

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_a_name_that_nothing_has_is_refused(
        self, folio_events: Callable[..., None], dry_run: bool
    ) -> None:
        """Nothing erased of a misspelt tenant or topic is no success."""
        folio_events(TENANCY="folio")
        with tenant_context("diku"):
            note()
        asked: dict[str, Any] = {"reason": "asked to", "discard_open": True, "dry_run": dry_run}
        with pytest.raises(
            ValueError, match=r"tenant 'dikuu'; did you mean 'diku'\? Known: diku\."
        ):
            erase_events(tenant="dikuu", **asked)
        with pytest.raises(ValueError, match=r"topic 'library\.notes'; did you mean"):
            erase_events(tenant="diku", topic="library.notes", **asked)
        assert OutboxMessage.objects.count() == 1

    def test_a_tenant_that_has_topics_only_may_be_erased(
        self, folio_events: Callable[..., None]
    ) -> None:
        """There is nothing to erase of it, and its name is none that is misspelt."""
        folio_events(TENANCY="folio")
        get_broker().create_topics([topic_spec("library.book", "diku")])
        assert erase_events(tenant="diku", reason="asked to") == Erasure()

    def test_batches_add_up(
        self, memory_broker: MemoryBroker, folio_events: Callable[..., None]
    ) -> None:
        """More rows than one transaction takes are erased all the same."""
        folio_events(PURGE_BATCH_SIZE=2)
        for number in range(5):
            note(number=number)
        note("other")
        drain()
        assert erase_secret().outbox_messages == 5
        assert OutboxMessage.objects.count() == Publication.objects.count() == 1


class TestOpen:
    def test_what_is_not_settled_refuses_the_erasure(
        self, only_test_receivers: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It says how much is unpublished, open and unread, and erases nothing."""
        note_receiver("picky", Mood(0))
        note()
        deliver_all()
        note(number=1)
        drain()
        note(number=2)
        before = stored()
        with pytest.raises(
            InvalidStateError,
            match="1 outbox messages are not published, 1 deliveries are open and 1 records",
        ):
            erase_secret()
        assert stored() == before

    def test_a_dry_run_counts_and_erases_nothing(self, only_test_receivers: None) -> None:
        """It needs no reason, leaves no trace, and foretells what the erasure does."""
        note_receiver("picky", Mood(0))
        note()
        deliver_all()
        note(number=1)
        drain()
        note(number=2)
        before = stored()
        foretold = erase_events(topic=LOGICAL, key=SECRET, reason="", dry_run=True)
        assert foretold == Erasure(
            outbox_messages=3,
            deliveries=1,
            broker_records=2,
            unpublished=1,
            open_deliveries=1,
            unread_records=1,
        )
        assert stored() == before
        assert erase_secret(discard_open=True) == foretold
        assert erase_events(topic=LOGICAL, key=SECRET, reason="", dry_run=True) == Erasure()

    def test_settled_rows_need_no_further_word(self, only_test_receivers: None) -> None:
        """What was published, read and resolved is erased at once."""
        mood = Mood(0)
        note_receiver("picky", mood)
        note()
        deliver_all()
        mood.bad.clear()
        Delivery.objects.update(next_attempt_at="2020-01-01T00:00:00Z")
        assert retry_due().resolved == 1
        assert erase_secret() == Erasure(outbox_messages=1, deliveries=1, broker_records=1)
        assert SECRET not in stored()

    def test_the_relay_goes_on_behind_erased_rows(self, memory_broker: MemoryBroker) -> None:
        """Rows that were erased unpublished leave no gap that holds purge or relay up."""
        note("before", 0)
        drain()
        note(number=1)
        note("after", 2)
        assert erase_secret(discard_open=True).unpublished == 1
        drain()
        assert not RelayGap.objects.exists()
        assert Publication.objects.count() == 2
        assert horizon() == OutboxMessage.objects.latest("id").pk + 1

    def test_a_row_that_was_held_back_can_be_erased(self, faulty_broker: FaultyBroker) -> None:
        """Erased out of the relay's gaps, a row is asked for no longer."""
        faulty_broker.acknowledges = lambda message: message.key != SECRET.encode()
        note()
        note("other", 1)
        drain()
        assert RelayGap.objects.exists()
        assert erase_secret(discard_open=True).unpublished == 1
        faulty_broker.acknowledges = lambda _message: True
        drain()
        assert not RelayGap.objects.exists()
        assert [row.key for row in OutboxMessage.objects.all()] == ["other"]

    def test_followers_of_an_erased_refusal_are_published(
        self, faulty_broker: FaultyBroker
    ) -> None:
        """Erasing one tenant's refused message frees nothing of others and holds nothing up."""

        def refuses(message: Message) -> bool:
            return b'"number":1' in (message.value or b"").replace(b" ", b"")

        faulty_broker.refuses = refuses
        for number in (1, 2):
            note(number=number)
        drain()
        first = WithheldMessage.objects.get(state="refused").pk
        OutboxMessage.objects.filter(pk=first).update(key="gone")
        WithheldMessage.objects.filter(pk=first).update(key="gone")
        erase_events(topic=LOGICAL, key="gone", reason="asked to", discard_open=True)
        drain()
        assert WithheldMessage.objects.get().state == "published"


class TestNothingTwice:
    def test_an_event_that_is_read_again_takes_no_second_effect(self, notes: NoteTopic) -> None:
        """Inbox entries and blanked deliveries stay, so that a rewound consumer repeats nothing."""
        note_receiver("good")
        bad = note_receiver("bad", Mood(0))
        event_id = notes.put(SECRET, 0)
        notes.consume()
        erase_secret(discard_open=True)
        assert InboxEntry.objects.filter(receiver="good").count() == 1
        erased = Delivery.objects.get()
        assert (erased.state, erased.reason, erased.error) == ("discarded", "asked to", "")
        started = list(bad)
        notes.put(SECRET, 0, event_id=event_id)
        notes.consume()
        assert effects("good") == [0]
        assert bad == started
        assert Delivery.objects.get().pk == erased.pk

    def test_what_waited_behind_an_erased_delivery_goes_on(self, notes: NoteTopic) -> None:
        """Erased open deliveries hold nobody up."""
        note_receiver("picky", Mood(0), order="partition")
        notes.put(SECRET, 0)
        notes.put("other", 1)
        notes.consume()
        assert effects("picky") == []
        erase_secret(discard_open=True)
        notes.restart()
        notes.consume()
        assert effects("picky") == [1]

    def test_a_consumer_reads_on_over_erased_records(
        self, only_test_receivers: None, folio_events: Callable[..., None]
    ) -> None:
        """Records erased from the midst, or the end, of the database broker's log are skipped."""
        folio_events(TOPIC_PARTITIONS=1)
        note_receiver("reader")
        note("before", 0)
        note(number=1)
        note("after", 2)
        drain()
        assert erase_secret(discard_open=True).unread_records == 1
        deliver_all()
        assert effects("reader") == [0, 2]
        note(number=3)
        drain()
        assert erase_secret(discard_open=True).unread_records == 1
        deliver_all()
        note("after", 4)
        deliver_all()
        assert effects("reader") == [0, 2, 4]


class TestAudit:
    def test_who_erased_what_and_why_is_logged_without_the_key(
        self, memory_broker: MemoryBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Both logs have user, topic, counts and reason, and the key as a digest only."""
        user = User.objects.create(username="ann")
        note()
        drain()
        with caplog.at_level(logging.INFO):
            erase_secret(by=user)
        entry = LogEntry.objects.get()
        assert (entry.user, entry.is_deletion()) == (user, True)
        for text in (entry.change_message, caplog.text):
            assert "topic=library.note key-sha256=" in text
            assert "1 outbox messages" in text
            assert "asked to" in text
            assert SECRET not in text
        assert f"user {user.pk}" in caplog.text

    def test_an_erasure_that_breaks_off_is_logged_with_what_it_did(
        self,
        memory_broker: MemoryBroker,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The batches that are committed stand in the log."""
        note()
        drain()

        def fail(*_args: object, **_options: object) -> None:
            raise RuntimeError

        monkeypatch.setattr("folio_events.operations.erasure._Scope.records", fail)
        with pytest.raises(RuntimeError):
            erase_secret(discard_open=True)
        assert "1 outbox messages" in caplog.text


class TestCommand:
    def test_it_says_what_it_erased(
        self, memory_broker: MemoryBroker, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One line for each table; with --dry-run what there is to erase, and what is in the way."""
        note()
        scope = ("--topic", LOGICAL, "--key", SECRET)
        call_command("erase_events", *scope, "--dry-run")
        assert "Refused without --discard-open" in capsys.readouterr().err
        drain()
        call_command("erase_events", *scope, "--dry-run")
        assert "outbox messages: 1 to erase" in capsys.readouterr().out
        call_command("erase_events", *scope, "--reason", "asked to")
        assert "outbox messages: 1 erased" in capsys.readouterr().out
        assert not OutboxMessage.objects.exists()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--reason", "asked to"], "--discard-open"),
            (["--discard-open"], "Say why"),
        ],
    )
    def test_it_says_why_it_refuses(self, options: list[str], said: str) -> None:
        """An error, not a traceback."""
        note()
        with pytest.raises(CommandError, match=said):
            call_command("erase_events", "--topic", LOGICAL, "--key", SECRET, *options)
        call_command(
            "erase_events", "--topic", LOGICAL, "--key", SECRET, "--reason", "x", "--discard-open"
        )
        assert not OutboxMessage.objects.exists()


def test_a_relay_stands_by_while_rows_are_erased(memory_broker: MemoryBroker) -> None:
    """Between two batches of an erasure the relay works, within one it does not."""
    note()
    with beside() as drains:
        with relay.paused("default"):
            assert drains(relay.drain).result(_PATIENCE).standby
        assert drains(relay.drain).result(_PATIENCE).published == 1


@pytest.mark.postgres
class TestAtOnce:
    def test_a_drain_in_hand_is_waited_for(self, faulty_broker: FaultyBroker) -> None:
        """A row that the relay is publishing is erased as published, with its publication."""
        inside, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            inside.set()
            assert go_on.wait(_PATIENCE)

        note()
        faulty_broker.before_publish = hold
        with beside() as drains, beside() as erases:
            draining = drains(lambda: relay.drain(broker=faulty_broker))
            assert inside.wait(_PATIENCE)
            erasing = erases(lambda: erase_secret(discard_open=True))
            wait_until_somebody_waits_for_a_lock()
            go_on.set()
            assert draining.result(_PATIENCE).published == 1
            assert erasing.result(_PATIENCE) == Erasure(outbox_messages=1)
        assert not OutboxMessage.objects.exists()
        assert not Publication.objects.exists()

    def test_a_retry_in_hand_is_waited_for(self, notes: NoteTopic) -> None:
        """A delivery that takes effect at this moment is blanked as resolved, not discarded."""
        inside, go_on = threading.Event(), threading.Event()
        mood = Mood(0)

        def hold(event: Any) -> None:
            mood(event)
            inside.set()
            assert go_on.wait(_PATIENCE)

        note_receiver("picky", hold)
        notes.put(SECRET, 0)
        notes.consume()
        mood.bad.clear()
        Delivery.objects.update(next_attempt_at="2020-01-01T00:00:00Z")
        with beside() as retries, beside() as erases:
            retrying = retries(retry_due)
            assert inside.wait(_PATIENCE)
            erasing = erases(lambda: erase_secret(discard_open=True))
            wait_until_somebody_waits_for_a_lock()
            go_on.set()
            assert retrying.result(_PATIENCE).resolved == 1
            assert erasing.result(_PATIENCE) == Erasure(deliveries=1)
        assert Delivery.objects.get().state == "resolved"
        assert effects("picky") == [0]
        assert SECRET not in Delivery.objects.get().error + str(Delivery.objects.get().key)

    def test_a_run_outside_the_transaction_writes_nothing_back(self, notes: NoteTopic) -> None:
        """A delivery that was erased during its run stays blank and discarded."""
        erased = []

        def erase_meanwhile(event: Any) -> None:
            if Delivery.objects.exists():
                with beside() as erases:
                    erased.append(erases(lambda: erase_secret(discard_open=True)).result(_PATIENCE))
            raise ValueError(event.key)

        note_receiver("mails", erase_meanwhile, mode="after_commit")
        notes.put(SECRET, 0)
        notes.consume()
        Delivery.objects.update(next_attempt_at="2020-01-01T00:00:00Z")
        assert retry_due().failed == 1
        assert erased == [Erasure(deliveries=1, open_deliveries=1)]
        assert Delivery.objects.get().state == "discarded"
        assert Delivery.objects.get().error == ""

    def test_what_is_not_committed_yet_is_not_erased(self, memory_broker: MemoryBroker) -> None:
        """A row of a transaction that is still open is published, and erased the next time."""
        with outbox_writers(1) as (late,):
            late.append(SECRET, topic=LOGICAL)
            note("other")
            drain()
            assert erase_secret(discard_open=True) == Erasure()
            late.commit()
        drain()
        assert erase_secret() == Erasure(outbox_messages=1)


@pytest.mark.parametrize(
    "body", [SECRET.encode(), dump({"tenant": "diku", "type": "X", "data": SECRET, "timestamp": 1})]
)
def test_what_cannot_be_read_belongs_to_the_tenant_that_its_message_names(
    memory_broker: MemoryBroker, only_test_receivers: None, folio_events: Any, body: bytes
) -> None:
    """Also where all tenants share a topic; another tenant's stays."""
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")
    note_receiver("picky")
    notes = NoteTopic(memory_broker, wire=wire_topic("library.note", None))
    notes.put_raw(body, headers=[("folio.tenantId", b"diku")])
    notes.put_raw(b"of another", headers=[("folio.tenantId", b"other")])
    notes.consume()
    assert list(Delivery.objects.order_by("offset").values_list("tenant", flat=True)) == [
        "diku",
        "other",
    ]
    assert erase_events(tenant="diku", reason="left", discard_open=True).deliveries == 1
    assert SECRET not in stored()
    assert Delivery.objects.exclude(headers=b"").get().tenant == "other"


def test_a_record_that_cannot_be_read_goes_with_its_tenant(
    only_test_receivers: None, folio_events: Any
) -> None:
    """In the database broker's log, where all tenants share a topic."""
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")
    broker = get_broker()
    topic = wire_topic("library.note", None)
    broker.create_topics([TopicSpec(topic, 1, 1)])
    broker.publish(
        [
            Message(topic, b"k", SECRET.encode(), [("folio.tenantId", name)])
            for name in (b"diku", b"other")
        ],
        timeout=5,
    )
    assert erase_events(tenant="diku", reason="left", discard_open=True).broker_records == 1
    assert BrokerRecord.objects.get().headers == dump([["folio.tenantId", "other"]])
