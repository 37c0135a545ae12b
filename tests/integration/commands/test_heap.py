"""Daemons keep Python's garbage collector off what they have loaded."""

from __future__ import annotations

import gc

import pytest
from django.core.management import call_command

from tests.note_topic import note_receiver

_DAEMONS = {"relay_events": "serve", "consume_events": "Command._run"}


@pytest.mark.django_db
@pytest.mark.parametrize(("command", "work"), _DAEMONS.items(), ids=_DAEMONS)
def test_a_daemon_has_its_heap_frozen(
    monkeypatch: pytest.MonkeyPatch, command: str, work: str
) -> None:
    """Each batch makes thousands of objects, at which the collector would walk all of Django."""
    note_receiver("one")
    frozen: list[int] = []
    monkeypatch.setattr(
        f"folio_events.management.commands.{command}.{work}",
        lambda *_args, **_options: frozen.append(gc.get_freeze_count()),
    )
    try:
        call_command(command)
    finally:
        gc.unfreeze()
    assert frozen[0] > 10_000
