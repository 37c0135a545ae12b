"""The migrations: complete, and passable in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from folio_events import publish, relay
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import OutboxMessage

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def migrated() -> Iterator[None]:
    """Whatever the test does, the tables are there again after it."""
    yield
    migrate()


def migrate(*target: str) -> None:
    call_command("migrate", "folio_events", *target, verbosity=0)


def schema() -> dict[str, Any]:
    """Columns, indexes and constraints of the tables of folio_events."""
    found = {}
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            if table.startswith("folio_events_"):
                columns = connection.introspection.get_table_description(cursor, table)
                constraints = connection.introspection.get_constraints(cursor, table)
                found[table] = (
                    [(column.name, column.type_code, column.null_ok) for column in columns],
                    sorted(str(constraint) for constraint in constraints.values()),
                )
    return found


def test_no_migration_is_missing():
    """makemigrations --check finds nothing to do in any app that has migrations."""
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_the_migrations_depend_on_no_other_app():
    """folio_events can be migrated alone, before and without any other app."""
    graph = MigrationLoader(connection).graph
    for key in graph.leaf_nodes("folio_events"):
        assert {app for app, _name in graph.forwards_plan(key)} == {"folio_events"}


def test_there_is_one_newest_migration():
    """The migrations form one line: no two of them follow the same one."""
    assert len(MigrationLoader(connection).graph.leaf_nodes("folio_events")) == 1


@pytest.mark.usefixtures("migrated")
def test_the_migrations_can_be_undone_and_done_again():
    """Back to zero no table is left; forth again the tables are as they were, and work."""
    before = schema()
    assert before
    migrate("zero")
    assert schema() == {}
    migrate()
    assert schema() == before
    publish("library.note", key="1", payload={})
    assert OutboxMessage.objects.count() == 1


@pytest.mark.usefixtures("migrated")
def test_each_migration_can_be_undone(memory_broker: MemoryBroker):
    """Step by step back, and forth again, with rows in the tables."""
    before = schema()
    graph = MigrationLoader(connection).graph
    (newest,) = graph.leaf_nodes("folio_events")
    steps = [name for _app, name in graph.forwards_plan(newest)]
    publish("library.note", key="1", payload={})
    relay.drain()
    for name in [*reversed(steps[:-1]), "zero", *steps]:
        migrate(name)
    assert schema() == before
