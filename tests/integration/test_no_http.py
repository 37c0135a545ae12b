"""Delivery without HTTP: what a dispatch opens no connection for."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from folio_events import publish
from folio_events.consumer import Consumer
from folio_events.relay import drain
from tests.note_topic import LOGICAL, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_dispatch_makes_no_http_request(
    monkeypatch: pytest.MonkeyPatch, only_test_receivers: None
) -> None:
    """From the record to the receiver's effect nothing of Python's opens a connection."""
    opened: list[Any] = []

    def connect(_socket: socket.socket, address: Any) -> None:
        opened.append(address)
        raise OSError("no network in this test")

    note_receiver("one")
    note_receiver("two", mode="after_commit")
    for number in range(3):
        publish(LOGICAL, key="a", payload={"number": number})
    assert drain().published == 3
    consumer = Consumer("events")
    monkeypatch.setattr(socket.socket, "connect", connect)
    while consumer.step(timeout=0):
        pass
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("127.0.0.1", 80))
    consumer.close()
    assert (effects("one"), effects("two")) == ([0, 1, 2], [0, 1, 2])
    # That of this test alone, which shows that it would have been seen.
    assert opened == [("127.0.0.1", 80)]
