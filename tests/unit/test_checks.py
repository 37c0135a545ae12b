"""``manage.py check``: each misconfiguration with exactly its id, and a hint."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.db import models

from folio_events import checks, receiver
from folio_events.conf import KAFKA_BROKER, Settings
from folio_events.event import Event
from tests.testapp.events import ChapterEvents
from tests.testapp.models import Chapter

PACKAGE = Path(checks.__file__).parents[1]
Change = Callable[..., None]
POSTGRES = {"ENGINE": "django.db.backends.postgresql", "NAME": "x"}
PATIENT = {"transaction_mode": "IMMEDIATE", "timeout": 20}


def kafka(**options: object) -> dict[str, Any]:
    """A BROKER that names Kafka; nothing connects to it."""
    return {"BACKEND": KAFKA_BROKER, "OPTIONS": {"bootstrap.servers": "127.0.0.1:1", **options}}


MEMORY = {"BACKEND": "folio_events.brokers.memory.MemoryBroker"}

#: What FOLIO_EVENTS holds, and the ids that are found.
SETTINGS: dict[str, tuple[object, list[str]]] = {
    "defaults": ({}, []),
    "no dict": ("ENV=folio", ["E001"]),
    "unknown key": ({"ENVIRONMENT": "folio"}, ["E001"]),
    "two numbers": ({"RELAY_DEADLINE": 0, "RETRY_BATCH_SIZE": "10"}, ["E002", "E002"]),
    "env": ({"ENV": "a.b"}, ["E003"]),
    "collection": ({"TENANCY": "folio", "TENANT_COLLECTION": "all"}, ["E004"]),
    "good collection": ({"TENANCY": "folio", "TENANT_COLLECTION": "ALL"}, []),
    "tenancy": ({"TENANCY": "on"}, ["E005"]),
    "tenancy true": ({"TENANCY": True}, ["E005"]),
    "collection without tenancy": ({"TENANT_COLLECTION": "ALL"}, ["E006"]),
    "tenant without tenancy": ({"DEFAULT_TENANT": "diku"}, ["E006"]),
    "resolver": ({"TENANCY": "folio", "TENANT_RESOLVER": "no.such.function"}, ["E007"]),
    "resolver without dot": ({"TENANCY": "folio", "TENANT_RESOLVER": "function"}, ["E007"]),
    "permission": ({"TENANT_API_PERMISSION": "no.such.Permission"}, ["E060"]),
    "permission of the API": ({"API_PERMISSION": "no.such.Permission"}, ["E060"]),
    "good resolver": (
        {"TENANCY": "folio", "TENANT_RESOLVER": "folio_events.tenants.current_tenant"},
        [],
    ),
    "filter": (
        {
            "TENANCY": "folio",
            "TENANT_FILTER": {"ENTITLED": "folio_events.tenants.current_tenant"},
        },
        [],
    ),
    "filter without function": ({"TENANCY": "folio", "TENANT_FILTER": {}}, ["E014"]),
    "filter of no such function": (
        {"TENANCY": "folio", "TENANT_FILTER": {"ENTITLED": "no.such.function"}},
        ["E014"],
    ),
    "broker without backend": ({"BROKER": {"OPTIONS": {}}}, ["E008"]),
    "broker with another key": ({"BROKER": {**MEMORY, "HOST": "x"}}, ["E008"]),
    "broker as text": ({"BROKER": MEMORY["BACKEND"]}, ["E008"]),
    "no such broker": ({"BROKER": {"BACKEND": "folio_events.brokers.rabbit.Rabbit"}}, ["E008"]),
    "memory": ({"BROKER": MEMORY}, []),
    "kafka": ({"BROKER": kafka(), "GROUP": "library"}, []),
    "kafka without group": ({"BROKER": kafka()}, ["E009"]),
    "kafka without address": (
        {"BROKER": {"BACKEND": KAFKA_BROKER}, "GROUP": "library"},
        ["E020"],
    ),
    "auto commit": ({"BROKER": kafka(**{"enable.auto.commit": True}), "GROUP": "g"}, ["E021"]),
    "acks": ({"BROKER": kafka(acks=1), "GROUP": "g"}, ["E022"]),
    "idempotence": (
        {"BROKER": kafka(**{"enable.idempotence": False}), "GROUP": "g"},
        ["E023"],
    ),
    "blank instance": (
        {"BROKER": kafka(consumer={"group.instance.id": " "}), "GROUP": "g"},
        ["E025"],
    ),
    "no such option": ({"BROKER": kafka(bootstrap="x"), "GROUP": "g"}, ["E024"]),
    "many faults of kafka": (
        {
            "BROKER": {
                "BACKEND": KAFKA_BROKER,
                "OPTIONS": {
                    "consumer": {"enable.auto.commit": 1, "enable.auto.offset.store": 1},
                    "producer": {"acks": 0, "enable.idempotence": 0},
                },
            }
        },
        ["E020", "E021", "E021", "E022", "E023"],
    ),
    "faults of several kinds": (
        {"ENV": "", "TENANCY": "on", "RELAY_SLOT": -1, "BROKER": {}},
        ["E002", "E003", "E005", "E008"],
    ),
}

#: Databases by alias, and the ids that are found.
DATABASES: dict[str, tuple[dict[str, tuple[str, dict[str, Any]]], list[str]]] = {
    "postgres": ({"default": ("postgresql", POSTGRES)}, []),
    "sqlite": ({"default": ("sqlite", {"OPTIONS": PATIENT})}, []),
    "mysql": ({"default": ("mysql", {})}, ["E010"]),
    "oracle and mysql": ({"default": ("oracle", {}), "old": ("mysql", {})}, ["E010", "E010"]),
    "mysql beside": ({"default": ("postgresql", POSTGRES), "old": ("mysql", {})}, ["E010"]),
    "hasty sqlite": ({"default": ("sqlite", {})}, ["W001"]),
    "deferred": (
        {"default": ("sqlite", {"OPTIONS": {**PATIENT, "transaction_mode": None}})},
        ["W001"],
    ),
    "short wait": ({"default": ("sqlite", {"OPTIONS": {**PATIENT, "timeout": 19}})}, ["W001"]),
    "any case": (
        {"default": ("sqlite", {"OPTIONS": {**PATIENT, "transaction_mode": "immediate"}})},
        [],
    ),
}


def ids(found: Iterable[CheckMessage]) -> list[str]:
    """The ids of messages without the package's name; each has to have a hint."""
    messages = list(found)
    for message in messages:
        assert message.hint, message
        assert message.msg.endswith((".", "]+")), message
    return sorted(str(message.id).removeprefix("folio_events.") for message in messages)


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stand-ins for the connections of other databases, which need not be there."""

    def stand_in(aliases: dict[str, tuple[str, dict[str, Any]]]) -> None:
        connections = {
            alias: SimpleNamespace(
                vendor=vendor, display_name=vendor.title(), settings_dict=settings
            )
            for alias, (vendor, settings) in aliases.items()
        }
        monkeypatch.setattr(checks, "django_settings", SimpleNamespace(DATABASES=connections))
        monkeypatch.setattr(checks, "connections", connections)

    return stand_in


@pytest.mark.parametrize("name", SETTINGS)
def test_a_fault_in_the_settings_is_named(
    name: str, settings: Any, only_test_receivers: None
) -> None:
    """With its own id and no other, and with a hint."""

    @receiver("inventory.item", name="tests.receiver")
    def handle(event: Event) -> None: ...

    settings.FOLIO_EVENTS, expected = SETTINGS[name]

    assert ids(checks.check_settings(None)) == expected


@pytest.mark.parametrize(
    "name",
    [field.name for field in fields(Settings) if isinstance(field.default, (int, float))
     and not isinstance(field.default, bool) and field.default > 0],
)  # fmt: skip
def test_every_number_has_to_be_one_above_zero(name: str, settings: Any) -> None:
    """Zero, negatives, texts and None are refused by name; counts have to be whole."""
    default = Settings.__dataclass_fields__[name].default

    for value in (0, -1, "5", None, True, *([] if isinstance(default, float) else [2.5])):
        settings.FOLIO_EVENTS = {name: value}
        found = checks.check_settings(None)
        assert ids(found) == ["E002"], value
        assert name in found[0].msg

    settings.FOLIO_EVENTS = {name: 1}
    assert checks.check_settings(None) == []


@pytest.mark.parametrize("name", ["OUTBOX_SOFT_LIMIT", "OUTBOX_HARD_LIMIT"])
def test_a_limit_may_be_left_out(name: str, settings: Any) -> None:
    """None is no limit; another value has to be a count."""
    for value, expected in ((None, []), (10, []), (0, ["E002"]), ("10", ["E002"])):
        settings.FOLIO_EVENTS = {name: value}
        assert ids(checks.check_settings(None)) == expected, value


def test_an_unknown_key_is_named_with_the_one_it_resembles(settings: Any) -> None:
    """What get_settings() raises is shown, not raised."""
    settings.FOLIO_EVENTS = {"RELAY_BATCHSIZE": 1}

    (found,) = checks.check_settings(None)

    assert "Did you mean 'RELAY_BATCH_SIZE'" in found.msg


def test_receivers_with_groups_of_their_own_need_no_setting(
    settings: Any, only_test_receivers: None
) -> None:
    """On Kafka every receiver needs a group that nobody else has."""

    @receiver("inventory.item", name="tests.receiver", group="mod-search")
    def handle(event: Event) -> None: ...

    settings.FOLIO_EVENTS = {"BROKER": kafka()}

    assert ids(checks.check_settings(None)) == []


@pytest.mark.parametrize("name", DATABASES)
def test_a_fault_of_a_database_is_named(name: str, database: Callable[..., None]) -> None:
    """MySQL and others are refused; SQLite has to be able to wait."""
    aliases, expected = DATABASES[name]
    database(aliases)

    assert ids(checks.check_databases(None)) == expected


def test_the_message_about_mysql_names_alias_and_database(
    database: Callable[..., None],
) -> None:
    """An operator sees which of several it is."""
    database({"default": ("postgresql", POSTGRES), "legacy": ("mysql", {})})

    (found,) = checks.check_databases(None)

    assert "'legacy' is Mysql" in found.msg
    assert "PostgreSQL and SQLite" in found.msg


def test_postgresql_with_the_older_driver_is_refused(
    database: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django itself would take psycopg2; the hint is the line to type."""
    database({"default": ("postgresql", POSTGRES)})
    monkeypatch.setattr(checks, "_has_psycopg3", lambda: False)

    (found,) = checks.check_databases(None)

    assert ids([found]) == ["E011"]
    assert found.hint == "pip install 'folio-events[postgres]'"


