"""Capture by trigger: the same events as by signals, whoever writes, and what the database is told."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from folio_events.exceptions import EncodingError
from folio_events.hooks import suppress_events
from folio_events.models import OutboxMessage
from folio_events.tenants import CallContext, call_context, tenant_context

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

#: A value of each kind, with what JSON has to escape and Python and PostgreSQL write differently.
VALUES: dict[str, Any] = {
    "title": 'The "mill"\\ on\tthe \u2028 flöss \N{SNOWMAN} \x7f\x01',
    "note": "two\nlines",
    "copies": -3,
    "weight": 0.1,
    "price": Decimal("12.50"),
    "lent": True,
    "shelf": uuid.UUID(int=7),
    "published_on": date(1860, 4, 4),
    "opens_at": time(9, 30, 0, 120),
    "catalogued_at": datetime(2026, 3, 14, 15, 9, 26, 530000, UTC),
    "loan_period": timedelta(days=21, hours=4, microseconds=5),
    "cover": bytes(range(120)),
    "scan": "scans/1.png",
    "address": "10.0.0.1",
    "extra": {"pages": [1, 2.5, None], "näme": {"a": "b"}},
    "tags": ["new", 'a "b"'],
    "prices": [Decimal("1.10"), None],
    "seen_at": [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 1, 2, 3, 4, UTC)],
}
EDGES: list[dict[str, Any]] = [
    {},
    VALUES,
    {"loan_period": timedelta(days=-1, seconds=1), "weight": 1e300, "price": Decimal("0.00")},
    {"loan_period": timedelta(0), "opens_at": time(0), "tags": [], "prices": [], "cover": b""},
    {
        "published_on": date(1, 1, 1),
        "catalogued_at": datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
    },
    {"extra": [], "weight": 1.0, "address": "2001:db8::1", "title": ""},
]


def model(form: str, name: str = "Item") -> type[Any]:
    return apps.get_model("triggerapp", f"{form}{name}")


def table(form: str, name: str = "Item") -> str:
    return str(model(form, name)._meta.db_table)


def run(sql: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


def stored() -> list[dict[str, Any]]:
    """What the outbox holds, in the order of ids."""
    return [
        {
            "topic": row.topic.replace("trigger", "*").replace("signal", "*"),
            "type": row.event_type,
            "tenant": row.tenant,
            "key": row.key,
            "body": {**json.loads(bytes(row.payload or b""))},
            "headers": {
                name: value.replace("trigger", "*").replace("signal", "*")
                for part in (row.repeating_headers, row.own_headers)
                for name, value in json.loads(bytes(part) or b"[]")
            },
            "id": row.event_id,
            "at": row.occurred_at,
        }
        for row in OutboxMessage.objects.order_by("id")
    ]


def taken() -> list[dict[str, Any]]:
    """What the outbox holds, without what differs from event to event; empties it."""
    found = stored()
    OutboxMessage.objects.all().delete()
    for event in found:
        body = event["body"]
        assert body.pop("eventId", None) or body.pop("id") == str(event["id"])
        stamp = body.pop("eventTs", None) or body.pop("timestamp")
        assert stamp == int(event.pop("at").timestamp() * 1000)
        del event["id"]
        # The relay knows the source.
        event["headers"].pop("ce_source", None)
    return found


Story = Callable[[str], None]


def in_both_forms(story: Story, *, by: Callable[[Any], Any] | None = None) -> list[dict[str, Any]]:
    """Do the same to the model that signals watch and to the one that a trigger watches.

    Args:
        story: Gets "Signal" or "Trigger".
        by: Sorts the events first, where their order is Django's own affair.
    """
    for form in ("Signal", "Trigger"):
        run(f"ALTER SEQUENCE {table(form)}_id_seq RESTART WITH 100")
    story("Signal")
    signals = taken()
    story("Trigger")
    triggers = taken()
    if by is not None:
        signals, triggers = sorted(signals, key=by), sorted(triggers, key=by)
    for one, other in zip(triggers, signals, strict=True):
        assert one == other
    return signals


class TestBothForms:
    @pytest.mark.parametrize("values", EDGES)
    def test_a_row_reads_the_same(self, values: dict[str, Any]):
        """A value of each kind of field, created, changed and deleted, shows alike in both forms."""

        def story(form: str) -> None:
            item = model(form).objects.create(**{"title": "x", "shelf": uuid.UUID(int=1), **values})
            item.title = "changed"
            item.save()
            item.delete()

        assert [event["type"] for event in in_both_forms(story)] == ["CREATE", "UPDATE", "DELETE"]

    def test_bodies_are_the_same_bytes(self):
        """Where the values are text, numbers and times, the bodies differ in id and time alone."""
        found = {}
        for form in ("Signal", "Trigger"):
            row = model(form, "Part").objects.create(id=uuid.UUID(int=3), title=VALUES["title"])
            body = bytes(OutboxMessage.objects.get().payload or b"").decode()
            event = OutboxMessage.objects.get()
            stamp = str(int(event.occurred_at.timestamp() * 1000))
            found[form] = body.replace(str(event.event_id), "ID").replace(stamp, "AT")
            OutboxMessage.objects.all().delete()
            row.delete()
            OutboxMessage.objects.all().delete()
        assert found["Signal"] == found["Trigger"]

    def test_expressions_show_what_the_database_computed(self):
        """F() and a generated field show their values."""

        def story(form: str) -> None:
            item = model(form).objects.create(title="x", shelf=uuid.UUID(int=1))
            item.copies = F("copies") + 4
            item.save(update_fields=["copies"])

        new = in_both_forms(story)[-1]["body"]["new"]
        assert (new["copies"], new["twice"]) == (5, 10)

    def test_the_doors_of_a_queryset(self):
        """bulk_create, update, bulk_update, get_or_create, update_or_create and delete agree."""

        def story(form: str) -> None:
            objects = model(form).objects
            shelf = uuid.UUID(int=1)
            items = objects.bulk_create([model(form)(title=f"{n}", shelf=shelf) for n in range(3)])
            objects.filter(pk=items[0].pk).update(copies=F("copies") * 7)
            items[1].title = "bulk"
            objects.bulk_update(items[1:2], ["title"])
            objects.get_or_create(title="got", defaults={"shelf": shelf})
            objects.update_or_create(title="got", defaults={"copies": 9})
            for pk in sorted(objects.values_list("pk", flat=True)):
                objects.filter(pk=pk).delete()

        kinds = [event["type"] for event in in_both_forms(story)]
        assert kinds == ["CREATE"] * 3 + ["UPDATE"] * 2 + ["CREATE", "UPDATE"] + ["DELETE"] * 4

    def test_a_key_of_another_row_and_the_other_dialect(self):
        """The key comes from a column, may be null, and moves with it; an equal save is no event."""

        def story(form: str) -> None:
            items = [model(form).objects.create(title="x", shelf=uuid.UUID(int=1)) for _ in "ab"]
            part = model(form, "Part").objects.create(id=uuid.UUID(int=5), title="p", item=items[0])
            part.save()
            part.item = items[1]
            part.save()
            part.item = None
            part.save()
            part.delete()

        events = in_both_forms(story)
        assert [event["key"] for event in events[2:]] == ["100", "101", None, None]

    def test_cascades(self):
        """Deleting an item deletes its parts, each with its event."""

        def story(form: str) -> None:
            item = model(form).objects.create(title="x", shelf=uuid.UUID(int=1))
            model(form, "Part").objects.create(id=uuid.UUID(int=5), title="p", item=item)
            item.delete()

        assert (
            sorted(
                event["type"]
                for event in in_both_forms(story, by=lambda event: (event["type"], event["topic"]))
            )
            == ["CREATE"] * 2 + ["DELETE"] * 2
        )

    def test_tenant_headers_and_cause(self, folio_events: Callable[..., None]):
        """The call's tenant, forwarded headers and cause stand in the event, the source does not."""
        folio_events(TENANCY="folio")
        call = CallContext(
            tenant="diku",
            headers={"x-okapi-url": "http://o'kapi", "x-okapi-request-id": "1%s/\\"},
            cause_id=uuid.UUID(int=9),
        )

        def story(form: str) -> None:
            with call_context(call):
                model(form).objects.create(title="x", shelf=uuid.UUID(int=1))

        (event,) = in_both_forms(story)
        assert event["tenant"] == event["body"]["tenant"] == "diku"
        assert event["headers"]["x-okapi-request-id"] == "1%s/\\"
        assert event["headers"]["ce_causationid"] == str(uuid.UUID(int=9))

    @pytest.mark.parametrize("form", ["Signal", "Trigger"])
    def test_a_value_without_json_form_refuses_the_write(self, form: str):
        """NaN in a number is refused, with model and field, and no row stays."""
        with (
            pytest.raises(EncodingError, match=rf"triggerapp\.{form}Item.*'weight'"),
            transaction.atomic(),
        ):
            model(form).objects.create(title="x", weight=float("nan"))
        assert not model(form).objects.exists()

    @pytest.mark.parametrize("form", ["Signal", "Trigger"])
    def test_suppressed_writes_leave_no_event(self, form: str):
        """suppress_events() holds for both forms, and ends with its block."""
        with suppress_events():
            item = model(form).objects.create(title="x")
        assert not stored()
        item.save()
        assert [event["type"] for event in stored()] == ["UPDATE"]

    @pytest.mark.parametrize("form", ["Signal", "Trigger"])
    def test_a_rollback_leaves_no_event(self, form: str):
        """What is undone to a savepoint leaves no event; what follows does."""
        with transaction.atomic():
            point = str(connection.savepoint())
            model(form).objects.create(title="undone")
            connection.savepoint_rollback(point)
            model(form).objects.create(title="done")
        assert [event["body"]["new"]["title"] for event in stored()] == ["done"]


