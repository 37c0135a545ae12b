"""Triggers and those who write past Django: other programs, COPY, cascades, and what nobody sees."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F
from django.test.utils import override_settings

from folio_events import ModelEvents, events, publish, trigger_context, triggers
from folio_events.brokers import get_broker
from folio_events.brokers.memory import MemoryBroker
from folio_events.exceptions import EncodingError, MissingTenantError
from folio_events.hooks import suppress_events
from folio_events.models import OutboxMessage
from folio_events.relay import drain
from folio_events.tenants import CallContext, call_context, tenant_context

pytest_plugins = ("tests.recording",)
pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]
PARTS = "triggerapp_triggerpart"
INSERT = f"INSERT INTO {PARTS} (id, title) VALUES (gen_random_uuid(), 'p')"


def model(name: str) -> type[Any]:
    return apps.get_model("triggerapp", name)


@contextmanager
def another_program(**options: Any) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the database that Django knows nothing of."""
    parameters = connection.get_connection_params()
    for name in ("context", "cursor_factory", "prepare_threshold", "server_side_binding"):
        parameters.pop(name, None)
    with psycopg.connect(**{"autocommit": True, **parameters, **options}) as program:
        yield program


def run(sql: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


def stored() -> list[tuple[str, str, str | None]]:
    """Kind, tenant and key of what the outbox holds."""
    rows = OutboxMessage.objects.order_by("id")
    return list(rows.values_list("event_type", "tenant", "key"))


@pytest.fixture
def redeclare(declare: Callable[..., None], settings: Any) -> Iterator[Callable[..., ModelEvents]]:
    """Declare a model with a trigger in another way, and install that trigger, for one test."""
    changed: list[type[Any]] = []

    def change(name: str, **attributes: object) -> ModelEvents:
        declare(model(name), **{"capture": "trigger", **attributes})
        declaration = events.find(model(name))
        assert declaration is not None
        assert not triggers.faults(declaration)
        triggers.trigger_of(declaration).install(model(name))
        trigger_context.install()
        changed.append(model(name))
        return declaration

    yield change
    import pgtrigger

    known: dict[Any, Any] = dict(pgtrigger.registered())
    # As it was migrated.
    migrated = {**settings.FOLIO_EVENTS, "TENANCY": None}
    with override_settings(FOLIO_EVENTS=migrated, USE_TZ=True, TIME_ZONE="UTC"):
        for watched in changed:
            known[watched].install(watched)


class TestWriters:
    def test_another_program(self):
        """A program that knows nothing of Django leaves the same events."""
        with another_program() as program:
            program.execute(INSERT)
            program.execute(f"UPDATE {PARTS} SET title = 'q'")
            program.execute(f"DELETE FROM {PARTS}")
        assert stored() == [("CREATE", "", None), ("UPDATE", "", None), ("DELETE", "", None)]

    def test_copy_by_another_program(self):
        """COPY leaves an event for each row."""
        copied = f"COPY {PARTS} (id, title) FROM STDIN"
        with another_program() as program, program.cursor().copy(copied) as copy:
            for number in range(5):
                copy.write_row((uuid.UUID(int=number), "copied"))
        assert [kind for kind, *_ in stored()] == ["CREATE"] * 5

    def test_cascades_of_the_database(self):
        """Rows that ON DELETE CASCADE deletes leave their events."""
        run(
            f"ALTER TABLE {PARTS} ADD CONSTRAINT cascade_of_the_database FOREIGN KEY (item_id)"
            " REFERENCES triggerapp_triggeritem ON DELETE CASCADE"
        )
        try:
            item = model("TriggerItem").objects.create(title="x")
            model("TriggerPart").objects.create(title="p", item=item)
            OutboxMessage.objects.all().delete()
            run("DELETE FROM triggerapp_triggeritem")
            assert [(kind, key) for kind, _, key in stored()] == [("DELETE", str(item.pk))] * 2
        finally:
            run(f"ALTER TABLE {PARTS} DROP CONSTRAINT cascade_of_the_database")

    def test_a_rolled_back_program_leaves_nothing(self):
        """Row and event are one transaction, whoever writes."""
        with another_program(autocommit=False) as program:
            program.execute(INSERT)
            program.rollback()
        assert not stored()

    def test_truncate_and_replication_are_not_seen(self):
        """TRUNCATE fires no row trigger, and a session in the role replica none at all."""
        with another_program() as program:
            program.execute(f"TRUNCATE {PARTS}")
            program.execute("SET session_replication_role = replica")
            program.execute(INSERT)
        assert not stored()

    def test_fixtures_leave_no_event_unless_declared(self, redeclare: Callable[..., Any], tmp_path):
        """loaddata is silent, and with fixtures = True it is not."""
        fixture = str(tmp_path / "parts.json")

        def load() -> None:
            with suppress_events():
                model("TriggerPart").objects.all().delete()
            call_command("loaddata", fixture, verbosity=0)

        with suppress_events():
            model("TriggerPart").objects.create(title="p")
        call_command("dumpdata", "triggerapp.TriggerPart", output=fixture, verbosity=0)
        load()
        assert not stored()
        redeclare("TriggerPart", fixtures=True)
        load()
        assert [kind for kind, *_ in stored()] == ["CREATE"]

    def test_more_fields_than_a_function_takes_arguments(
        self, redeclare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ):
        """A row of many fields is written in parts."""
        with monkeypatch.context() as patched:
            patched.setattr(triggers, "_FIELDS_OF_ONE_CALL", 3)
            redeclare("TriggerItem")
        model("TriggerItem").objects.create(title="x", library="north")
        new = json.loads(bytes(OutboxMessage.objects.get().payload or b""))["new"]
        assert list(new) == [field.name for field in model("TriggerItem")._meta.concrete_fields]
        assert (new["title"], new["library"]) == ("x", "north")

    def test_private_values_are_masked(self, redeclare: Callable[..., Any]):
        """Neither value nor null of a private field is told; that it changed is an event."""
        redeclare(
            "TriggerItem",
            fields=["id", "title", "weight"],
            private=["title", "weight"],
            skip_unchanged=True,
        )
        item = model("TriggerItem").objects.create(title="hunter2", weight=float("nan"))
        item.save()
        item.title = "hunter3"
        item.save()
        shown = {"id": item.pk, "title": "***", "weight": "***"}
        bodies = [
            json.loads(bytes(row.payload or b"")) for row in OutboxMessage.objects.order_by("id")
        ]
        assert [(body.get("old"), body["new"]) for body in bodies] == [
            (None, shown),
            (shown, shown),
        ]


class TestContext:
    @pytest.fixture(autouse=True)
    def _tenancy(self, folio_events: Callable[..., None]) -> None:
        folio_events(TENANCY="folio")

    def tenants(self) -> list[str]:
        return [tenant for _, tenant, _ in stored()]

    def test_a_save_in_autocommit(self):
        """Without a transaction the context rides with the statement, and is gone after it."""
        with tenant_context("diku"):
            model("TriggerPart")(title="p").save()
        assert self.tenants() == ["diku"]
        with connection.cursor() as cursor:
            cursor.execute("SELECT coalesce(current_setting('folio_events.tenant', true), '')")
            assert cursor.fetchone() == ("",)

    def test_transactions_one_after_the_other(self):
        """Each transaction is told anew, though it begins with reading."""
        for tenant in ("diku", "diku", "college"):
            with tenant_context(tenant), transaction.atomic():
                list(model("TriggerPart").objects.all())
                run(INSERT)
        assert self.tenants() == ["diku", "diku", "college"]

    def test_a_transaction_that_begins_with_copy(self):
        """COPY as the first statement of a transaction has the context, and so has what follows."""
        for tenant in ("diku", "college"):
            with tenant_context(tenant), transaction.atomic(), connection.cursor() as cursor:
                with cursor.copy(f"COPY {PARTS} (id, title) FROM STDIN") as copy:
                    copy.write_row((uuid.uuid4(), "copied"))
                run(INSERT)
        assert self.tenants() == ["diku", "diku", "college", "college"]

    def test_copy_and_executemany_in_autocommit(self):
        """Both get a transaction of their own, for the context to hold."""
        with tenant_context("diku"), connection.cursor() as cursor:
            with cursor.copy(f"COPY {PARTS} (id, title) FROM STDIN") as copy:
                copy.write_row((uuid.uuid4(), "copied"))
            cursor.executemany(
                f"INSERT INTO {PARTS} (id, title) VALUES (%s, 'many')", [(uuid.uuid4(),)] * 1
            )
        assert self.tenants() == ["diku", "diku"]

    def test_after_a_savepoint(self):
        """A rolled-back savepoint takes the settings with it; the next write brings them again."""
        with tenant_context("diku"), transaction.atomic():
            point = str(connection.savepoint())
            run(INSERT)
            connection.savepoint_rollback(point)
            run(INSERT)
        assert self.tenants() == ["diku"]

    def test_parameters_that_the_server_binds(self):
        """With server_side_binding the context goes ahead of the statement, in its transaction."""
        bound = connection.copy()
        bound.settings_dict["OPTIONS"] = {"server_side_binding": True}
        try:
            with tenant_context("diku"), bound.cursor() as cursor:
                cursor.execute(f"INSERT INTO {PARTS} (id, title) VALUES (%s, 'p')", [uuid.uuid4()])
                assert cursor.rowcount == 1
                bound.set_autocommit(False)
                for _ in range(2):
                    cursor.execute(
                        f"INSERT INTO {PARTS} (id, title) VALUES (%s, 'p') RETURNING title",
                        [uuid.uuid4()],
                    )
                    assert cursor.fetchone() == ("p",)
                bound.commit()
        finally:
            bound.close()
        assert self.tenants() == ["diku"] * 3

    def test_procedures_and_comments(self):
        """DO in a transaction and a statement that a comment leads have the context."""
        with tenant_context("diku"), transaction.atomic():
            run(f"DO $$ BEGIN {INSERT}; END $$")
        with tenant_context("diku"):
            run(f"/* who: me */ -- and why\n {INSERT}")
        assert self.tenants() == ["diku", "diku"]

    def test_a_program_says_its_tenant(self):
        """Another program names the tenant by a setting of its transaction."""
        with another_program(autocommit=False) as program:
            program.execute("SET LOCAL folio_events.tenant = 'diku'")
            program.execute(INSERT)
        assert self.tenants() == ["diku"]

    def test_a_tenant_that_cannot_be_is_refused(self):
        """A tenant with a dot in it would match no subscription."""
        with another_program() as program:
            program.execute("SET folio_events.tenant = 'di.ku'")
            with pytest.raises(psycopg.Error, match=r"'di\.ku' is no tenant"):
                program.execute(INSERT)

    def test_without_tenant_the_write_is_refused(self, redeclare: Callable[..., Any]):
        """Where tenancy is on and nothing says otherwise, Django's writes and others' are refused."""
        redeclare("TriggerPart")
        with pytest.raises(MissingTenantError, match=r"triggerapp\.TriggerPart"):
            run(INSERT)
        with (
            another_program() as program,
            pytest.raises(psycopg.Error, match="No tenant") as caught,
        ):
            program.execute(INSERT)
        assert caught.value.sqlstate == triggers.NO_TENANT
        assert not model("TriggerPart").objects.exists()

    def test_the_tenant_of_writes_without_context_may_be_declared(
        self, redeclare: Callable[..., Any]
    ):
        """A constant, or a column of the row; a context counts before either."""
        redeclare("TriggerPart", tenant="central")
        redeclare("TriggerItem", tenant=F("library"), fields=["id", "title"])
        items = "INSERT INTO triggerapp_triggeritem (title, note, copies, lent, shelf, scan, extra, tags, library)"
        row = "('x', '', 1, false, gen_random_uuid(), '', '{{}}', '{{}}', '{}')"
        with another_program() as program:
            program.execute(INSERT)
            program.execute(f"{items} VALUES {row.format('north')}")
            program.execute("DELETE FROM triggerapp_triggeritem")
            with pytest.raises(psycopg.Error, match="'no tenant' is no tenant"):
                program.execute(f"{items} VALUES {row.format('no tenant')}")
        with tenant_context("diku"):
            model("TriggerPart").objects.create(title="p")
        assert self.tenants() == ["central", "north", "north", "diku"]


class TestKeys:
    def free(self, program: psycopg.Connection[Any], *parts: str, kind: str = "") -> bool:
        """Whether nobody holds the lock of a topic and tenant, or of one key there."""
        found = program.execute(
            f"SELECT pg_try_advisory_xact_lock{kind}(hashtextextended(%s, 0)"
            f" # '{OutboxMessage._meta.db_table}'::regclass::oid::bigint)",
            ["\n".join(parts)],
        ).fetchone()
        assert found is not None
        return bool(found[0])

    def test_a_shared_key_is_locked_until_the_commit(self):
        """Rows of one key wait for each other, those of other keys do not."""
        item = model("TriggerItem").objects.create(title="x")
        topic = ("forms.trigger-part", "")
        with another_program() as program, transaction.atomic():
            model("TriggerPart").objects.create(title="p", item=item)
            assert not self.free(program, *topic, str(item.pk))
            assert self.free(program, *topic, str(item.pk + 1))
            assert self.free(program, *topic, kind="_shared")
            assert not self.free(program, *topic)
            program.execute("SET lock_timeout = '200ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                program.execute(
                    f"INSERT INTO {PARTS} (id, title, item_id) VALUES (gen_random_uuid(), 'q', {item.pk})"
                )
            program.execute(INSERT)

    def test_both_forms_and_publish_wait_for_each_other(self):
        """The lock of a key is the same, whoever takes it."""
        item = model("TriggerItem").objects.create(title="x")
        insert = (
            f"INSERT INTO {PARTS} (id, title, item_id) VALUES (gen_random_uuid(), 'q', {item.pk})"
        )
        with another_program() as program:
            program.execute("SET lock_timeout = '200ms'")
            with transaction.atomic():
                publish("forms.trigger-part", key=item.pk, payload={})
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    program.execute(insert)
            program.execute(insert)

    def test_many_keys_take_the_topic(self):
        """A bulk write holds some hundred locks, not one for each key."""
        items = [model("TriggerItem")(title=f"{n}") for n in range(150)]
        model("TriggerItem").objects.bulk_create(items)
        parts = [model("TriggerPart")(title="p", item=item) for item in items]
        with another_program() as program, transaction.atomic():
            model("TriggerPart").objects.bulk_create(parts)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
                )
                assert cursor.fetchone()[0] <= 102
            assert not self.free(program, "forms.trigger-part", "", kind="_shared")

    def test_unordered_events_take_no_lock(self, redeclare: Callable[..., Any]):
        """ordered = False turns the lock off."""
        redeclare("TriggerPart", key="item", ordered=False)
        item = model("TriggerItem").objects.create(title="x")
        with transaction.atomic(), connection.cursor() as cursor:
            model("TriggerPart").objects.create(title="p", item=item)
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            )
            assert cursor.fetchone()[0] == 0


