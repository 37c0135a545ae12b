"""publish(): what it takes and refuses, and that its event shares the fate of the transaction."""

from __future__ import annotations

import datetime
import inspect
import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from folio_events import Event, apublish, publish, receiver, tenant_context
from folio_events.dialects import DIALECTS
from folio_events.exceptions import ConfigurationError, EncodingError, MissingTenantError
from folio_events.models import OutboxMessage
from folio_events.testing import captured_events, deliver_all
from tests.conftest import is_postgres
from tests.testapp.models import Book, Chapter

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db

_TOPIC = "circulation.ITEM_CHECKED_OUT"


def check_out(**arguments: Any) -> Event:
    return publish(**{"topic": _TOPIC, "key": "loan-1", "payload": {"loan": 1}, **arguments})


def types_left() -> list[str]:
    return list(OutboxMessage.objects.order_by("id").values_list("event_type", flat=True))


class TestEvent:
    def test_the_event_that_was_recorded_is_returned(self):
        """The caller gets the event: id, topic, type, key, time and payload are those stored."""
        before = timezone.now()
        event = check_out()
        row = OutboxMessage.objects.get()
        assert (event.topic, event.type, event.key) == (_TOPIC, "ITEM_CHECKED_OUT", "loan-1")
        assert event.payload == {"loan": 1}
        assert before <= event.occurred_at <= timezone.now()
        stored = (row.event_id, row.topic, row.event_type, row.key, row.occurred_at)
        assert stored == (event.id, event.topic, event.type, event.key, event.occurred_at)

    def test_the_type_is_the_last_segment_of_the_topic_unless_given(self):
        """Without a type the topic's last segment says what happened."""
        assert check_out().type == "ITEM_CHECKED_OUT"
        assert check_out(type="RENEWED").type == "RENEWED"
        assert types_left() == ["ITEM_CHECKED_OUT", "RENEWED"]

    def test_a_key_is_made_text(self):
        """A number or UUID as key is stored as text; None means no key."""
        number = uuid.uuid4()
        assert [check_out(key=key).key for key in (7, number, None)] == ["7", str(number), None]

    def test_the_circulation_dialect_is_the_default(self):
        """The body has the form of FOLIO's circulation events."""
        event = check_out()
        body = json.loads(bytes(OutboxMessage.objects.get().payload or b""))
        milliseconds = int(event.occurred_at.timestamp() * 1000)
        assert body == {
            "id": str(event.id),
            "type": "ITEM_CHECKED_OUT",
            "timestamp": milliseconds,
            "data": {"loan": 1},
        }

    def test_the_inventory_dialect_can_be_chosen(self):
        """With dialect="inventory" the payload stands beside the metadata."""
        event = check_out(dialect="inventory", payload={"new": {"id": 1}})
        body = json.loads(bytes(OutboxMessage.objects.get().payload or b""))
        assert body["eventId"] == str(event.id)
        assert (body["type"], body["new"]) == ("ITEM_CHECKED_OUT", {"id": 1})

    @pytest.mark.parametrize(
        ("dialect", "member", "word"),
        [
            ("inventory", "type", "UPDATE"),
            ("circulation", "type", "UPDATED"),
            ("pubsub", "eventType", "UPDATED"),
        ],
    )
    @pytest.mark.parametrize("given", ["UPDATE", "UPDATED", "updated"])
    def test_a_type_may_be_given_in_the_words_of_any_dialect(
        self, given, dialect, member, word, folio_events
    ):
        """The event has one type; the body has the word of its own dialect."""
        folio_events(TENANCY="folio", DEFAULT_TENANT="diku")
        event = check_out(type=given, dialect=dialect)
        row = OutboxMessage.objects.get()
        assert (event.type, row.event_type) == ("UPDATE", "UPDATE")
        assert json.loads(bytes(row.payload or b""))[member] == word

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_what_is_published_is_read_back_the_same(self, dialect, folio_events):
        """In every dialect: id, type, key, tenant, time and payload."""
        folio_events(TENANCY="folio", DEFAULT_TENANT="diku")
        with captured_events() as captured:
            event = check_out(type="MOVE", dialect=dialect, payload={"new": {"shelf": "Ä 1"}})
        (read,) = captured
        for name in ("id", "topic", "type", "key", "tenant", "occurred_at", "payload"):
            assert getattr(read, name) == getattr(event, name), name

    def test_values_of_python_are_taken(self):
        """Dates, decimals, UUIDs, bytes and the like become JSON."""
        check_out(
            payload={
                "due": datetime.datetime(2024, 7, 1, tzinfo=datetime.UTC),
                "fee": Decimal("1.10"),
                "id": uuid.UUID(int=1),
                "raw": b"\0",
            }
        )
        assert json.loads(bytes(OutboxMessage.objects.get().payload or b""))["data"] == {
            "due": "2024-07-01T00:00:00+00:00",
            "fee": "1.10",
            "id": "00000000-0000-0000-0000-000000000001",
            "raw": "AA==",
        }

    def test_a_later_change_of_the_payload_changes_nothing(self):
        """The payload is encoded at once: what the caller does to it later is not sent."""
        payload = {"loan": 1}
        check_out(payload=payload)
        payload["loan"] = 2
        assert json.loads(bytes(OutboxMessage.objects.get().payload or b""))["data"] == {"loan": 1}