class TestEveryWriter:
    def test_raw_sql(self):
        """INSERT, UPDATE and a DELETE within WITH leave events with a true old."""
        part = table("Trigger", "Part")
        run(
            f"INSERT INTO {part} (id, title) VALUES (%s, 'a'), (%s, 'b')",
            *[uuid.UUID(int=n) for n in (1, 2)],
        )
        run(f"UPDATE {part} SET title = title || '!'")
        run(f"WITH gone AS (DELETE FROM {part} WHERE title = 'a!' RETURNING 1) SELECT * FROM gone")
        found = [
            (kind, (old or {}).get("title"), (new or {}).get("title"))
            for kind, _, old, new in body_data()
        ]
        assert found == [
            ("CREATE", None, "a"),
            ("CREATE", None, "b"),
            ("UPDATE", "a", "a!"),
            ("UPDATE", "b", "b!"),
            ("DELETE", "a!", None),
        ]

    def test_an_upsert_is_what_became_of_each_row(self):
        """bulk_create with update_conflicts gives CREATE and UPDATE as it turned out."""
        parts = model("Trigger", "Part")
        parts.objects.create(id=uuid.UUID(int=1), title="old")
        parts.objects.bulk_create(
            [parts(id=uuid.UUID(int=n), title="new") for n in (1, 2)],
            update_conflicts=True,
            unique_fields=["id"],
            update_fields=["title"],
        )
        assert [kind for kind, *_ in body_data()] == ["CREATE", "UPDATE", "CREATE"]

    def test_historical_models(self):
        """The models of migrations are no registered classes; their writes leave events all the same."""
        from django.db.migrations.loader import MigrationLoader

        state = MigrationLoader(connection).project_state(("triggerapp", "0001_initial"))
        state.apps.get_model("triggerapp", "TriggerPart").objects.create(title="moved")
        assert [kind for kind, *_ in body_data()] == ["CREATE"]

    def test_a_change_without_difference_is_an_event_unless_declared_otherwise(self):
        """skip_unchanged holds for raw SQL too."""
        item = model("Trigger").objects.create(title="x")
        model("Trigger", "Part").objects.create(title="p", item=item)
        OutboxMessage.objects.all().delete()
        run(f"UPDATE {table('Trigger', 'Part')} SET title = title")
        assert not stored()
        run(f"UPDATE {table('Trigger')} SET title = title")
        assert [event["type"] for event in stored()] == ["UPDATE"]