def test_tables_in_every_tenants_schema_are_refused(settings: Any) -> None:
    """Packages that switch the search path keep them in the shared schema."""
    settings.SHARED_APPS = ["folio_events"]
    settings.TENANT_APPS = ["tests.testapp"]
    assert checks.check_schemas(None) == []

    settings.TENANT_APPS = ["tests.testapp", "folio_events.apps.FolioEventsConfig"]
    (found,) = checks.check_schemas(None)

    assert ids([found]) == ["E012"]
    assert "SHARED_APPS" in str(found.hint)


def test_a_pubsub_dialect_without_tenancy_is_refused(
    monkeypatch: pytest.MonkeyPatch, folio_events: Change
) -> None:
    """Each write would be: mod-pubsub's schema requires a tenant."""
    monkeypatch.setattr(ChapterEvents, "dialect", "pubsub")

    (found,) = checks.check_settings(None)
    assert ids([found]) == ["E013"]
    assert "ChapterEvents" in found.msg

    folio_events(TENANCY="folio")
    assert checks.check_settings(None) == []


def test_what_the_database_itself_does_to_rows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign key that the database follows is named, but not where a trigger sees it."""
    assert checks.check_database_cascades(None) == []

    relation = Chapter._meta.get_field("book").remote_field
    monkeypatch.setattr(models, "DB_CASCADE", object(), raising=False)
    monkeypatch.setattr(relation, "on_delete", models.DB_CASCADE)
    (found,) = checks.check_database_cascades(None)
    assert ids([found]) == ["W013"]
    assert "testapp.Chapter.book is DB_CASCADE" in found.msg

    monkeypatch.setattr(ChapterEvents, "capture", "trigger")
    assert checks.check_database_cascades(None) == []


def test_the_project_of_the_tests_has_no_fault() -> None:
    """All checks are registered with Django, and none finds more than what is to know."""
    found = [m for m in run_checks() if str(m.id).startswith("folio_events.")]

    assert ids(found) == []


def _ids_in_source() -> Counter[str]:
    """Each id where it is given to a message, and how often."""
    found: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg == "id" and str(value).startswith("folio_events."):
                    found[str(value).removeprefix("folio_events.")] += 1
            # The Kafka broker's own: error(message, hint, number).
            last = node.args[-1] if node.args else None
            if getattr(node.func, "id", "") == "error" and isinstance(last, ast.Constant):
                found[f"E{int(str(last.value)):03}"] += 1
    return found


def test_every_id_stands_for_one_fault_and_is_shown_by_a_test() -> None:
    """No id is used for two faults, and each is raised by one of the cases above."""
    used = _ids_in_source()
    shown = {
        one for _given, expected in [*SETTINGS.values(), *DATABASES.values()] for one in expected
    }

    assert {one: count for one, count in used.items() if count > 1} == {}
    elsewhere = {"E011", "E012", "E013", "W013", "W014", "W040"} | {
        f"{kind}03{n}" for kind in "EW" for n in range(3)
    }
    # In test_topic_checks.py and test_topics_of_tenants.py.
    elsewhere |= {*(f"E05{n}" for n in range(7)), "W050", "W051"}
    # In test_drift_checks.py.
    elsewhere |= {"W060", "W061"}
    # In test_schemas.py.
    elsewhere |= {"E070", "E071"}
    assert set(used) == shown | elsewhere
