"""``manage.py check``: each misconfiguration by id, with a hint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, Error, register
from django.db import connections, models
from django.utils.module_loading import import_string

from folio_events import entitlement, topics
from folio_events.brokers import get_broker
from folio_events.conf import DEFAULT_GROUP, KAFKA_BROKER, Settings, get_settings
from folio_events.declarations import events
from folio_events.environment import doubts
from folio_events.exceptions import ConfigurationError
from folio_events.receivers import registry
from folio_events.topics.declared import is_compacted

_POSITIVE = (
    "TOPIC_PARTITIONS",
    "RELAY_BATCH_SIZE",
    "RELAY_DEADLINE",
    "RELAY_POLL_INTERVAL",
    "RELAY_SLOT",
    "CONSUMER_BATCH_SIZE",
    "CONSUMER_POLL_INTERVAL",
    "POLL_FAILURE_SLEEP",
    "CONSECUTIVE_ERRORS_LIMIT",
    "RETRY_ATTEMPTS",
    "RETRY_BACKOFF",
    "RETRY_BATCH_SIZE",
    "REVOKE_WAIT",
    "MAX_HELD",
    "MAX_WAITING",
    "WAKE_UP_INTERVAL",
    "HEARTBEAT_INTERVAL",
    "OVERDUE_AFTER",
    "OUTBOX_RETENTION",
    "INBOX_RETENTION",
    "DELIVERY_RETENTION",
    "BROKER_RETENTION",
    "PURGE_BATCH_SIZE",
    "OUTBOX_SOFT_LIMIT",
    "OUTBOX_HARD_LIMIT",
)
_DEFAULTS = {field.name: field.default for field in fields(Settings)}


@register("folio_events")
def check_settings(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """FOLIO_EVENTS: keys, types, ranges, names."""
    try:
        settings = get_settings()
    except ConfigurationError as error:
        return [
            Error(str(error), hint="Mend FOLIO_EVENTS in the settings.", id="folio_events.E001")
        ]
    found = [
        Error(
            f"FOLIO_EVENTS[{name!r}] must be a {_kind(name)} above 0, not {getattr(settings, name)!r}.",
            hint="Leave it out to have the default.",
            id="folio_events.E002",
        )
        for name in _POSITIVE
        if not _is_positive(name, getattr(settings, name))
    ]
    return [*found, *_check_names(settings), *_check_tenancy(settings), *_check_broker(settings)]


def _kind(name: str) -> str:
    return "number" if isinstance(_DEFAULTS[name], float) else "whole number"


def _is_positive(name: str, value: object) -> bool:
    if value is None:
        return _DEFAULTS[name] is None
    kinds = (int, float) if isinstance(_DEFAULTS[name], float) else (int,)
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def _check_names(settings: Settings) -> Iterable[CheckMessage]:
    try:
        topics.validate_env(settings.ENV)
    except ConfigurationError as error:
        yield Error(
            str(error), hint="It is the first segment of every topic.", id="folio_events.E003"
        )
    if settings.TENANT_COLLECTION is not None:
        try:
            topics.validate_tenant_collection(settings.TENANT_COLLECTION)
        except ConfigurationError as error:
            yield Error(
                str(error),
                hint="A capital letter, then capitals and digits.",
                id="folio_events.E004",
            )


def _check_tenancy(settings: Settings) -> Iterable[CheckMessage]:
    if settings.TENANCY not in (None, "folio"):
        yield Error(
            f"FOLIO_EVENTS['TENANCY'] must be None or 'folio', not {settings.TENANCY!r}.",
            hint="None: no tenants. 'folio': the tenant is a segment of the topic.",
            id="folio_events.E005",
        )
    if settings.TENANCY is None and (settings.TENANT_COLLECTION or settings.DEFAULT_TENANT):
        yield Error(
            "FOLIO_EVENTS names a tenant or a tenant collection, but TENANCY is None.",
            hint="Set TENANCY to 'folio', or remove DEFAULT_TENANT and TENANT_COLLECTION.",
            id="folio_events.E006",
        )
    if settings.TENANCY is None:
        for declaration in events:
            if declaration.dialect == "pubsub":
                yield Error(
                    f"{declaration}: the pubsub dialect needs a tenant, but TENANCY is None.",
                    hint="Set TENANCY to 'folio', or choose another dialect.",
                    id="folio_events.E013",
                )
    if settings.TENANT_RESOLVER is not None:
        try:
            import_string(settings.TENANT_RESOLVER)
        except ImportError as error:
            yield Error(
                f"FOLIO_EVENTS['TENANT_RESOLVER'] cannot be imported: {error}.",
                hint="It is the dotted path of a function without arguments.",
                id="folio_events.E007",
            )
    for name in ("TENANT_API_PERMISSION", "API_PERMISSION"):
        path = getattr(settings, name)
        # The default would load the REST framework where nobody has use for it.
        if path == _DEFAULTS[name]:
            continue
        try:
            import_string(path)
        except ImportError as error:
            yield Error(
                f"FOLIO_EVENTS[{name!r}] cannot be imported: {error}.",
                hint="It is the dotted path of a permission class of Django REST framework.",
                id="folio_events.E060",
            )
    try:
        rules = entitlement.tenant_filter()
        if rules is not None:
            import_string(rules.ENTITLED)
    except (ConfigurationError, ImportError) as error:
        yield Error(
            f"FOLIO_EVENTS['TENANT_FILTER'] cannot be: {str(error).rstrip('.')}.",
            hint="ENTITLED is the dotted path of a function that returns the entitled tenants.",
            id="folio_events.E014",
        )


def _check_broker(settings: Settings) -> Iterable[CheckMessage]:
    try:
        yield from get_broker().check()
    except ConfigurationError as error:
        unnamed = Error(str(error), hint="Mend FOLIO_EVENTS['BROKER'].", id="folio_events.E008")
        yield from error.faults or [unnamed]
        return
    if settings.BROKER.get("BACKEND") == KAFKA_BROKER and settings.GROUP == DEFAULT_GROUP:
        lost = [receiver.name for receiver in registry if receiver.own_group is None]
        if lost:
            yield Error(
                f"FOLIO_EVENTS['GROUP'] is not set, and {len(lost)} receivers have no group of their own.",
                hint="Name this project's consumer group: two projects in one group take each other's events.",
                id="folio_events.E009",
            )


@register("folio_events")
def check_databases(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """The databases of folio_events: PostgreSQL with psycopg 3, or SQLite that can wait."""
    found: list[CheckMessage] = []
    for alias in django_settings.DATABASES:
        connection = connections[alias]
        if connection.vendor not in ("postgresql", "sqlite"):
            found.append(
                Error(
                    f"Database {alias!r} is {connection.display_name}; folio_events works on PostgreSQL and SQLite.",
                    hint="Keep the models that have events, and folio_events' own, on PostgreSQL.",
                    id="folio_events.E010",
                )
            )
        elif connection.vendor == "postgresql" and not _has_psycopg3():
            found.append(
                Error(
                    f"Database {alias!r} is PostgreSQL, but psycopg 3 is not installed.",
                    hint="pip install 'folio-events[postgres]'",
                    id="folio_events.E011",
                )
            )
        elif connection.vendor == "sqlite":
            found += _check_sqlite(alias, connection.settings_dict)
    return found


@register("folio_events")
def check_schemas(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """One outbox for all schemas of a connection: relay and consumer never switch them."""
    if not any(
        str(app).startswith("folio_events") for app in getattr(django_settings, "TENANT_APPS", ())
    ):
        return []
    return [
        Error(
            "TENANT_APPS has folio_events: each tenant's schema would have an outbox that no relay reads.",
            hint="Put it into SHARED_APPS alone. See docs/howto/tenants.md.",
            id="folio_events.E012",
        )
    ]


def _has_psycopg3() -> bool:
    try:
        from django.db.backends.postgresql.psycopg_any import is_psycopg3
    except ImportError:
        return False
    return bool(is_psycopg3)


def _check_sqlite(alias: str, settings: dict[str, Any]) -> list[CheckMessage]:
    options = settings.get("OPTIONS", {})
    if (
        str(options.get("transaction_mode")).upper() == "IMMEDIATE"
        and options.get("timeout", 5) >= 20
    ):
        return []
    return [
        checks.Warning(
            f"Database {alias!r} is SQLite without transaction_mode IMMEDIATE and a timeout of 20 seconds.",
            hint=(
                "Set OPTIONS = {'transaction_mode': 'IMMEDIATE', 'timeout': 20, 'init_command': "
                "'PRAGMA journal_mode=WAL'}, or writers fail with 'database is locked'."
            ),
            id="folio_events.W001",
        )
    ]


_UNSEEN = {
    "_raw_delete()": (
        "folio_events.W010",
        "Delete with QuerySet.delete().",
    ),
    "raw SQL": (
        "folio_events.W011",
        "Write with the ORM, or publish() in the same transaction.",
    ),
    "a historical model": (
        "folio_events.W012",
        "publish() what the migration does to each row, where receivers have to know.",
    ),
}


# With --deploy alone, and imported here: no start should wait while all files are read.
@register("folio_events", deploy=True)
def check_unseen_writes(
    app_configs: Sequence[AppConfig] | None, **_kwargs: Any
) -> list[CheckMessage]:
    """Calls in the project's own code that write registered models and leave no event."""
    from folio_events.unseen import find_unseen_writes, project_files

    found: list[CheckMessage] = []
    for path, line, door, labels in find_unseen_writes(project_files(app_configs)):
        check_id, mend = _UNSEEN[door]
        rows = f"rows of {', '.join(labels)}" if labels else "rows, perhaps of a registered model,"
        found.append(
            checks.Warning(
                f"{_shown(path)}:{line}: {door} writes {rows} and leaves no event.",
                hint=f"{mend} If it is meant so, say '# folio_events: no event' in that line. "
                "See docs/explanation/what-is-seen.md.",
                id=check_id,
            )
        )
    return found