class TestValidation:
    @pytest.mark.parametrize(
        "topic", ["", "a b", "a..b", ".a", "a.", "a/b", "ä", "x" * 250, None, 5, "a.*"]
    )
    def test_a_topic_that_cannot_be_is_refused(self, topic):
        """A topic that Kafka would not take is refused, naming it."""
        with pytest.raises(ConfigurationError, match=r"topic|longer"):
            check_out(topic=topic)

    def test_an_unknown_dialect_is_refused(self):
        """A dialect that does not exist is refused, naming those that do."""
        with pytest.raises(ConfigurationError, match="inventory, circulation"):
            check_out(dialect="avro")

    @pytest.mark.parametrize("payload", [[1], "text", 5, {"a"}])
    def test_a_payload_that_is_no_dict_is_refused(self, payload):
        """The payload must be a dict; the error says what came instead."""
        with pytest.raises(EncodingError, match=f"must be a dict, not {type(payload).__name__}"):
            check_out(payload=payload)

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(object(), id="object"),
            pytest.param({1, 2}, id="set"),
            pytest.param(float("nan"), id="NaN"),
            pytest.param("\ud800", id="lone surrogate"),
            pytest.param({("a", "b"): 1}, id="tuple as name"),
            pytest.param([[object()]], id="nested"),
        ],
    )
    def test_a_value_without_json_form_is_refused_by_name(self, value):
        """A payload that cannot be encoded is refused; the error names topic and member."""
        with pytest.raises(EncodingError, match=f"event of {_TOPIC} is refused: 'broken'"):
            check_out(payload={"fine": 1, "broken": value})

    @pytest.mark.parametrize("kind", [5, "x" * 101, " ", b"RENEWED", "a\0b", "\ud800"])
    def test_a_type_that_cannot_be_is_refused(self, kind):
        """An event type is text of at most 100 characters."""
        with pytest.raises(EncodingError, match="type"):
            check_out(type=kind)

    @pytest.mark.parametrize(
        "key",
        [
            pytest.param("a\0b", id="NUL"),
            pytest.param("\ud800", id="lone surrogate"),
            pytest.param("k" * 2001, id="too long"),
            pytest.param("\N{EURO SIGN}" * 667, id="too many bytes"),
        ],
    )
    def test_a_key_that_cannot_be_stored_is_refused(self, key):
        """A key with NUL or a lone surrogate, or of more than 2000 bytes, is refused."""
        with pytest.raises(EncodingError, match="key"):
            check_out(key=key)

    @pytest.mark.parametrize("name", ["eventId", "eventTs", "type", "tenant"])
    def test_a_payload_does_not_replace_the_metadata(self, name):
        """In the inventory dialect a member that is metadata is refused: it would be lost or lie."""
        with pytest.raises(EncodingError, match=name):
            check_out(dialect="inventory", payload={name: "mine"})
        assert check_out(dialect="circulation", payload={name: "mine"}).payload == {name: "mine"}

    @pytest.mark.django_db(transaction=True)
    def test_a_refused_event_leaves_nothing(self):
        """After each refusal the outbox is empty."""
        for broken in ({"topic": "a b"}, {"payload": {"x": object()}}, {"type": 5}):
            with pytest.raises((ConfigurationError, EncodingError)):
                check_out(**broken)
        assert types_left() == []

    def test_a_refused_event_does_not_spoil_the_transaction(self):
        """What is refused before anything was sent to the database can be caught."""
        with transaction.atomic():
            with pytest.raises(EncodingError):
                check_out(payload={"x": object()})
            check_out(type="RENEWED")
        assert types_left() == ["RENEWED"]


