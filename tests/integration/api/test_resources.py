"""The resources of the REST API: what they show, what they mask, what their actions do."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.utils import timezone

from folio_events import RetryPolicy, receiver
from folio_events.api import replays
from folio_events.models import (
    Attempt,
    Backfill,
    BulkAction,
    ConsumerOffset,
    Delivery,
    Orphan,
    Process,
    Replay,
    WithheldMessage,
)
from tests.integration.api.conftest import Api
from tests.integration.api.rows import (
    TOKEN,
    delivery,
    one_of_each,
    orphan,
    outbox_message,
    publication,
    withheld_message,
)
from tests.note_topic import WIRE, Mood, NoteTopic, note_receiver

pytestmark = pytest.mark.django_db

State = Delivery.State


def ids(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.content
    return [row["id"] for row in answer.json()["results"]]


# Events


def test_an_event_is_found_and_told_as_a_whole(api: Api) -> None:
    """By id, key, tenant and request id; with its row, place, receivers and steps."""
    message = outbox_message(tenant="diku")
    publication(message)
    failed = delivery(event_id=message.event_id)
    for query in (
        {"event_id": message.event_id},
        {"key": "k"},
        {"tenant": "diku"},
        {"request_id": "r1"},
    ):
        (hit,) = api.get("events", **query).json()["results"]
        assert hit["event_id"] == str(message.event_id)

    told = api.get(f"events/{message.event_id}").json()

    assert told["written"]["id"] == message.pk
    assert told["written"]["published"]["topic"] == "folio.library.note"
    (handling,) = [one for one in told["handlings"] if one["receiver"] == failed.receiver]
    assert (handling["result"], handling["delivery"]["id"]) == ("dead", failed.pk)
    assert {"written", "published", "dead"} <= {step["what"] for step in told["timeline"]}
    assert told["payload"]["text"] == '{"new": {"id": 1}}'
    assert api.get(f"events/{uuid.uuid4()}").status_code == 404


# Lists


@pytest.mark.parametrize(
    ("state", "wanted"),
    [("waiting", [0]), ("published", [1]), ("withheld", [2])],
)
def test_outbox_messages_are_listed_by_how_far_they_got(
    api: Api, state: str, wanted: list[int]
) -> None:
    """Each row says so too."""
    made = [outbox_message().pk, publication(outbox_message()).pk, withheld_message().pk]
    made.append(withheld_message(state=WithheldMessage.State.DISCARDED).pk)

    found = api.get("outbox", state=state)

    assert ids(found) == [made[n] for n in wanted]
    assert {row["state"] for row in found.json()["results"]} == {state}
    assert api.get("outbox").json()["results"][0]["state"] == "discarded"


@pytest.mark.parametrize(
    ("make", "path", "other", "query"),
    [
        (outbox_message, "outbox", {"topic": "library.loan"}, {"topic": "library.note"}),
        (outbox_message, "outbox", {"event_type": "CREATE"}, {"event_type": "UPDATE"}),
        (outbox_message, "outbox", {"key": None}, {"key": "k"}),
        (withheld_message, "withheld", {"state": "waiting"}, {"state": "refused"}),
        (withheld_message, "withheld", {"state": "published"}, {"state": "open"}),
        (withheld_message, "withheld", {"tenant": "diku"}, {"topic": "library.note", "limit": 1}),
        (delivery, "deliveries", {"state": State.RESOLVED}, {"state": "open"}),
        (delivery, "deliveries", {"state": State.RETRYING}, {"state": "dead"}),
        (delivery, "deliveries", {"receiver": "library.two"}, {"receiver": "library.one"}),
        (delivery, "deliveries", {"error_class": "a.B"}, {"error_class": "builtins.ValueError"}),
        (delivery, "deliveries", {"fingerprint": "f2"}, {"fingerprint": "f1", "state": "dead"}),
        (delivery, "deliveries", {"replay": 4}, {"replay": 0}),
        (orphan, "orphans", {"state": Orphan.State.DISCARDED}, {"state": "open"}),
        (orphan, "orphans", {"fault": Orphan.Fault.INVALID}, {"fault": "missing"}),
    ],
)
def test_lists_are_filtered(
    api: Api, make: Callable[..., Any], path: str, other: dict[str, Any], query: dict[str, Any]
) -> None:
    """By what stands in the rows."""
    make(**other)
    wanted = make().pk

    assert ids(api.get(path, **query)) == [wanted]


def test_a_delivery_says_what_it_waits_for_and_how_its_runs_went(api: Api) -> None:
    """One behind an older one of its key is held; attempts come with the detail."""
    first = delivery()
    second = delivery(state=State.RETRYING)
    Attempt.objects.create(
        delivery=first, receiver=first.receiver, number=1, started_at=timezone.now(),
        duration=0.5, outcome=Attempt.Outcome.FAILED, error=f"no {TOKEN}",
    )  # fmt: skip

    held, _ = api.get("deliveries").json()["results"]
    detail = api.get(f"deliveries/{first.pk}").json()

    assert (held["id"], held["held_behind"]) == (second.pk, first.pk)
    (run,) = detail["runs"]
    assert (run["outcome"], run["duration"], run["error"]) == ("failed", 0.5, "no ***")


# Masking


@pytest.mark.parametrize(
    ("make", "path"),
    [(outbox_message, "outbox"), (delivery, "deliveries"), (orphan, "orphans")],
)
def test_secret_headers_and_tokens_are_shown_to_nobody(
    api: Api, make: Callable[..., Any], path: str
) -> None:
    """Neither in headers nor in errors, lists or details, not to a superuser."""
    row = make()
    listed, detail = api.get(path), api.get(f"{path}/{row.pk}")

    for answer in (listed, detail, api.get("withheld")):
        assert TOKEN not in answer.content.decode()
        assert "secret" not in answer.content.decode()
    headers = {header["name"]: header["value"] for header in detail.json()["headers"]}
    assert headers["x-okapi-token"] == "***"


def test_private_fields_are_for_those_who_may_see_them(
    api: Api, staff_with: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others see that something was replaced; of bytes that are no text they see none."""
    monkeypatch.setattr("folio_events.api.content.private_members", lambda _topic: {"name"})
    text = outbox_message(payload=b'{"new": {"name": "Ann", "id": 1}}').pk
    odd = orphan(payload=b"\xff\x00").pk
    clerk = staff_with("view_outboxmessage", "view_orphan")

    shown = clerk.get(f"outbox/{text}").json()["payload"]
    assert json.loads(shown["text"]) == {"new": {"name": "***", "id": 1}}
    assert (shown["is_masked"], shown["size"]) == (True, 33)
    for row in (odd, orphan(payload=b"name: Ann").pk):
        hidden = clerk.get(f"orphans/{row}").json()["payload"]
        assert (hidden["text"], hidden["base64"], hidden["is_masked"]) == (None, None, True)

    assert "Ann" in api.get(f"outbox/{text}").json()["payload"]["text"]
    assert base64.b64decode(api.get(f"orphans/{odd}").json()["payload"]["base64"]) == b"\xff\x00"