class TestRelay:
    def test_the_relay_adds_the_source(self, folio_events: Callable[..., None]):
        """The source is a setting, so it is no part of a trigger: it is there on the broker."""
        folio_events(
            SOURCE="/mod-inventory",
            BROKER={"BACKEND": "folio_events.brokers.memory.MemoryBroker"},
        )
        with call_context(CallContext(headers={"x-okapi-request-id": "7"})):
            run(INSERT)
        drain()
        broker = get_broker()
        assert isinstance(broker, MemoryBroker)
        (record,) = broker.records("folio.forms.trigger-part")
        names = [name for name, _ in record.headers]
        assert names[:4] == ["ce_specversion", "ce_type", "ce_source", "content-type"]
        assert dict(record.headers)["ce_source"] == b"/mod-inventory"
        assert dict(record.headers)["x-okapi-request-id"] == b"7"

    def test_writes_that_pass_django_wake_the_relay(self, monkeypatch: pytest.MonkeyPatch):
        """After the commit of a write to a table with a trigger comes a hint, after no other."""
        woken: list[BaseDatabaseWrapper] = []
        monkeypatch.setattr(trigger_context, "wake_after_commit", woken.append)
        run("UPDATE testapp_book SET copies = 1")
        assert not woken
        run(INSERT)
        model("TriggerPart").objects.update(title="q")
        with connection.cursor() as cursor, cursor.copy(f"COPY {PARTS} (id, title) FROM STDIN"):
            pass
        assert [found.alias for found in woken] == ["default"] * 3