class TestTenant:
    def test_a_missing_tenant_is_refused(self, folio_events):
        """Where tenancy is on, an event without a tenant is refused."""
        folio_events(TENANCY="folio")
        with pytest.raises(MissingTenantError, match="tenant_context"):
            check_out()
        assert types_left() == []

    def test_the_tenant_of_the_context_is_stored(self, folio_events):
        """Where tenancy is on, the event belongs to the tenant of the context."""
        folio_events(TENANCY="folio")
        with tenant_context("diku"):
            event = check_out()
        row = OutboxMessage.objects.get()
        assert (
            event.tenant == row.tenant == json.loads(bytes(row.payload or b""))["tenant"] == "diku"
        )

    def test_without_tenancy_there_is_no_tenant(self):
        """Where tenancy is off, a tenant in the context is not written."""
        with tenant_context("diku"):
            event = check_out()
        assert event.tenant is None
        assert OutboxMessage.objects.get().tenant == ""


class TestTransaction:
    @pytest.mark.django_db(transaction=True)
    def test_outside_a_transaction_it_is_recorded_at_once(self, at_once):
        """In autocommit the event is committed when publish() returns."""
        check_out()
        assert at_once([types_left]) == [["ITEM_CHECKED_OUT"]]

    @pytest.mark.django_db(transaction=True)
    def test_inside_a_transaction_it_is_recorded_with_the_commit(self, at_once):
        """Within a transaction others see the event once that has committed."""
        with transaction.atomic():
            check_out()
            assert at_once([types_left]) == [[]]
        assert at_once([types_left]) == [["ITEM_CHECKED_OUT"]]

    @pytest.mark.django_db(transaction=True)
    def test_a_rollback_takes_it_along(self):
        """The event of a transaction that is rolled back was never there."""

        def publish_and_give_up() -> None:
            with transaction.atomic():
                check_out()
                raise InterruptedError

        with pytest.raises(InterruptedError):
            publish_and_give_up()
        assert types_left() == []

    def test_a_rollback_to_a_savepoint_takes_only_the_inner_ones(self):
        """Events within a savepoint that is rolled back vanish, those around it stay."""

        def publish_and_give_up() -> None:
            with transaction.atomic():
                check_out(type="WITHIN")
                raise InterruptedError

        with transaction.atomic():
            check_out(type="BEFORE")
            with pytest.raises(InterruptedError):
                publish_and_give_up()
            check_out(type="AFTER")
        assert types_left() == ["BEFORE", "AFTER"]

    @pytest.mark.django_db(transaction=True)
    def test_a_transaction_does_not_commit_without_an_event_that_failed(self):
        """When the database refuses the event, catching the error does not let the rest through."""

        def refuse(execute, sql, params, many, context):
            if sql.startswith("INSERT") and OutboxMessage._meta.db_table in sql:
                raise OperationalError("no space left on device")
            return execute(sql, params, many, context)

        with transaction.atomic():
            Book.objects.create(title="Emma")
            with connection.execute_wrapper(refuse), pytest.raises(OperationalError):
                check_out()
        assert not Book.objects.exists()
        assert types_left() == []

    def test_events_and_changes_keep_the_order_of_the_calls(self):
        """Events that are published between model writes stand between theirs."""
        book = Book.objects.create(title="Emma")
        check_out(key=book.pk)
        book.delete()
        assert types_left() == ["CREATE", "ITEM_CHECKED_OUT", "DELETE"]


class TestHeaders:
    GIVEN = {"recordId": "8a1c", "folio.srs.recordType": "MARC ß", "iteration-job-id": "",
             "X-Okapi-Permissions": "[]"}  # fmt: skip

    def test_they_travel_with_this_message_alone(self, memory_broker, only_test_receivers):
        """As they are spelled, beside those that every message has; nothing inherits them."""
        seen = []

        @receiver(_TOPIC, name="one")
        def announce(event: Event) -> None:
            seen.append(event.headers)
            if len(seen) == 1:
                check_out()

        check_out(headers=self.GIVEN)
        deliver_all()
        first, second = seen
        assert [
            first[name] for name in ("recordid", "folio.srs.recordtype", "iteration-job-id")
        ] == [
            "8a1c",
            "MARC ß",
            "",
        ]
        assert "ce_id" in first
        assert "recordid" not in second
        own = json.loads(bytes(OutboxMessage.objects.order_by("id")[0].own_headers))
        assert dict(own) == self.GIVEN

    @pytest.mark.parametrize("payload", [{"loan": 1}, None])
    def test_tombstones_and_asynchronous_code_take_them_too(self, payload, folio_events):
        """One door is as wide as the other."""
        folio_events(TOPICS={_TOPIC: {"CLEANUP_POLICY": "compact"}})
        given = {"jobExecutionId": "job"}
        async_to_sync(apublish)(_TOPIC, key="k", payload=payload, headers=given)
        assert dict(json.loads(bytes(OutboxMessage.objects.get().own_headers))) == given


