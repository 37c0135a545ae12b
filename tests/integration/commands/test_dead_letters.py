"""The command ``dead_letters``: what it shows, and what it settles."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from folio_events.models import BulkAction, Delivery, WithheldMessage
from folio_events.operations import bulk_actions
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db


def command(*arguments: object) -> str:
    out = io.StringIO()
    call_command("dead_letters", *map(str, arguments), stdout=out, stderr=io.StringIO())
    return out.getvalue()


def as_json(*arguments: object) -> Any:
    return json.loads(command(*arguments, "--json"))


@pytest.fixture
def letters(notes: NoteTopic) -> list[int]:
    """Ids of three dead letters of the receiver "one"."""
    note_receiver("one", Mood(0, 1, 2, error=ValueError("a bad eyJhbGciOiJI.eyJzdWIiOiJk.c2ln")))
    for number, key in enumerate("abc"):
        notes.put(key, number, headers=[("x-okapi-token", b"secret")])
    notes.consume()
    Delivery.objects.update(state="dead", next_attempt_at=None)
    return list(Delivery.objects.order_by("pk").values_list("pk", flat=True))


def refused() -> WithheldMessage:
    return WithheldMessage.objects.create(
        outbox_message_id=5, topic="library.big", state="refused", error="too large",
        withheld_at=timezone.now(),
    )  # fmt: skip


def states() -> list[str]:
    return list(Delivery.objects.order_by("pk").values_list("state", flat=True))


def test_it_groups_by_cause(letters: list[int]) -> None:
    """Of dead letters and of refused messages, without tokens."""
    refused()
    said = command("groups")
    assert "one: 3 dead, 0 retrying, 0 behind" in said
    assert "library.big: 1 refused by the broker" in said
    assert "eyJ" not in said
    found = as_json("groups", "--receiver", "one")
    assert [group["dead"] for group in found["groups"]] == [3]
    assert command("groups", "--receiver", "two").startswith("library.big")


def test_nothing_says_so() -> None:
    """Where nothing that failed is left."""
    assert command("groups") == "No failed delivery is open.\n"
    assert command("list") == "No dead letters.\n"
    assert as_json("list") == []


def test_it_lists_what_matches(letters: list[int]) -> None:
    """The newest first."""
    assert [row["id"] for row in as_json("list")] == letters[::-1]
    assert [row["id"] for row in as_json("list", "--limit", 1)] == letters[-1:]
    assert as_json("list", "--receiver", "two") == []
    assert command("list").startswith(f"{letters[-1]} one folio.library.note/0@2")


def test_it_shows_one_without_secrets(letters: list[int], tmp_path: Path) -> None:
    """Its message, error, and what waits behind; the exact bytes go to a file."""
    said = as_json("show", letters[0], "--write-payload", tmp_path / "payload")
    assert said["error"] != "" != said["traceback"]
    assert said["payload_form"] == "text"
    text = command("show", letters[0])
    assert "secret" not in text
    assert "eyJ" not in text
    header = "header x-okapi-token: "
    assert text.count(header) == 1
    assert "\noffset: 0\n" in text
    assert "waiting" not in text
    assert "None" not in text
    payload = (tmp_path / "payload").read_bytes()
    assert payload == bytes(Delivery.objects.get(pk=letters[0]).payload or b"")
    with pytest.raises(CommandError, match="no delivery 0"):
        command("show", 0)


def test_ids_are_settled_at_once(letters: list[int]) -> None:
    """All of them or none."""
    with pytest.raises(CommandError, match=r"There is no 0\. Nothing was done"):
        command("retry", letters[0], 0)
    assert command("retry", letters[0], "--dry-run") == "1 to retry; nothing was done.\n"
    assert states() == ["dead"] * 3
    assert command("retry", letters[0]) == "1 due for the next retry pass.\n"
    assert command("discard", letters[1], "--reason", "gone") == "1 discarded.\n"
    assert states() == ["retrying", "discarded", "dead"]
    with pytest.raises(CommandError, match="is discarded; only open ones"):
        command("retry", *letters)


def test_all_that_match_are_settled_by_a_bulk_action(letters: list[int]) -> None:
    """Which says how far it is; the dry run counts."""
    dry = as_json("discard", "--receiver", "one", "--dry-run")
    assert dry == {"action": "discard", "rows": 3, "dry_run": True}
    said = as_json("discard", "--receiver", "one", "--reason", "gone")
    assert (said["rows"], said["total"], said["state"]) == (3, 3, "done")
    assert states() == ["discarded"] * 3


def test_a_bulk_action_can_be_left_to_the_retry_pass(letters: list[int]) -> None:
    """And cancelled."""
    said = command("retry", "--all", "--background", "--rate", 100)
    assert "0 of 3 due for the next retry pass" in said
    assert "the retry passes go on with it" in said
    bulk = BulkAction.objects.get()
    assert (bulk.state, bulk.rate) == ("running", 100)
    assert command("cancel", bulk.pk) == "Cancelled; 0 of 3 were settled before.\n"
    assert bulk_actions.work_off() == 0


def test_everything_is_meant_only_where_it_is_said(letters: list[int]) -> None:
    """And a reason is asked for where something is given up."""
    with pytest.raises(CommandError, match="say --all"):
        command("retry")
    with pytest.raises(CommandError, match="not both"):
        command("retry", letters[0], "--receiver", "one")
    with pytest.raises(CommandError, match="Say why"):
        command("discard", "--all")
    with pytest.raises(CommandError, match="Nothing matches"):
        command("retry", "--receiver", "two")
    assert states() == ["dead"] * 3


def test_refused_messages_are_released_and_discarded() -> None:
    """By id or by topic."""
    row = refused()
    assert command("release", row.pk) == "1 released.\n"
    WithheldMessage.objects.update(state="refused")
    said = command("discard", "--withheld", "--topic", "library.big", "--reason", "too large")
    assert said.startswith("1 of 1 discarded")
    row.refresh_from_db()
    assert (row.state, row.reason) == ("discarded", "too large")


def test_a_message_is_edited_from_a_file(letters: list[int], tmp_path: Path) -> None:
    """Checked first, run again, and restored."""
    row = Delivery.objects.get(pk=letters[0])
    body = json.loads(bytes(row.payload or b""))
    body["data"]["number"] = 9
    file = tmp_path / "payload"
    file.write_text(json.dumps(body))
    edit = ("edit", row.pk, "--payload", file, "--header", "a=1", "--reason", "typing error")
    assert command(*edit, "--dry-run") == "would change: headers, payload\n"
    with pytest.raises(CommandError, match="Say why"):
        command("edit", row.pk, "--payload", file)
    with pytest.raises(CommandError, match="NAME=VALUE"):
        command("edit", row.pk, "--header", "a")
    assert as_json(*edit)["changed"] == ["headers", "payload"]
    assert command("restore", row.pk, "--reason", "no") == "It has its original message again.\n"
    command(*edit, "--retry")
    call_command("retry_deliveries", stdout=io.StringIO())
    assert effects("one") == [9]
    file.write_text("{")
    with pytest.raises(CommandError, match="the body is no JSON"):
        command("edit", letters[1], "--payload", file, "--reason", "x")
