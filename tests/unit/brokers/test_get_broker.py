"""Which broker serves: the setting BROKER."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from folio_events.brokers import get_broker
from folio_events.brokers.database import DatabaseBroker
from folio_events.brokers.memory import MemoryBroker
from folio_events.exceptions import ConfigurationError

Change = Callable[..., None]
MEMORY = "folio_events.brokers.memory.MemoryBroker"


def test_the_database_broker_is_the_default(settings: Any) -> None:
    """A project that says nothing needs no other process."""
    settings.FOLIO_EVENTS = {}

    broker = get_broker()

    assert isinstance(broker, DatabaseBroker)
    assert broker.using == "default"


def test_options_reach_the_broker(folio_events: Change) -> None:
    """The backend is made with what OPTIONS holds."""
    folio_events(BROKER={"BACKEND": MEMORY, "OPTIONS": {"max_message_bytes": 77}})

    assert get_broker().max_message_bytes("t") == 77


def test_there_is_one_broker_until_the_settings_change(folio_events: Change) -> None:
    """Its producer is kept between relay runs; another setting is another broker."""
    folio_events(BROKER={"BACKEND": MEMORY})
    first = get_broker()
    assert isinstance(first, MemoryBroker)
    assert get_broker() is first

    folio_events(BROKER={"BACKEND": MEMORY})

    assert get_broker() is not first


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({}, "must be {'BACKEND'"),
        ({"OPTIONS": {}}, "must be {'BACKEND'"),
        (MEMORY, "must be {'BACKEND'"),
        (None, "must be {'BACKEND'"),
        ({"BACKEND": MEMORY, "OPTION": {}, "HOST": "x"}, "without HOST, OPTION"),
        ({"BACKEND": "folio_events.brokers.rabbit.Rabbit"}, "Rabbit' cannot be imported"),
        ({"BACKEND": "folio_events.brokers.memory.Rabbit"}, "Rabbit' cannot be imported"),
    ],
    ids=["empty", "no backend", "text", "None", "other keys", "no module", "no class"],
)
def test_a_broker_that_cannot_be_is_refused(
    folio_events: Change, setting: object, reason: str
) -> None:
    """The error shows the form that is wanted, or what is wrong with what is there."""
    folio_events(BROKER=setting)

    with pytest.raises(ConfigurationError, match=reason):
        get_broker()
