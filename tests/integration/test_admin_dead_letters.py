"""The admin's pages of dead letters, bulk actions and edits: what they show, who may do what."""

from __future__ import annotations

import json
import re
import uuid
from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from folio_events.encoding import dump
from folio_events.fingerprints import fingerprint
from folio_events.message import encode_headers
from folio_events.models import BulkAction, Delivery, WithheldMessage
from folio_events.operations import bulk_actions, editing
from folio_events.operations.dead_letters import Selection

pytestmark = pytest.mark.django_db

HOME = reverse("admin:folio_events_deadletter_changelist")
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkaWt1In0.c2lnbmF0dXJl"
HOSTILE = "<script>alert('x')</script>\" onmouseover=\"alert(1)"
BODY = {"id": "17", "type": "note", "timestamp": 1_700_000_000_000, "data": {"number": 1}}


def letter(error: str = "no", **values: Any) -> Delivery:
    """A dead letter of a receiver that is no more."""
    key = values.setdefault("key", "a")
    values.setdefault("receiver", "tests.sync")
    values.setdefault("error_class", "builtins.ValueError")
    now = timezone.now()
    return Delivery.objects.create(
        **{
            "state": "dead",
            "group": "tests",
            "event_id": uuid.uuid4(),
            "order": "key",
            "attempts": 3,
            "topic": "folio.library.note",
            "partition": 2,
            "offset": 77,
            "raw_key": key.encode(),
            "headers": encode_headers([("x-okapi-token", b"secret"), ("a", b"1")]),
            "payload": dump(BODY),
            "error": error,
            "fingerprint": fingerprint(values["receiver"], values["error_class"], error, ""),
            "published_at": now,
            "created_at": now,
            "last_attempt_at": now,
            **values,
        }
    )


def refused(topic: str = "library.big") -> WithheldMessage:
    return WithheldMessage.objects.create(
        outbox_message_id=5, topic=topic, state="refused", error="too large",
        withheld_at=timezone.now(),
    )  # fmt: skip


def client_with(*permissions: str) -> Client:
    """A browser of a member of staff who has these permissions of the app; "*" means all."""
    user = User.objects.create_user(f"staff-{uuid.uuid4().hex[:8]}", is_staff=True)
    known = Permission.objects.filter(content_type__app_label="folio_events")
    user.user_permissions.set(
        known if "*" in permissions else known.filter(codename__in=permissions)
    )
    client = Client(enforce_csrf_checks=False)
    client.force_login(user)
    return client


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def get(client: Client, address: str, **query: Any) -> str:
    response = client.get(address, query)
    assert response.status_code == 200
    return response.content.decode()


def start_page(action: str) -> str:
    return reverse("admin:folio_events_bulkaction_start", args=[action])


def edit_page(row: Delivery) -> str:
    return reverse("admin:folio_events_delivery_edit", args=[row.pk])


def fields(page: str) -> dict[str, str]:
    """What the edit page's form would send."""
    found = dict(re.findall(r'<textarea name="(\w+)"[^>]*>\n?(.*?)</textarea>', page, re.DOTALL))
    found |= dict(re.findall(r'<input type="hidden" name="(version)" value="(\w+)"', page))
    for name, options in re.findall(r'<select name="(\w+)"[^>]*>(.*?)</select>', page, re.DOTALL):
        chosen = re.search(r'value="(\w+)" selected', options)
        assert chosen is not None
        found[name] = chosen[1]
    return {name: unescape(value) for name, value in found.items()}


def test_causes_are_listed_with_what_waits_behind_them(root: Client) -> None:
    """And lead to their deliveries, and to the newest of them."""
    rows = [letter(f"no loan {number}", key=str(number)) for number in range(1200)]
    letter(fingerprint="", state="retrying", key="0", attempts=0, error_class="")
    letter("other", receiver="tests.other")
    page = get(root, HOME)
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))
    assert "1,201 dead letters" in text
    assert re.search(r"tests\.sync vanished ValueError no loan 1199 1,200 0 1 ", text)
    assert f"/delivery/{rows[-1].pk}/change/" in page
    listed = get(
        root, reverse("admin:folio_events_delivery_changelist"), fingerprint=rows[0].fingerprint
    )
    assert "tests.sync" in listed


def test_more_causes_cost_no_more_queries(root: Client) -> None:
    """Nor do more deliveries."""
    letter("one")
    get(root, HOME)
    counts = []
    for more in (1, 30):
        for number in range(more):
            letter(f"cause {'abcdefghij'[number % 10] * (number + 2)}", key=f"{more}-{number}")
        with CaptureQueriesContext(connection) as captured:
            get(root, HOME)
        counts.append(len(captured))
    assert counts[0] == counts[1]