def test_a_payload_that_is_no_sound_json_is_shown_as_it_is(api: Api) -> None:
    """Numbers that JSON has not, any depth, and none at all."""
    for payload in (b"NaN", b"1e999", b"[" * 50_000, b'{"a": 1, "a": 2}'):
        row = outbox_message(payload=payload)
        assert api.get(f"outbox/{row.pk}").json()["payload"]["text"] == payload.decode()
    assert api.get(f"outbox/{outbox_message(payload=None).pk}").json()["payload"] is None


# Actions


def test_deliveries_are_retried_and_discarded_and_the_log_names_who(
    api: Api, admin_user: User
) -> None:
    """All of them or none; a second time the state says no."""
    one, two, done = delivery(), delivery(key="l"), delivery(state=State.RESOLVED)

    assert api.post("deliveries/retry", ids=[one.pk, two.pk]).json() == {"changed": 2}
    assert api.post("deliveries/retry", ids=[one.pk]).json() == {"changed": 1}
    refused = api.post("deliveries/discard", ids=[one.pk, done.pk], reason="old")
    assert refused.status_code == 409
    assert "resolved" in refused.json()["detail"]
    assert Delivery.objects.filter(state=State.DISCARDED).count() == 0

    assert api.post("deliveries/discard", ids=[one.pk], reason="old").json() == {"changed": 1}
    assert api.post("deliveries/discard", ids=[one.pk], reason="old").status_code == 409
    assert api.post("deliveries/retry", ids=[10**9]).status_code == 404
    one.refresh_from_db()
    assert (one.state, one.reason) == (State.DISCARDED, "old")
    entry = LogEntry.objects.filter(object_id=str(one.pk)).latest("id")
    assert (entry.user_id, entry.change_message) == (admin_user.pk, "discarded: old")


