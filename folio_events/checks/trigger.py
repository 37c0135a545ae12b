"""``manage.py check`` on triggers: declarations they cannot serve, and triggers that the database lacks."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004
from django.db import connections, router

from folio_events import triggers
from folio_events.declarations import ModelEvents


@register("folio_events")
def check_triggers(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """Declarations with ``capture = "trigger"``: what a trigger can do, where, with what."""
    declared = triggers.declared()
    if not declared:
        return []
    found: list[CheckMessage] = []
    if not apps.is_installed("pgtrigger"):
        missing = importlib.util.find_spec("pgtrigger") is None
        found.append(
            Error(
                f"{declared[0]} asks for a trigger, but pgtrigger is not in INSTALLED_APPS.",
                hint=("pip install 'folio-events[triggers]', then " if missing else "")
                + "put 'pgtrigger' into INSTALLED_APPS, run makemigrations and migrate.",
                id="folio_events.E030",
            )
        )
    for declaration in declared:
        found += [
            Error(
                f"{declaration} asks for a trigger, which cannot be: {fault}.",
                hint="Name the fields that it can show, or take capture = 'signals'. "
                "See docs/howto/capture-by-trigger.md.",
                id="folio_events.E031",
            )
            for fault in triggers.faults(declaration)
        ]
        alias = router.db_for_write(declaration.model)
        if connections[alias].vendor != "postgresql":
            found.append(
                Error(
                    f"{declaration} asks for a trigger, but database {alias!r} is "
                    f"{connections[alias].display_name}.",
                    hint="Triggers need PostgreSQL; elsewhere take capture = 'signals'.",
                    id="folio_events.E032",
                )
            )
    return found


# Tagged as database: runs with --database, and in migrate, which an error would keep from
# installing what is missing.
@register(Tags.database)
def check_installed(
    app_configs: Sequence[AppConfig] | None,
    databases: Sequence[str] | None = None,
    **_kwargs: Any,
) -> list[CheckMessage]:
    """Triggers of declared models that are missing, changed or disabled in the database."""
    if not apps.is_installed("pgtrigger"):
        return []
    return [
        message
        for alias in databases or ()
        if connections[alias].vendor == "postgresql"
        for declaration in triggers.declared()
        if not triggers.faults(declaration)
        if router.allow_migrate_model(alias, declaration.model)
        for message in _state(declaration, alias)
    ]


_READ = """
SELECT t.tgenabled, obj_description(t.oid, 'pg_trigger'), p.prosrc
FROM pg_class c
LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = %s
LEFT JOIN pg_proc p ON p.oid = t.tgfoid
WHERE c.oid = to_regclass(%s)
"""


def _state(declaration: ModelEvents, alias: str) -> Iterator[CheckMessage]:
    trigger = triggers.trigger_of(declaration)
    model = declaration.model
    compiled = trigger.compile(model)
    connection = connections[alias]
    with connection.cursor() as cursor:
        table = connection.ops.quote_name(model._meta.db_table)
        cursor.execute(_READ, [trigger.get_pgid(model), table])
        row = cursor.fetchone()
    if row is None:  # no table yet
        return
    enabled, digest, source = row
    about = f"of {model._meta.label} in database {alias!r}"
    if enabled is None:
        yield Warning(
            f"The trigger {about} is missing: writes leave no event.",
            hint="Run makemigrations and migrate.",
            id="folio_events.W030",
        )
        return
    if digest != compiled.hash or source.strip() != _source(compiled.install_sql).strip():
        yield Warning(
            f"The trigger {about} is not the one that is declared.",
            hint=f"Run makemigrations and migrate; if there is nothing to migrate, somebody changed "
            f"it by hand: 'manage.py pgtrigger install {trigger.get_uri(model)}'.",
            id="folio_events.W031",
        )
    if enabled not in ("O", "A"):
        yield Warning(
            f"The trigger {about} is disabled: writes leave no event.",
            hint=f"'manage.py pgtrigger enable {trigger.get_uri(model)}'.",
            id="folio_events.W032",
        )


def _source(install: str) -> str:
    """The body of the last function that a statement creates."""
    bodies: list[str] = re.findall(r"\$\$(.*?)\$\$", install, re.DOTALL)
    return bodies[-1]
