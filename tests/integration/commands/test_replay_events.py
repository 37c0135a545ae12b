"""``replay_events`` and ``reset_offsets``: what they take, and what they say."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from folio_events import inbox
from folio_events.inbox import Lane
from folio_events.message import TopicPartition
from folio_events.models import Delivery, Replay
from folio_events.redelivery import retry_due
from tests.note_topic import LOGICAL, WIRE, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


def run(*arguments: str) -> tuple[str, str]:
    """What a command writes to stdout and to stderr."""
    out, err = StringIO(), StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.fixture
def read_notes(notes: NoteTopic) -> NoteTopic:
    """Three notes that two receivers have had; nobody is in the group any more."""
    note_receiver("one")
    note_receiver("calling", mode="after_commit")
    notes.put_all("abc")
    notes.consume()
    notes.restart()
    return notes


def test_a_replay_is_told_with_its_number(read_notes: NoteTopic) -> None:
    """Before it begins, so that it can be resumed, and at its end with its counts."""
    out, err = run("replay_events", "--receiver", "one", "--topic", LOGICAL, "--reason", "a bug")
    retry_due()

    number = Replay.objects.get().pk
    assert f"--resume {number}" in err
    assert f"Replay {number} is done: 3 deliveries of 3 messages" in out
    assert sorted(effects("one")) == [0, 0, 1, 1, 2, 2]
    assert effects("calling") == [0, 1, 2]


def test_a_dry_run_tells_counts_and_warns(read_notes: NoteTopic) -> None:
    """For all receivers, with what it means that one of them works outside transactions."""
    out, err = run("replay_events", "--all-receivers", "--since", "2020-01-01", "--dry-run")

    assert f"{WIRE} one: 3 to run again" in out
    assert "6 to run again of 3 messages, 0 unreadable, from the broker's log" in out
    assert "Warning: calling runs outside a transaction" in err
    assert not Replay.objects.exists()


def test_the_result_is_told_as_json(read_notes: NoteTopic) -> None:
    """Of a dry run and of a replay."""
    chosen = ("--receiver", "one", "--topic", LOGICAL, "--to-offset", "2", "--partition", "0")

    counted = json.loads(run("replay_events", *chosen, "--dry-run", "--json")[0])
    done = json.loads(run("replay_events", *chosen, "--reason", "a bug", "--json")[0])

    assert counted["events"] == [{"topic": WIRE, "receiver": "one", "events": 2}]
    assert (done["state"], done["deliveries"]) == ("done", counted["deliveries"])


def test_ids_come_from_arguments_and_a_file(read_notes: NoteTopic, tmp_path: Path) -> None:
    """Together they are the events that run."""
    ids = [json.loads(record.value or b"")["id"] for record in read_notes.broker.records(WIRE)]
    listed = tmp_path / "ids"
    listed.write_text(f"{ids[2]}\n")

    run(
        "replay_events", "--receiver", "one", "--event-id", ids[0], "--ids-file", str(listed),
        "--reason", "these failed elsewhere",
    )  # fmt: skip

    assert {str(found) for found in Delivery.objects.values_list("event_id", flat=True)} == {
        ids[0],
        ids[2],
    }


def test_a_replay_is_cancelled(read_notes: NoteTopic) -> None:
    """What is open of it is discarded."""
    run("replay_events", "--receiver", "one", "--topic", LOGICAL, "--reason", "a bug")

    out, _ = run("replay_events", "--cancel", str(Replay.objects.get().pk))

    assert "is cancelled; 3 deliveries were discarded" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--receiver", "one"], "Say which events"),
        (["--topic", LOGICAL, "--dry-run"], "Name the receivers"),
        (["--receiver", "one", "--topic", LOGICAL], "Say why"),
        (["--receiver", "one", "--since", "yesterday"], "is no moment"),
        (["--resume", "4711"], "no replay 4711"),
        (["--cancel", "4711"], "no replay 4711"),
    ],
)
def test_what_cannot_be_is_told(read_notes: NoteTopic, arguments: list[str], said: str) -> None:
    """As an error of the command, not as a traceback; nothing is begun."""
    with pytest.raises(CommandError, match=said):
        run("replay_events", *arguments)
    assert not Replay.objects.exists()


def test_a_group_is_reset_after_a_dry_run(read_notes: NoteTopic) -> None:
    """The dry run tells the same lines and moves nothing."""
    chosen = ("reset_offsets", "--group", "events", "--to-offset", "1", "--topic", LOGICAL)
    place, lane = TopicPartition(WIRE, 0), Lane(group="events", database="default")

    planned, _ = run(*chosen, "--dry-run")
    assert inbox.positions(lane, [place])[place].offset == 3
    told = json.loads(run(*chosen, "--reason", "a test", "--json")[0])

    assert f"{WIRE}/0 (database default): 3 -> 1, 2 to read again" in planned
    assert f"{WIRE}/0 (no transaction): 3 -> 1, 2 to read again" in planned
    assert [(move["database"], move["old"], move["new"], move["between"]) for move in told] == [
        ("default", 3, 1, 2),
        ("", 3, 1, 2),
    ]
    assert inbox.positions(lane, [place])[place].offset == 1
    assert planned.endswith("2 positions to move\n")
    settled = run(*chosen, "--dry-run")[0]
    assert f"{WIRE}/0 (database default): stays at 1\n" in settled
    assert settled.endswith("0 positions to move, 2 stay\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read: No such file"), ("118", "'118' is no event id")],
    ids=["missing", "wrong"],
)
def test_a_file_of_ids_that_cannot_be_is_named(
    read_notes: NoteTopic, tmp_path: Path, text: str | None, said: str
) -> None:
    """With what is wrong in it."""
    file = tmp_path / "ids"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CommandError, match=rf"--ids-file .*ids.*{said}"):
        run("replay_events", "--all-receivers", "--ids-file", str(file), "--dry-run")


def test_a_reset_that_is_refused_is_told(read_notes: NoteTopic) -> None:
    """With members, and without a reason."""
    with pytest.raises(CommandError, match="Say why"):
        run("reset_offsets", "--group", "events", "--to-latest")
    read_notes.consume()
    with pytest.raises(CommandError, match="has members"):
        run("reset_offsets", "--group", "events", "--to-latest", "--reason", "a test")