def test_deliveries_of_a_vanished_receiver_are_re_pointed(api: Api) -> None:
    """To one that is registered; another is refused."""
    receiver("library.*", name="library.new")(lambda _event: None)
    row = delivery()

    assert api.post("deliveries/repoint", ids=[row.pk], receiver="nobody").status_code == 409
    assert api.post("deliveries/repoint", ids=[row.pk], receiver="library.new").json() == {
        "changed": 1
    }
    row.refresh_from_db()
    assert row.receiver == "library.new"


def test_the_message_of_a_delivery_is_edited_and_restored(api: Api) -> None:
    """The original is kept; who has seen an older version, or makes it no event, is refused."""
    row = delivery()
    version = api.get(f"deliveries/{row.pk}").json()["version"]
    path = f"deliveries/{row.pk}/edit"

    done = api.post(path, payload='{"new": {"id": 2}}', version=version, reason="typo", retry=True)
    assert done.json() == {"changed": ["payload"]}
    row.refresh_from_db()
    assert (bytes(row.payload or b""), row.state) == (b'{"new": {"id": 2}}', State.RETRYING)
    detail = api.get(f"deliveries/{row.pk}").json()
    assert detail["original_payload"]["text"] == '{"new": {"id": 1}}'

    late = api.post(path, payload="{}", version=version, reason="late")
    assert late.status_code == 409
    broken = api.post(path, payload="[", reason="oops")
    assert (broken.status_code, broken.json()["errors"][0]["where"]) == (400, "body")

    assert api.post(f"deliveries/{row.pk}/restore", reason="back").json() == {"changed": 1}
    assert api.post(f"deliveries/{row.pk}/restore", reason="back").status_code == 409
    row.refresh_from_db()
    assert bytes(row.payload or b"") == b'{"new": {"id": 1}}'


