"""After a restore: what the outbox has lost, its ids, and partitions that no database knows."""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.utils import timezone

from folio_events import publish
from folio_events.brokers.memory import MemoryBroker
from folio_events.message import Headers, Message
from folio_events.models import ConsumerOffset, InboxEntry, OutboxMessage, Publication
from folio_events.operations.ghosts import find_ghosts, skip_ids
from folio_events.operations.offsets import Target, reset_offsets
from folio_events.relay import drain
from tests.note_topic import WIRE, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)
TOPIC = "library.book"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def published(*keys: str) -> list[OutboxMessage]:
    for key in keys:
        publish(TOPIC, key=key, payload={"old": None, "new": {"id": key}}, type="CREATE")
    drain()
    return list(OutboxMessage.objects.order_by("-id")[: len(keys)])[::-1]


def lose(rows: list[OutboxMessage]) -> None:
    """Take rows back, as a restore does."""
    ids = [row.id for row in rows]
    Publication.objects.filter(outbox_message__in=ids).delete()
    OutboxMessage.objects.filter(pk__in=ids).delete()


def test_what_the_outbox_has_lost_is_listed(memory_broker: MemoryBroker) -> None:
    """Only this project's own events of the time; others and what is no event are passed over."""
    published("kept")
    lost = published("1", "2")
    topic = Publication.objects.values_list("topic", flat=True)[0]
    lose(lost)
    foreign: Headers = [("ce_source", b"/other"), ("ce_sequence", b"%019d" % 99)]
    body = json.dumps({"id": str(lost[0].event_id), "type": "CREATE", "new": {}}).encode()
    for value, headers in ((body, foreign), (b"\xff", []), (body, [])):
        memory_broker.publish([Message(topic, b"k", value, headers)], timeout=1)

    found = list(find_ghosts(LONG_AGO))

    assert {(ghost.event_id, ghost.key, ghost.sequence, ghost.type) for ghost in found} == {
        (row.event_id, row.key, row.id, "CREATE") for row in lost
    }
    assert list(find_ghosts(timezone.now() + timedelta(days=1))) == []


@pytest.mark.parametrize(
    "sequence", ["x", "-1", "\u0661", "9" * 5000, str(2**63)], ids=lambda value: value[:20]
)
def test_what_no_outbox_has_drawn_is_passed_over(
    memory_broker: MemoryBroker, sequence: str
) -> None:
    """A sequence that somebody has made up ends no search, and moves no ids."""
    lost = published("1")
    topic = Publication.objects.values_list("topic", flat=True)[0]
    lose(lost)
    body = json.dumps({"id": str(uuid.uuid4()), "type": "CREATE", "new": {}}).encode()
    headers: Headers = [("ce_source", b"/events"), ("ce_sequence", sequence.encode())]
    memory_broker.publish([Message(topic, b"k", body, headers)], timeout=1)

    assert [ghost.sequence for ghost in find_ghosts(LONG_AGO)] == [lost[0].id]


def test_ids_go_on_behind_those_of_ghosts(memory_broker: MemoryBroker) -> None:
    """New messages have higher sequences than lost ones, and the relay publishes them."""
    lost = published("1", "2")
    lose(lost)
    ghosts = list(find_ghosts(LONG_AGO))
    assert skip_ids([]) is None

    high = lost[1].id + 5000
    assert skip_ids([replace(ghost, sequence=high) for ghost in ghosts]) == high
    assert skip_ids(ghosts) == lost[1].id

    (row,) = published("3")
    assert row.id == high + 1, "never lower than before"
    assert Publication.objects.filter(outbox_message=row.id).exists()


def test_the_command_lists_them_for_people_and_machines(memory_broker: MemoryBroker) -> None:
    """A line for each, in the order in which they were recorded, and where the outbox goes on."""
    lost = published("1", "2")
    lose(lost)
    out, machine = StringIO(), StringIO()

    call_command("ghost_events", since=LONG_AGO, skip_ids=True, stdout=out)
    call_command("ghost_events", since=LONG_AGO, json=True, stdout=machine)

    lines = out.getvalue().splitlines()
    assert [line.partition(" sequence=")[2] for line in lines[:2]] == [
        f"{row.id} event={row.event_id}" for row in lost
    ]
    assert lines[2:] == [
        "2 events are on the broker and not in the outbox",
        f"The outbox goes on behind id {lost[1].id}.",
    ]
    said = json.loads(machine.getvalue())
    assert {one["event_id"] for one in said["ghosts"]} == {str(row.event_id) for row in lost}
    assert said["passed_over"] is None


def test_a_partition_that_the_database_has_forgotten_is_stopped(
    notes: NoteTopic, caplog: pytest.LogCaptureFixture
) -> None:
    """The group's own commit on the broker is not taken for the truth: effects are missing."""
    note_receiver("one")
    notes.put_all("abc")
    notes.consume()
    notes.restart()
    ConsumerOffset.objects.all().delete()
    notes.put("d", 3)

    with caplog.at_level(logging.ERROR, logger="folio_events.consumer"):
        assert notes.consume() == 0

    assert f"stopped: group=events topic={WIRE} partition=0 offset=3" in caplog.text
    assert "no database knows of it" in caplog.text


def test_partitions_without_an_offset_are_reset_alone(notes: NoteTopic) -> None:
    """What was undone takes effect again, what the inbox knows does not; others stay."""
    memos = NoteTopic(notes.broker, wire="folio.library.memo")
    note_receiver("one", topic="library.*")
    undone = notes.put_all("abc")
    memos.put("k", 7)
    notes.consume()
    notes.restart()
    ConsumerOffset.objects.filter(topic=WIRE).delete()
    InboxEntry.objects.filter(event_id=undone[0]).delete()
    before = ConsumerOffset.objects.get()

    moves = reset_offsets("events", Target(end="earliest"), unknown=True, reason="a restore")

    assert [(move.place.topic, move.old, move.new) for move in moves] == [(WIRE, None, 0)]
    assert ConsumerOffset.objects.get(pk=before.pk).offset == before.offset == 1
    assert notes.consume() == 3
    assert len(effects("one")) == 5