def test_the_filter_narrows_causes_and_actions(root: Client) -> None:
    """What is then started has the filter's criteria."""
    letter("one", tenant="diku")
    letter("two", receiver="tests.other", tenant="college")
    page = get(root, HOME, tenant="diku")
    assert "tests.sync" in page
    assert "tests.other" not in page
    assert f"{start_page('retry')}?subject=delivery&amp;tenant=diku" in page
    assert "Enter a valid date/time" in get(root, HOME, since="yesterday")


def test_hostile_text_is_shown_as_text_and_tokens_not_at_all(root: Client) -> None:
    """In the list of causes, on the page that edits and in the difference."""
    row = letter(
        f"{TOKEN} {HOSTILE}", receiver=HOSTILE, tenant=HOSTILE, key=HOSTILE,
        error_class=HOSTILE, topic=f"folio.{HOSTILE}", payload=dump({"a": HOSTILE}),
    )  # fmt: skip
    pages = [
        get(root, HOME),
        get(root, edit_page(row)),
        get(root, start_page("retry"), tenant=HOSTILE),
    ]
    editing.edit(
        row.pk,
        editing.Content(key=b"b", headers=[("a", HOSTILE.encode())], payload=None),
        reason=HOSTILE,
    )
    pages.append(get(root, reverse("admin:folio_events_delivery_change", args=[row.pk])))
    for page in pages:
        assert "<script>alert" not in page
        assert '" onmouseover="alert' not in page
        assert TOKEN not in page
        assert "secret" not in page
    assert 'class="folio-events-removed"' in pages[-1]


def test_all_of_a_cause_are_retried_with_a_reason(root: Client) -> None:
    """The page asks, starts, and shows how far it is and what became of them."""
    row, other = letter("one"), letter("two")
    page = get(root, start_page("retry"), fingerprint=row.fingerprint)
    assert "1 dead letter matches." in page
    answer = root.post(start_page("retry"), {"subject": "delivery", "fingerprint": row.fingerprint})
    assert "This field is required" in answer.content.decode()
    assert not BulkAction.objects.exists()
    answer = root.post(
        start_page("retry"),
        {"subject": "delivery", "fingerprint": row.fingerprint, "reason": "mended", "rate": "50"},
    )
    bulk = BulkAction.objects.get()
    assert (bulk.criteria, bulk.reason, bulk.rate, bulk.created_by) == (
        {"fingerprint": row.fingerprint}, "mended", 50.0, "root",
    )  # fmt: skip
    address = reverse("admin:folio_events_bulkaction_change", args=[bulk.pk])
    assert answer["Location"] == address
    page = get(root, address)
    assert "0 of 1" in page
    assert 'http-equiv="refresh"' in page
    assert "0 of 1" in get(root, HOME)
    bulk_actions.work_off()
    bulk_actions.work_off()
    page = get(root, address)
    assert 'http-equiv="refresh"' not in page
    assert f"bulk_action={bulk.pk}&amp;state__exact=retrying" in page
    other.refresh_from_db()
    assert other.state == "dead"
    entry = LogEntry.objects.get(content_type__model="delivery")
    assert entry.get_change_message() == f"retried by bulk action {bulk.pk}: mended"


def test_refused_messages_are_shown_and_released(root: Client) -> None:
    """By topic, beside the dead letters."""
    row = refused()
    page = get(root, HOME)
    assert "library.big" in page
    assert f"{start_page('release')}?subject=withheld&amp;topic=library.big" in page
    root.post(
        start_page("release"), {"subject": "withheld", "topic": "library.big", "reason": "larger"}
    )
    bulk_actions.work_off()
    row.refresh_from_db()
    assert row.state == "waiting"


def test_a_running_action_is_cancelled(root: Client) -> None:
    """By the button of its page; only once."""
    letter()
    bulk = bulk_actions.start(bulk_actions.Action.RETRY, Selection(), reason="x")
    cancel = reverse("admin:folio_events_bulkaction_cancel", args=[bulk.pk])
    assert cancel in get(root, reverse("admin:folio_events_bulkaction_change", args=[bulk.pk]))
    assert root.get(cancel).status_code == 405
    assert "It is cancelled." in root.post(cancel, follow=True).content.decode()
    assert "is cancelled already" in root.post(cancel, follow=True).content.decode()


def test_the_page_that_asks_counts_in_words(root: Client) -> None:
    """One or several, dead letters or withheld messages."""
    letter("one")
    letter("two", key="b")
    refused()
    assert "2 dead letters match." in get(root, start_page("retry"))
    page = get(root, start_page("release"), subject="withheld")
    assert "1 withheld message matches." in page


