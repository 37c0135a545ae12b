"""``manage.py check`` on the schemas that receivers expect."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, register

from folio_events import schemas
from folio_events.exceptions import ConfigurationError
from folio_events.receivers import Receiver, registry


@register("folio_events")
def check_schemas_of_receivers(
    app_configs: Sequence[AppConfig] | None, **_kwargs: Any
) -> list[CheckMessage]:
    """Receivers with ``schema=``: whether it can be read, and is one."""
    wanted = [receiver for receiver in registry if receiver.schema is not None]
    if wanted and importlib.util.find_spec("jsonschema") is None:
        return [
            Error(
                f"Receiver {receiver.name!r} has a schema, but jsonschema is not installed.",
                hint="pip install 'folio-events[schemas]'",
                id="folio_events.E070",
            )
            for receiver in wanted
        ]
    return [
        Error(
            fault,
            hint="JSON Schema, draft 2020-12 where $schema names no other. A path goes from the "
            "directory of the receiver's module.",
            id="folio_events.E071",
        )
        for fault in map(_fault, wanted)
        if fault
    ]


def _fault(receiver: Receiver) -> str:
    try:
        schemas.schema_of(receiver)
    except ConfigurationError as error:
        return str(error)
    return ""
