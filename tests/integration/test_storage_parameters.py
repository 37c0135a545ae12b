"""Autovacuum and page layout of the tables on PostgreSQL, and what they are for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection, transaction

from folio_events import inbox
from folio_events.inbox import Lane, Position
from folio_events.message import TopicPartition

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

_LANE = Lane(group="events", database="default")
_PLACES = [TopicPartition("folio.library.book", number) for number in range(400)]


@pytest.fixture
def migrated() -> Iterator[None]:
    """Whatever the test does, the newest migration is applied after it."""
    yield
    call_command("migrate", "folio_events", verbosity=0)


def storage_parameters() -> dict[str, dict[str, float]]:
    """What PostgreSQL has stored with each table of the app."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, reloptions FROM pg_class"
            " WHERE relkind = 'r' AND relname LIKE 'folio\\_events\\_%' AND pg_table_is_visible(oid)"
        )
        return {
            table: {name: float(value) for name, value in (o.split("=") for o in options or [])}
            for table, options in cursor.fetchall()
        }


def test_each_busy_table_has_its_parameters() -> None:
    """Logs, tables that churn, and rows that are updated in place: each kind has its own."""
    logs = {
        "autovacuum_vacuum_scale_factor": 0.02,
        "autovacuum_vacuum_insert_scale_factor": 0.05,
        "autovacuum_analyze_scale_factor": 0.02,
    }
    churning = {
        "autovacuum_vacuum_scale_factor": 0.01,
        "autovacuum_vacuum_threshold": 100,
        "autovacuum_analyze_scale_factor": 0.02,
    }
    in_place = {
        "fillfactor": 50,
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": 500,
    }
    found = storage_parameters()
    assert found == {
        "folio_events_outboxmessage": logs,
        "folio_events_publication": logs,
        "folio_events_inboxentry": logs,
        "folio_events_brokerrecord": logs,
        "folio_events_attempt": logs,
        "folio_events_delivery": churning,
        "folio_events_orphan": churning,
        "folio_events_relaygap": churning,
        "folio_events_relaycursor": in_place,
        "folio_events_consumeroffset": in_place,
        "folio_events_brokerpartition": in_place,
        "folio_events_receiverstate": in_place,
        "folio_events_process": in_place,
        "folio_events_eventcount": in_place,
        "folio_events_replay": in_place,
        # A few rows that a person looks at.
        "folio_events_withheldmessage": {},
        "folio_events_backfill": {},
        "folio_events_bulkaction": {},
    }
    models = apps.get_app_config("folio_events").get_models()
    assert set(found) >= {model._meta.db_table for model in models}


@pytest.mark.usefixtures("migrated")
def test_the_parameters_can_be_taken_back() -> None:
    """Undone, the migration leaves every table to the server's own settings."""
    call_command("migrate", "folio_events", "0001", verbosity=0)
    assert not any(storage_parameters().values())


def updates_in_place() -> float:
    """Move the offsets of many partitions on, as consumers do; the share of HOT updates."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE folio_events_consumeroffset")
    inbox.start(_LANE, {place: Position(0) for place in _PLACES})
    with transaction.atomic(), connection.cursor() as cursor:
        inbox.advance(_LANE, dict.fromkeys(_PLACES, 7))
        cursor.execute(
            "SELECT n_tup_hot_upd::float / n_tup_upd FROM pg_stat_xact_user_tables"
            " WHERE relid = 'folio_events_consumeroffset'::regclass"
        )
        return float(cursor.fetchone()[0])


def test_offsets_are_updated_within_their_pages() -> None:
    """The room that is left in each page keeps updates out of the index; without it they are not."""
    assert updates_in_place() == 1.0
    parameters = storage_parameters()["folio_events_consumeroffset"]
    table = "ALTER TABLE folio_events_consumeroffset"
    with connection.cursor() as cursor:
        cursor.execute(f"{table} RESET ({', '.join(parameters)})")
        try:
            assert updates_in_place() < 0.8
        finally:
            given = ", ".join(f"{name} = {value:g}" for name, value in parameters.items())
            cursor.execute(f"{table} SET ({given})")