def test_what_is_shown_masked_cannot_be_edited(
    api: Api, staff_with: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask would take the place of what it hides; who sees it may edit it."""
    monkeypatch.setattr("folio_events.api.content.private_members", lambda _topic: {"name"})
    private = delivery(payload=b'{"new": {"name": "Ann"}}')
    token = delivery(payload=json.dumps({"new": {"t": TOKEN}}).encode())
    clerk = staff_with("edit_delivery", "view_delivery")
    body = {"payload": '{"new": {}}', "reason": "r"}

    assert clerk.post(f"deliveries/{private.pk}/edit", **body).status_code == 409
    assert api.post(f"deliveries/{token.pk}/edit", **body).status_code == 409
    assert clerk.post(f"deliveries/{private.pk}/edit", key="l", reason="r").status_code == 200
    assert api.post(f"deliveries/{private.pk}/edit", **body).json() == {"changed": ["payload"]}


def test_who_may_not_retry_cannot_do_so_by_an_edit(staff_with: Callable[..., Api]) -> None:
    """Nothing is changed then."""
    row = delivery()
    clerk = staff_with("edit_delivery", "view_delivery")

    assert (
        clerk.post(f"deliveries/{row.pk}/edit", key="l", reason="r", retry=True).status_code == 403
    )
    row.refresh_from_db()
    assert (row.key, row.state) == ("k", State.DEAD)


def test_withheld_messages_are_released_and_discarded(api: Api) -> None:
    """Only what the broker refused."""
    one, two = withheld_message(), withheld_message()

    assert api.post("withheld/release", ids=[one.pk]).json() == {"changed": 1}
    assert api.post("withheld/release", ids=[one.pk]).status_code == 409
    assert api.post("withheld/discard", ids=[two.pk], reason="r").json() == {"changed": 1}
    assert ids(api.get("withheld", state="waiting")) == [one.pk]
    assert ids(api.get("withheld", state="discarded")) == [two.pk]


def test_orphans_are_assigned_and_discarded(api: Api) -> None:
    """A name that cannot be a tenant's is refused, as is an orphan that cannot be read."""
    readable, odd = orphan(payload=b"{}"), orphan()
    receiver("library.note", name="library.taker")(lambda _event: None)

    assert api.post("orphans/assign", ids=[readable.pk], tenant="di.ku").status_code == 400
    assert api.post("orphans/assign", ids=[readable.pk], tenant="diku").json() == {"changed": 1}
    assert Delivery.objects.get().tenant == "diku"
    assert api.post("orphans/assign", ids=[odd.pk], tenant="diku").status_code == 409
    assert api.post("orphans/discard", ids=[odd.pk], reason="r").json() == {"changed": 1}


def test_dead_letters_are_grouped_and_retried_as_a_group(api: Api) -> None:
    """The same twice is one bulk action; it can be looked at and cancelled once."""
    delivery()
    delivery(key="l")
    delivery(fingerprint="f2", error_class="a.B")
    groups = api.get("dead-letters/groups").json()["results"]
    assert [(group["fingerprint"], group["dead"]) for group in groups] == [("f1", 2), ("f2", 1)]
    assert TOKEN not in json.dumps(groups)

    body = {"action": "retry", "selection": {"fingerprint": "f1"}, "reason": "mended"}
    first, second = api.post("bulk-actions", **body), api.post("bulk-actions", **body)

    assert (first.status_code, first.json()["total"]) == (202, 2)
    assert second.json()["id"] == first.json()["id"]
    path = f"bulk-actions/{first.json()['id']}"
    assert api.get(path).json()["state"] == "running"
    assert api.post(f"{path}/cancel", reason="r").json()["state"] == "cancelled"
    assert api.post(f"{path}/cancel", reason="r").status_code == 409
    assert ids(api.get("bulk-actions")) == [first.json()["id"]]
    wrong = api.post("bulk-actions", **{**body, "action": "release"})
    assert wrong.status_code == 400
    assert "retry or discard" in wrong.json()["detail"]


def test_a_bulk_action_asks_for_the_permission_of_what_it_does(
    staff_with: Callable[..., Api],
) -> None:
    """Who may start some may not discard by them."""
    delivery()
    withheld_message()
    clerk = staff_with("run_bulkaction", "retry_delivery", "view_delivery")
    body = {"selection": {}, "reason": "r"}

    assert clerk.post("bulk-actions", action="discard", **body).status_code == 403
    assert (
        clerk.post("bulk-actions", action="release", subject="withheld", **body).status_code == 403
    )
    assert BulkAction.objects.count() == 0
    assert clerk.post("bulk-actions", action="retry", **body).status_code == 202


def test_refused_messages_are_grouped_by_topic(api: Api) -> None:
    """With what the broker said last, tokens masked."""
    withheld_message()
    withheld_message()

    (group,) = api.get("dead-letters/refused").json()["results"]

    assert (group["topic"], group["refused"]) == ("library.note", 2)
    assert group["error"] == "too large, said ***"


# The rest


def test_a_back_fill_is_listed_and_cancelled(api: Api) -> None:
    """A second cancel changes nothing; one that is not there is not found."""
    now = timezone.now()
    job = Backfill.objects.create(
        id=uuid.uuid4(), model="library.Book", event_type="REINDEX", state="running",
        worker=uuid.uuid4(), created_at=now, updated_at=now,
    )  # fmt: skip

    (row,) = api.get("backfills").json()["results"]
    assert (row["id"], row["state"]) == (str(job.pk), "running")
    path = f"backfills/{job.pk}/cancel"
    assert [api.post(path).json()["changed"] for _ in range(2)] == [1, 0]
    assert api.post(f"backfills/{uuid.uuid4()}/cancel").status_code == 404
    assert api.post("backfills/1/cancel").status_code == 404


def test_the_status_names_the_partitions_that_are_stopped(api: Api, notes: NoteTopic) -> None:
    """With the delivery that their receiver waits for."""
    note_receiver("ledger", Mood(0), order="partition", retry=RetryPolicy(attempts=1))
    notes.put_all("ab")
    notes.consume()
    (one,) = api.get("status").json()["stopped"]
    assert (one["receiver"], one["partition"], one["state"]) == ("ledger", 0, "dead")
    assert one["delivery"] == Delivery.objects.get().pk


def test_status_processes_topics_and_catalogue_answer(api: Api) -> None:
    """With what is wrong, who is alive, what is declared and who sends what."""
    one_of_each()
    now = timezone.now()
    Process.objects.create(
        id=uuid.uuid4(), kind="relay", name="default", host="h", pid=1, state="polling",
        interval=10.0, started_at=now, heartbeat_at=now - timedelta(minutes=5),
    )  # fmt: skip

    status = api.get("status").json()
    assert status["deliveries"] == [{"receiver": "library.one", "state": "dead", "count": 1}]
    assert (status["waiting"], status["withheld"]) == (2, {"refused": 1})
    health = api.get("health").json()
    assert health["state"] == "failing"
    assert "1 delivery is dead" in health["reasons"]
    (process,) = api.get("processes").json()["results"]
    assert (process["host"], process["is_vanished"]) == ("h", True)
    names = {topic["name"] for topic in api.get("topics").json()["results"]}
    assert "library.book" in names
    catalogue = {topic["name"]: topic for topic in api.get("catalogue").json()["topics"]}
    assert catalogue["library.book"]["senders"]
    for path in ("topics/drift", "topics/report", "topics/old", "catalogue?ask_broker=true"):
        assert api.client.get(f"/folio-events/{path}").status_code == 200


# Replays and offsets


@pytest.mark.django_db(transaction=True)
def test_a_replay_is_counted_then_made_and_cancelled(api: Api, notes: NoteTopic) -> None:
    """A dry run writes nothing; a cancel discards what is open, and a second one nothing more."""
    note_receiver("one", mode="manual")
    notes.put_all("aab")
    notes.consume()
    body = {"receivers": ["one"], "topic": "library.note", "reason": "a bug was mended"}

    counted = api.post("replays", **body, dry_run=True).json()
    assert (counted["replay"], counted["deliveries"]) == (None, 3)
    assert counted["counts"] == [{"topic": WIRE, "receiver": "one", "events": 3}]
    assert "again" in counted["warnings"][0]
    assert not Replay.objects.exists()

    made = api.post("replays", **body)
    assert made.status_code == 202, made.content
    number = made.json()["replay"]["id"]
    assert made.json()["replay"]["state"] == "done"
    assert Delivery.objects.filter(replay=number).count() == 3
    assert api.get(f"replays/{number}").json()["created_by"] == "admin"
    assert api.post(f"replays/{number}/resume").status_code == 409
    assert api.post(f"replays/{number}/cancel", reason="r").json() == {"changed": 3}
    assert api.post(f"replays/{number}/cancel", reason="r").json() == {"changed": 0}
    assert api.post("replays/77/cancel", reason="r").status_code == 404


@pytest.mark.django_db(transaction=True)
def test_a_replay_that_takes_long_is_resumed_by_the_next_request(
    api: Api, notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request works for a bounded time; a count that takes longer says what to do."""
    note_receiver("one")
    notes.put_all("aab")
    notes.consume()
    monkeypatch.setattr(replays, "SLICE", 0.0)
    body = {"receivers": ["one"], "topic": "library.note", "reason": "r"}

    refused = api.post("replays", **body, dry_run=True)
    assert refused.status_code == 400
    assert "replay_events --dry-run" in refused.json()["detail"]

    started = api.post("replays", **body).json()["replay"]
    assert started["state"] == "running"
    monkeypatch.setattr(replays, "SLICE", 10.0)
    done = api.post(f"replays/{started['id']}/resume")
    assert (done.status_code, done.json()["state"], done.json()["deliveries"]) == (202, "done", 3)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"receivers": ["one"]}, 400),
        ({"receivers": ["nobody"], "topic": "library.note"}, 409),
        ({"receivers": ["one"], "from_offset": 1}, 400),
        ({"receivers": [], "topic": "library.note"}, 400),
        ({"receivers": ["one"], "topic": "library.note", "dryrun": True}, 400),
        ({"receivers": ["one"], "topic": "library.note", "reason": " "}, 400),
    ],
)
def test_a_replay_that_cannot_be_is_refused(
    api: Api, notes: NoteTopic, body: dict[str, Any], status: int
) -> None:
    """A misspelt dry_run above all."""
    note_receiver("one")

    assert api.post("replays", **{"reason": "r", **body}).status_code == status
    assert not Replay.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_consumers_are_listed_with_their_lag_and_reset(api: Api, notes: NoteTopic) -> None:
    """A dry run says what would move; a group without receivers is not found."""
    note_receiver("one")
    notes.put_all("aab")
    notes.consume()
    notes.put("c")
    notes.restart()
    body = {"group": "events", "end": "earliest", "topic": "library.note", "reason": "r"}

    (place,) = api.get("consumers", topic="library.note").json()["results"]
    assert (place["group"], place["offset"], place["lag"]) == ("events", 3, 1)
    assert api.get("consumers", group="nobody").json()["results"] == []

    moves = api.post("consumers/reset", **body, dry_run=True).json()["moves"]
    assert [(move["old"], move["new"], move["between"]) for move in moves] == [(3, 0, 3)]
    assert ConsumerOffset.objects.get().offset == 3
    assert api.post("consumers/reset", **body).status_code == 200
    assert ConsumerOffset.objects.get().offset == 0

    assert api.post("consumers/reset", **{**body, "group": "nobody"}).status_code == 404
    assert api.post("consumers/reset", **body, offset=1).status_code == 400
    assert api.post("consumers/reset", **{**body, "topic": "library.loan"}).status_code == 409