def test_the_home_of_the_admin_leads_to_them_and_counts_them(root: Client) -> None:
    """In the list of models there, and beside every page; retrying ones do not count."""
    link = f'<a href="{HOME}"[^>]*>(.*?)</a>'
    home = reverse("admin:index")
    assert set(re.findall(link, get(root, home))) == {"Dead letters", "View"}
    letter("one")
    letter("two", state="retrying")
    for address in (home, reverse("admin:auth_user_changelist"), HOME):
        assert "Dead letters (1)" in re.findall(link, get(root, address))
    letter("three", key="b")
    assert "Dead letters (2)" in get(root, home)


def test_the_name_counts_no_further_than_a_thousand(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes beyond is a plus."""
    monkeypatch.setattr("folio_events.admin.dead_letters.MOST_IN_NAME", 1)
    letter("one")
    letter("two", key="b")
    assert "Dead letters (1+)" in get(root, reverse("admin:index"))


def test_who_may_not_see_them_finds_no_entry_and_asks_nothing() -> None:
    """Another permission of the app is not enough."""
    letter("one")
    with CaptureQueriesContext(connection) as queries:
        page = get(client_with("view_orphan"), reverse("admin:index"))
    assert HOME not in page
    assert "folio_events_delivery" not in str([q["sql"] for q in queries])
    assert HOME in get(client_with("view_delivery"), reverse("admin:index"))


def test_pages_of_others_are_there_when_the_number_is_not(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that fails costs the number only."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise OperationalError("canceling statement due to statement timeout")

    monkeypatch.setattr(Selection, "dead", fail)
    page = get(root, reverse("admin:index"))
    assert re.search(rf'href="{HOME}"[^>]*>Dead letters<', page)


def test_the_number_is_none_of_the_migrations(root: Client) -> None:
    """With dead letters there is no change of the models to be written."""
    letter("one")
    get(root, reverse("admin:index"))
    call_command("makemigrations", "folio_events", check=True, dry_run=True, verbosity=0)


_START = ("run_bulkaction", "view_delivery", "retry_delivery")


def test_who_looks_needs_the_permission_to_view() -> None:
    """Refused messages have one of their own."""
    letter("one")
    refused()
    assert client_with("view_withheldmessage").get(HOME).status_code == 403
    page = get(client_with("view_delivery"), HOME)
    assert "tests.sync" in page
    assert "library.big" not in page
    for word in ("Retry", "Discard", "Release"):
        assert f">{word}" not in page


@pytest.mark.parametrize("missing", _START)
def test_to_start_needs_every_one_of_the_permissions(missing: str) -> None:
    """Without one of them nothing is offered, nor done; to cancel needs the first alone."""
    letter("one")
    data = {"subject": "delivery", "reason": "x"}
    client = client_with(*({*_START} - {missing}))
    assert client.get(start_page("retry")).status_code == 403
    assert client.post(start_page("retry"), data).status_code == 403
    assert not BulkAction.objects.exists()
    assert client_with(*_START).post(start_page("retry"), data).status_code == 302
    bulk = BulkAction.objects.get()
    cancel = reverse("admin:folio_events_bulkaction_cancel", args=[bulk.pk])
    if missing == "run_bulkaction":
        assert client.post(cancel).status_code == 403
    assert client_with(*_START).post(cancel).status_code == 302


@pytest.mark.parametrize(
    ("action", "data"),
    [("release", {}), ("retry", {"subject": "withheld"}), ("burn", {}), ("retry", {"since": "x"}),
     ("retry", {"subject": "nobody"})],
)  # fmt: skip
def test_an_address_that_makes_no_sense_is_not_found(
    root: Client, action: str, data: dict[str, str]
) -> None:
    """No such action on such rows."""
    assert root.get(start_page(action), data).status_code == 404


def test_without_a_token_of_the_form_nothing_is_done() -> None:
    """Another site cannot have a browser act."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))
    row = letter()
    for address in (start_page("retry"), edit_page(row)):
        assert client.post(address, {"reason": "x"}).status_code == 403


def test_a_message_is_edited_and_retried(root: Client) -> None:
    """The change shows on its page, and who made it in the log; masked headers stay."""
    row = letter()
    sent = fields(get(root, edit_page(row)))
    assert json.loads(sent["payload"]) == BODY
    assert "secret" not in sent["headers"]
    sent["payload"] = sent["payload"].replace('"number": 1', '"number": 2').replace("\n", "\r\n")
    sent["headers"] = sent["headers"].replace('["a", "1"]', '["a", {"hex": "ff"}]')
    answer = root.post(
        edit_page(row), {**sent, "reason": "typing error", "retry": "1"}, follow=True
    )
    page = unescape(answer.content.decode())
    assert "Changed: headers, payload. It runs at the next retry pass." in page
    assert '-    "number": 1' in page
    assert '+    "number": 2' in page
    row.refresh_from_db()
    assert row.state == "retrying"
    content = editing.content_of(row)
    assert content.headers == [("x-okapi-token", b"secret"), ("a", b"\xff")]
    assert b"\r" not in (content.payload or b"")
    said = [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")]
    assert said == ["edited headers, payload: typing error", "retried: typing error"]


def test_to_save_without_a_change_changes_no_byte(root: Client) -> None:
    """The page indents JSON, which alone is no edit."""
    row = letter()
    answer = root.post(
        edit_page(row), {**fields(get(root, edit_page(row))), "reason": "x"}, follow=True
    )
    assert "Nothing was changed." in answer.content.decode()
    before = bytes(row.payload or b"")
    row.refresh_from_db()
    assert (bytes(row.payload or b""), row.edited_at) == (before, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"payload": "{"}, "Not saved, this is no event: the body is no JSON."),
        ({"payload_form": "hex"}, "non-hexadecimal"),
        ({"headers": "{}{"}, "Write a JSON list of pairs"),
        ({"headers": '[["a"]]'}, "is no pair of name and value"),
        ({"headers": "7"}, "Write a JSON list of pairs"),
        ({"reason": ""}, "This field is required"),
        (
            {"payload": '{"id": "18", "type": "note", "timestamp": 1, "data": {}}'},
            "id cannot be changed",
        ),
        ({"version": "old"}, "edited by somebody else in the meantime"),
    ],
)
def test_what_cannot_be_saved_says_why(root: Client, change: dict[str, str], said: str) -> None:
    """And keeps what was typed."""
    row = letter()
    sent = {**fields(get(root, edit_page(row))), "key": "new key", "reason": "x", **change}
    page = unescape(root.post(edit_page(row), sent).content.decode())
    assert said in page
    assert "new key" in page
    row.refresh_from_db()
    assert row.edited_at is None