def body_data() -> list[tuple[str, str | None, Any, Any]]:
    """Kind, key, old and new of the events of parts, whose dialect is circulation's."""
    return [
        (event["type"], event["key"], event["body"]["data"]["old"], event["body"]["data"]["new"])
        for event in stored()
        if "data" in event["body"]
    ]


class TestContext:
    @pytest.fixture(autouse=True)
    def _tenancy(self, folio_events: Callable[..., None]) -> None:
        folio_events(TENANCY="folio")

    def create(self) -> None:
        model("Trigger", "Part").objects.create(title="p")

    def tenants(self) -> list[str]:
        return [event["tenant"] for event in stored()]

    def test_it_is_sent_once_a_transaction(self):
        """The second write of a transaction costs no second setting of the context."""
        with tenant_context("diku"), CaptureQueriesContext(connection) as queries:
            self.create()
            self.create()
        assert [query["sql"].count("set_config") for query in queries] == [3, 0]
        assert self.tenants() == ["diku", "diku"]

    def test_it_is_sent_again_when_it_changes(self):
        """Each write goes by the context in which it is done."""
        with tenant_context("diku"):
            self.create()
            with tenant_context("college"):
                self.create()
            self.create()
        assert self.tenants() == ["diku", "college", "diku"]

    def test_it_is_sent_again_after_a_savepoint_was_rolled_back(self):
        """A savepoint takes the settings along that were made within it."""
        with tenant_context("diku"):
            point = str(connection.savepoint())
            self.create()
            connection.savepoint_rollback(point)
            self.create()
        assert self.tenants() == ["diku"]

    def test_what_is_returned_is_the_statements_own(self):
        """rowcount, RETURNING and rows come from the statement, not from the settings before it."""
        with tenant_context("diku"), connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {table('Trigger', 'Part')} (id, title) VALUES (gen_random_uuid(), '100%') RETURNING title"
            )
            assert cursor.fetchall() == [("100%",)]
        with tenant_context("college"), connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {table('Trigger', 'Part')} SET title = %(title)s", {"title": "%s"}
            )
            assert cursor.rowcount == 1

    def test_many_statements_share_one_setting(self):
        """executemany() has its context too."""
        with tenant_context("diku"), connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {table('Trigger', 'Part')} (id, title) VALUES (gen_random_uuid(), %s)",
                [("a",), ("b",)],
            )
        assert self.tenants() == ["diku", "diku"]

    def test_copy_within_a_transaction(self):
        """COPY goes past Django's cursor, and has the context all the same."""
        copied = f"COPY {table('Trigger', 'Part')} (id, title) FROM STDIN"
        with tenant_context("diku"), connection.cursor() as cursor, cursor.copy(copied) as copy:
            copy.write_row((uuid.UUID(int=1), "a"))
        assert self.tenants() == ["diku"]

    def test_reading_costs_nothing(self):
        """A statement that only reads brings no context along."""
        with tenant_context("diku"), CaptureQueriesContext(connection) as queries:
            list(model("Trigger").objects.all())
            list(model("Trigger").objects.iterator())
        assert not any("set_config" in query["sql"] for query in queries)
