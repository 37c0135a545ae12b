"""What failed, held against the schema that its receiver expects: by page, command and API."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from folio_events import Event, receiver
from folio_events.encoding import dump
from folio_events.message import encode_headers
from folio_events.models import Delivery
from folio_events.operations import editing
from folio_events.operations.editing import Content
from tests.note_topic import Mood, NoteTopic, note_receiver
from tests.testapp.models import Book

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db

NOTE = {
    "type": "object",
    "properties": {"number": {"type": "integer"}, "text": {"type": "string", "maxLength": 5}},
    "required": ["number"],
    "additionalProperties": False,
}
HOSTILE = '<img src=x onerror="alert(1)">'
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkaWt1In0.c2lnbmF0dXJl"
MISFIT = {"number": "four", "text": "secret words", HOSTILE: 1, TOKEN: 1}
TOLD = [
    ("/number", "wrong type: expected integer, found string"),
    ("/text", "wrong form: does not keep maxLength 5"),
    (f"/{HOSTILE}", "not expected"),
    ("/***", "not expected"),
]


@pytest.fixture(autouse=True)
def _expecting(request: pytest.FixtureRequest) -> None:
    """The receiver "expecting" says what notes should be."""

    @receiver("library.note", name="expecting", schema=NOTE)
    def expecting(event: Event) -> None: ...


def letter(data: Any = MISFIT, **values: Any) -> Delivery:
    """A dead letter of "expecting"."""
    now = timezone.now()
    body = {"id": str(uuid.uuid4()), "type": "note", "timestamp": 1_700_000_000_000, "data": data}
    return Delivery.objects.create(
        **{
            "state": "dead",
            "group": "tests",
            "receiver": "expecting",
            "event_id": body["id"],
            "event_type": "note",
            "order": "key",
            "key": "a",
            "raw_key": b"a",
            "attempts": 3,
            "topic": "folio.library.note",
            "partition": 2,
            "offset": 77,
            "headers": encode_headers([]),
            "payload": dump(body),
            "error": "no",
            "published_at": now,
            "created_at": now,
            "last_attempt_at": now,
            **values,
        }
    )


def client_with(*permissions: str) -> Client:
    """A browser of a member of staff who has these permissions of the app."""
    user = User.objects.create_user(f"staff-{uuid.uuid4().hex[:8]}", is_staff=True)
    known = Permission.objects.filter(content_type__app_label="folio_events")
    user.user_permissions.set(known.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def change_page(client: Client, row: Delivery) -> str:
    address = reverse("admin:folio_events_delivery_change", args=[row.pk])
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


def edit_address(row: Delivery) -> str:
    return reverse("admin:folio_events_delivery_edit", args=[row.pk])


def panel(page: str) -> list[tuple[str, str]]:
    """The differences that a page shows."""
    found = re.findall(
        r"<tr><th scope='row'>(?:<code[^>]*>)?(.*?)(?:</code>)?</th><td>(.*?)</td></tr>", page
    )
    return [(unescape(path), unescape(reason)) for path, reason in found]


def command(*arguments: object) -> str:
    out = io.StringIO()
    call_command("dead_letters", *map(str, arguments), stdout=out, stderr=io.StringIO())
    return out.getvalue()


def event_of(row: Book, payload: dict[str, Any]) -> dict[str, Any]:
    """What the delivery of an event about a book holds."""
    event_id = uuid.uuid4()
    body = {"eventId": str(event_id), "eventTs": 1_700_000_000_000, "type": "UPDATE", **payload}
    return {
        "receiver": "gone",
        "topic": "folio.library.book",
        "event_id": event_id,
        "event_type": "UPDATE",
        "key": str(row.pk),
        "payload": dump(body),
    }


def private_letter(declare: Callable[..., None]) -> Delivery:
    """A dead letter of library.book, whose price is private and not as it should be."""
    declare(Book, fields=["id", "price"], private=["price"])
    return letter(**event_of(Book(pk=1), {"new": {"id": "1", "price": {"amount": 7}}}))


# In the admin


def test_the_page_of_a_delivery_shows_the_differences() -> None:
    """Who says it, the place and what is wrong; hostile names are text, tokens masked."""
    page = change_page(client_with("view_delivery", "view_private"), letter())
    assert "Against the schema" in page
    assert "as receiver expecting says" in page
    assert panel(page) == TOLD
    assert HOSTILE not in page
    assert TOKEN not in page


def test_what_fits_says_so() -> None:
    """Then it is the receiver that has to be mended."""
    assert "The payload fits." in change_page(client_with("view_delivery"), letter({"number": 4}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"receiver": "tests.other"}, "This project declares no events of topic 'library.note'"),
        ({"payload": b"no JSON"}, "It is no event: the body is no JSON"),
        ({"payload": None}, "A tombstone has no payload."),
        ({"payload": dump({"type": "note", "timestamp": 1, "data": 5})}, "It is no event"),
    ],
)
def test_what_cannot_be_compared_says_why(values: dict[str, Any], said: str) -> None:
    """And where nobody says what it should be, how to."""
    page = change_page(client_with("view_delivery"), letter(**values))
    assert said in unescape(page)


@pytest.mark.parametrize("data", ["x" * 5_000_000, [1] * 2_500_000], ids=["text", "values"])
def test_a_body_of_five_megabytes_is_no_burden(data: object) -> None:
    """It is compared, or said to be too large."""
    row = letter({"number": data})
    found = editing.compare(row)
    assert found is not None
    assert not found.fits


def test_a_body_that_is_nested_deeply_is_no_burden() -> None:
    """Where Python reads it at all."""
    data: object = 1
    for _ in range(300):
        data = [data]
    found = editing.compare(letter({"number": data}))
    assert found is not None
    assert "nested deeper than 100" in found.obstacle


@pytest.mark.parametrize("state", ["resolved", "discarded"])
def test_a_settled_delivery_is_not_compared(state: str) -> None:
    """There is nothing to mend."""
    page = change_page(client_with("view_delivery"), letter(state=state))
    assert "Against the schema" not in page


def test_of_private_fields_no_more_is_told_than_their_names(declare: Callable[..., None]) -> None:
    """But to those who may see them."""
    row = private_letter(declare)
    hidden = panel(change_page(client_with("view_delivery"), row))
    assert ("/new/price", "does not fit; what it holds is private") in hidden
    shown = panel(change_page(client_with("view_delivery", "view_private"), row))
    assert ("/new/price", 'wrong value: expected ["***"]') in shown
    both = {("/old", "missing"), ("/new/id", "wrong type: expected integer, found string")}
    assert both == set(hidden) & set(shown)


def test_who_may_not_view_deliveries_sees_no_differences() -> None:
    """Nor does who may edit, but not view."""
    row = letter()
    for client in (client_with("view_outboxmessage"), client_with("edit_delivery")):
        address = reverse("admin:folio_events_delivery_change", args=[row.pk])
        assert client.get(address).status_code == 403
        assert client.post(edit_address(row), {"compare": "1"}).status_code == 403


# While it is edited


def sent(row: Delivery, data: object, **values: str) -> dict[str, str]:
    """What the form of the edit page sends to compare a message with other data."""
    body = json.loads(bytes(row.payload or b""))
    return {
        "version": editing.version_of(row),
        "key_form": "text",
        "key": "a",
        "headers": "[]",
        "payload_form": "text",
        "payload": json.dumps({**body, "data": data}),
        "reason": "",
        "compare": "1",
        **values,
    }


def test_the_form_tells_what_the_message_differs_in_and_what_the_edit_mends() -> None:
    """Before anything is saved, and without a reason."""
    row = letter({"number": "four", "text": "secret words"})
    client = client_with("view_delivery", "edit_delivery")
    assert panel(client.get(edit_address(row)).content.decode()) == TOLD[:2]
    before = bytes(row.payload or b"")
    for data, said in (
        ({"number": 4, "text": "secret words"}, TOLD[1:2]),
        ({"number": 4, "text": "short"}, []),
    ):
        answer = client.post(edit_address(row), sent(row, data))
        page = answer.content.decode()
        assert answer.status_code == 200
        assert panel(page) == said
        assert ("The payload fits." in page) is (said == [])
        assert "This field is required" not in page
        row.refresh_from_db()
        assert bytes(row.payload or b"") == before


def test_a_message_that_could_not_be_saved_is_not_compared() -> None:
    """The form says why, as it would when it is saved."""
    row, client = letter({"number": "four"}), client_with("view_delivery", "edit_delivery")
    for change, said in (
        ({"payload": "{"}, "This is no event"),
        ({"payload_form": "hex", "payload": "zz"}, "non-hexadecimal"),
        ({"headers": "{"}, "Write a JSON list of pairs"),
        (
            {"payload": json.dumps({"id": str(uuid.UUID(int=1)), "type": "note"})},
            "cannot be changed",
        ),
    ):
        page = client.post(edit_address(row), sent(row, {}, **change)).content.decode()
        assert said in unescape(page)
        assert "Against the schema" not in page


def test_after_the_edit_the_page_shows_what_is_left() -> None:
    """Nothing, if it mends all of it."""
    row = letter()
    body = json.loads(bytes(row.payload or b""))
    content = Content(key=b"a", headers=[], payload=dump({**body, "data": {"number": 4}}))
    editing.edit(row.pk, content, reason="a number")
    assert "The payload fits." in change_page(client_with("view_delivery"), row)


# On a terminal


def test_the_command_shows_the_differences() -> None:
    """After what it shows of the delivery, and as JSON."""
    row = letter()
    shown = command("show", row.pk)
    assert "against the schema, as receiver expecting says: it differs" in shown
    assert "    /number: wrong type: expected integer, found string" in shown
    assert TOKEN not in shown
    found = json.loads(command("show", row.pk, "--json"))["comparison"]
    assert [(one["path"], one["reason"]) for one in found["differences"]] == TOLD
    assert (found["origin"], found["obstacle"], found["is_partial"]) == (
        "receiver expecting",
        "",
        False,
    )


def test_a_dry_run_of_an_edit_shows_what_would_be_left(tmp_path: Any) -> None:
    """So that one sees that it mends."""
    row = letter()
    body = json.loads(bytes(row.payload or b""))
    file = tmp_path / "event.json"
    file.write_bytes(dump({**body, "data": {"number": 4}}))
    shown = command("edit", row.pk, "--payload", file, "--dry-run")
    assert shown.splitlines() == [
        "would change: payload",
        "against the schema, as receiver expecting says: the payload fits",
    ]
    found = json.loads(command("edit", row.pk, "--payload", file, "--dry-run", "--json"))
    assert found["comparison"]["differences"] == []


def test_the_command_tells_nothing_of_private_fields(declare: Callable[..., None]) -> None:
    """It shows them to nobody."""
    shown = command("show", private_letter(declare).pk)
    assert "    /new/price: does not fit; what it holds is private" in shown


# To programs


@pytest.fixture
def _api_alone(settings: Any) -> None:
    settings.ROOT_URLCONF = "folio_events.api.urls"


def answered(client: Client, row: Delivery) -> Any:
    response = client.get(f"/folio-events/deliveries/{row.pk}")
    assert response.status_code == 200, response.content
    return response.json()["comparison"]


@pytest.mark.usefixtures("_api_alone")
def test_the_api_answers_the_differences() -> None:
    """With the delivery; of a settled one there are none."""
    client = client_with("view_delivery")
    found = answered(client, letter())
    assert [(one["path"], one["reason"]) for one in found["differences"]] == TOLD
    assert answered(client, letter(state="resolved", offset=78)) is None


@pytest.mark.usefixtures("_api_alone")
def test_the_api_tells_of_private_fields_to_those_who_may_see_them(
    declare: Callable[..., None],
) -> None:
    """By the same permission as the page."""
    row = private_letter(declare)
    for permissions, reason in (
        (["view_delivery"], "does not fit; what it holds is private"),
        (["view_delivery", "view_private"], 'wrong value: expected ["***"]'),
    ):
        told = answered(client_with(*permissions), row)["differences"]
        assert {"path": "/new/price", "reason": reason} in told


# While events run


def test_nothing_is_compared_while_events_run(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema refuses nothing, and costs consumer and retry pass nothing."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise AssertionError("it was compared")

    monkeypatch.setattr("folio_events.schemas.compare", fail)
    monkeypatch.setattr("folio_events.schemas.differences", fail)
    started = note_receiver("one", Mood(1), schema={"type": "array"})
    notes.put("a", 0)
    notes.put("b", 1)
    notes.consume()
    assert started[:1] == [0]
    assert Delivery.objects.filter(receiver="one").count() == 1