def test_the_original_is_restored(root: Client) -> None:
    """With a reason, from the page that edits."""
    row = letter()
    sent = fields(get(root, edit_page(row)))
    root.post(edit_page(row), {**sent, "key": "b", "reason": "x"})
    page = get(root, edit_page(row))
    assert 'name="restore"' in page
    sent = fields(page)
    assert (
        "This field is required"
        in root.post(edit_page(row), {**sent, "restore": "1"}).content.decode()
    )
    root.post(edit_page(row), {**sent, "reason": "no", "restore": "1"})
    row.refresh_from_db()
    assert (row.key, row.edited_at) == ("a", None)


def test_what_a_user_may_not_see_he_does_not_edit(root: Client) -> None:
    """Nor what no page shows: the rest of the message can be changed."""
    row = letter(payload=dump({**BODY, "data": {"token": TOKEN}}))
    page = get(root, edit_page(row))
    assert TOKEN not in page
    assert 'name="payload"' not in page
    root.post(edit_page(row), {**fields(page), "key": "b", "reason": "x"})
    before = bytes(row.payload or b"")
    row.refresh_from_db()
    assert (row.key, bytes(row.payload or b"")) == ("b", before)


def test_to_edit_needs_its_own_permission() -> None:
    """And to retry with it another."""
    row = letter()
    assert client_with("view_delivery", "retry_delivery").get(edit_page(row)).status_code == 403
    assert client_with("edit_delivery").get(edit_page(row)).status_code == 403
    change = reverse("admin:folio_events_delivery_change", args=[row.pk])
    assert "edit/" not in get(client_with("view_delivery"), change)
    client = client_with("view_delivery", "edit_delivery")
    assert "../edit/" in get(client, change)
    page = get(client, edit_page(row))
    assert 'name="retry"' not in page
    client.post(edit_page(row), {**fields(page), "key": "b", "reason": "x", "retry": "1"})
    row.refresh_from_db()
    assert (row.key, row.state) == ("b", "dead")


def test_a_settled_delivery_has_no_form(root: Client) -> None:
    """And one that is not there is not found."""
    row = letter(state="resolved")
    assert "nothing of it can be changed" in get(root, edit_page(row))
    row.pk = 0
    assert root.get(edit_page(row)).status_code == 404


def test_no_page_needs_inline_scripts_or_styles(root: Client) -> None:
    """A strict content security policy breaks none."""
    row = letter()
    bulk = bulk_actions.start(bulk_actions.Action.RETRY, Selection(), reason="x")
    addresses = (
        HOME,
        start_page("retry"),
        edit_page(row),
        reverse("admin:folio_events_bulkaction_changelist"),
        reverse("admin:folio_events_bulkaction_change", args=[bulk.pk]),
    )
    for address in addresses:
        page = get(root, address)
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>\s*\S", page)
        assert not re.search(r'<[^>]+\s(?:style|on\w+)="', page)