class TestAsynchronous:
    def test_it_records_what_publish_would(self, folio_events):
        """apublish() takes the same arguments, and the tenant of the task it is awaited in."""
        folio_events(TENANCY="folio")

        async def check_out_twice() -> Event:
            with tenant_context("diku"):
                await apublish(_TOPIC, key=None, payload={}, type="FIRST", dialect="inventory")
                return await apublish(_TOPIC, key="loan-1", payload={"loan": Decimal("1.0")})

        with captured_events() as captured:
            event = async_to_sync(check_out_twice)()
        assert [found.type for found in captured] == ["FIRST", "ITEM_CHECKED_OUT"]
        assert (captured[1].id, captured[1].tenant) == (event.id, "diku")
        assert captured[1].payload == {"loan": "1.0"}

    def test_it_takes_what_publish_takes(self):
        """The two have one signature."""
        assert inspect.signature(apublish).parameters == inspect.signature(publish).parameters

    def test_it_refuses_what_publish_refuses(self):
        """An error reaches the task that awaits it, and nothing is recorded."""
        with pytest.raises(EncodingError, match="'bad'"):
            async_to_sync(apublish)(_TOPIC, key=None, payload={"bad": {1}})
        assert types_left() == []


class TestLock:
    def sent(self, **arguments: Any) -> list[str]:
        with transaction.atomic(), CaptureQueriesContext(connection) as captured:
            check_out(**arguments)
        return [query["sql"] for query in captured.captured_queries]

    def test_the_lock_of_the_key_is_taken_before_the_insert(self):
        """On PostgreSQL the key is locked before the id is drawn; SQLite needs no lock."""
        statements = [sql.split("(")[0].strip() for sql in self.sent() if "SAVEPOINT" not in sql]
        locks = ["SELECT pg_advisory_xact_lock_shared"] if is_postgres() else []
        assert [s.split(" INTO")[0] for s in statements] == [*locks, "INSERT"]

    @pytest.mark.parametrize("arguments", [{"ordered": False}, {"key": None}], ids=repr)
    def test_without_order_there_is_no_lock(self, arguments):
        """ordered=False and a missing key take no lock."""
        assert not [sql for sql in self.sent(**arguments) if "advisory" in sql]

    @pytest.mark.postgres
    def test_the_lock_is_that_of_topic_tenant_and_key(self, folio_events):
        """Other topics, tenants and keys have other locks; a model that shares a key has the same."""
        folio_events(TENANCY="folio")
        locks: set[str] = set()
        for tenant, topic, key in (
            ("diku", _TOPIC, "1"),
            ("diku", _TOPIC, "2"),
            ("diku", "circulation.ITEM_CHECKED_IN", "1"),
            ("college", _TOPIC, "1"),
        ):
            with tenant_context(tenant):
                locks.update(sql for sql in self.sent(topic=topic, key=key) if "advisory" in sql)
        assert len(locks) == 4
        with tenant_context("diku"):
            book = Book.objects.create(title="Emma")
            (published,) = (
                sql for sql in self.sent(topic="library.chapter", key=book.pk) if "advisory" in sql
            )
            with CaptureQueriesContext(connection) as captured:
                Chapter.objects.create(book=book, title="One")
        assert published in [query["sql"] for query in captured.captured_queries]


@pytest.mark.usefixtures("only_test_receivers", "memory_broker")
class TestReceivers:
    def test_a_published_event_reaches_a_receiver_as_it_was_returned(self):
        """publish() and a receiver need nothing between them but the library: no HTTP, no hub."""
        got: list[Event] = []

        @receiver(_TOPIC)
        def note(event: Event) -> None:
            got.append(event)

        sent = check_out(payload={"loan": 1, "nested": {"due": None}})
        deliver_all()
        (event,) = got
        for name in ("id", "topic", "type", "key", "tenant", "occurred_at", "payload"):
            assert getattr(event, name) == getattr(sent, name), name
        assert (event.wire_topic, event.offset) == (f"folio.{_TOPIC}", 0)

    def test_an_event_that_a_receiver_publishes_names_its_cause(self):
        """What a receiver publishes carries the id of the event that it was handling."""

        @receiver(_TOPIC)
        def follow_up(event: Event) -> None:
            publish("circulation.NOTICE", key=event.key, payload={})

        sent = check_out()
        with captured_events() as captured:
            deliver_all()
        (notice,) = captured
        assert notice.cause_id == str(sent.id)