class TestRefusals:
    def test_a_writer_without_rights_to_the_outbox_is_refused(self):
        """A change without its event does not happen: a role needs INSERT on the outbox."""
        run(f"CREATE ROLE importer; GRANT ALL ON {PARTS} TO importer")
        try:
            with another_program() as program:
                program.execute("SET ROLE importer")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    program.execute(INSERT)
                run("GRANT INSERT ON folio_events_outboxmessage TO importer")
                program.execute(INSERT)
        finally:
            run("DROP OWNED BY importer; DROP ROLE importer")
        assert len(stored()) == 1

    def test_a_search_path_that_leads_elsewhere_is_refused(self):
        """Where the outbox is not found, the row is not written."""
        with another_program() as program:
            program.execute("SET search_path = pg_catalog")
            with pytest.raises(psycopg.errors.UndefinedTable):
                program.execute(INSERT.replace(PARTS, f"public.{PARTS}"))
        assert not model("TriggerPart").objects.exists()

    def test_a_key_that_is_too_long_is_refused(self, redeclare: Callable[..., Any]):
        """Longer than an index takes, and so are both forms of capture agreed."""
        redeclare("TriggerItem", fields=["id", "note"], key="note")
        with pytest.raises(EncodingError, match="the key is longer than 2000 bytes"):
            model("TriggerItem").objects.create(title="x", note="ü" * 1001)
        model("TriggerItem").objects.create(title="x", note="ü" * 1000)
        assert len(stored()) == 1

    def test_local_times_where_the_project_has_no_time_zones(
        self, redeclare: Callable[..., Any], settings: Any
    ):
        """Without USE_TZ times are the project's own, whatever the session's zone is."""
        settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Berlin"
        redeclare("TriggerItem", fields=["id", "catalogued_at"])
        with another_program() as program:
            program.execute("SET timezone = 'Asia/Tokyo'")
            program.execute(
                "INSERT INTO triggerapp_triggeritem (title, note, copies, lent, shelf, scan, extra,"
                " tags, library, catalogued_at) VALUES ('x', '', 1, false, gen_random_uuid(), '',"
                " '{}', '{}', '', '2026-07-01 12:00:00.5+00')"
            )
        body = json.loads(bytes(OutboxMessage.objects.get().payload or b""))
        assert body["new"]["catalogued_at"] == "2026-07-01T14:00:00.500000"