@register("folio_events")
def check_environment(
    app_configs: Sequence[AppConfig] | None, **_kwargs: Any
) -> list[CheckMessage]:
    """FOLIO's variables that are set, and probably meant otherwise than they are taken."""
    return [
        checks.Warning(message, hint=hint, id="folio_events.W040")
        for message, hint in doubts(os.environ)
    ]


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@register("folio_events")
def check_database_cascades(
    app_configs: Sequence[AppConfig] | None, **_kwargs: Any
) -> list[CheckMessage]:
    """Foreign keys of registered models that the database itself clears or follows."""
    # Django has them since 6.1.
    names = ("DB_CASCADE", "DB_SET_NULL", "DB_SET_DEFAULT")
    by_database = {name: getattr(models, name) for name in names if hasattr(models, name)}
    return [
        checks.Warning(
            f"{field} is {name}: what the database does to its rows leaves no event.",
            hint=f"Take {name.removeprefix('DB_')}, or capture by trigger.",
            id="folio_events.W013",
        )
        for declaration in events
        if declaration.capture == "signals"
        for field in declaration.model._meta.local_concrete_fields
        for name, on_delete in by_database.items()
        if field.remote_field is not None and field.remote_field.on_delete is on_delete
    ]


@register("folio_events")
def check_compacted_topics(
    app_configs: Sequence[AppConfig] | None, **_kwargs: Any
) -> list[CheckMessage]:
    """Keys of compacted topics that stand for several rows: of those, the topic keeps one event."""
    found: list[CheckMessage] = []
    for declaration in events:
        key = declaration.key_field
        # A UUID is no other row's, of whatever model.
        several = events.shares_topic(declaration) and key.get_internal_type() != "UUIDField"
        if is_compacted(declaration.topic) and (several or not key.unique):
            found.append(
                checks.Warning(
                    f"{declaration}: topic {declaration.topic!r} is compacted, and several rows may "
                    f"have one {key.name!r}: of their events it keeps the last one only.",
                    hint="Choose a key that is the row's own, or another cleanup policy.",
                    id="folio_events.W014",
                )
            )
    return found
