"""Fixtures of the tests of capture: what was recorded, other declarations, other connections."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from django.db import connections
from django.db.models import Model

from folio_events import ModelEvents, events, hooks
from folio_events.models import OutboxMessage


class Recorded(NamedTuple):
    """A row of the outbox, its body taken apart."""

    topic: str
    type: str
    key: str | None
    old: dict[str, Any] | None
    new: dict[str, Any] | None


@pytest.fixture
def recorded() -> Callable[[], list[Recorded]]:
    """What the outbox holds now, in the order of ids."""

    def read() -> list[Recorded]:
        found = []
        for row in OutboxMessage.objects.order_by("id"):
            body = json.loads(bytes(row.payload or b""))
            found.append(
                Recorded(row.topic, row.event_type, row.key, body.get("old"), body.get("new"))
            )
        return found

    return read


@pytest.fixture
def declare() -> Iterator[Callable[..., None]]:
    """Declare the events of a model, or declare them in another way, for one test."""
    before = dict(events._by_model)

    def register(model: type[Model], **attributes: object) -> None:
        events.unregister(model)
        attributes.setdefault("topic", f"library.{model._meta.model_name}")
        events.register(model)(type(f"{model.__name__}Events", (ModelEvents,), attributes))
        hooks.install()

    yield register
    hooks.uninstall()
    events._by_model.clear()
    events._by_model.update(before)
    events._forget_found()
    hooks.install()


@pytest.fixture
def at_once() -> Callable[..., list[Any]]:
    """Run functions at the same time, each in a thread and on a connection of its own."""

    def closing(function: Callable[[], Any]) -> Any:
        try:
            return function()
        finally:
            connections.close_all()

    def run(functions: Sequence[Callable[[], Any]]) -> list[Any]:
        with ThreadPoolExecutor(len(functions)) as pool:
            futures = [pool.submit(closing, function) for function in functions]
            return [future.result(timeout=120) for future in futures]

    return run
