"""The page of one event: found, followed, read; whatever the event holds and whoever looks."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from folio_events import Event, ModelEvents, events, receiver
from folio_events.admin.event_page import _value
from folio_events.encoding import dump
from folio_events.message import Headers, encode_headers
from folio_events.models import Attempt, Delivery, OutboxMessage, Publication, WithheldMessage
from folio_events.monitoring import search
from tests.testapp.models import Book

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkaWt1In0.c2lnbmF0dXJl"
SCRIPT = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
PAGES = "/admin/folio_events/outboxmessage/event/"


def written(payload: bytes | None = None, *, own: Any = (), **values: Any) -> OutboxMessage:
    """An event in the outbox."""
    values.setdefault("event_id", uuid.uuid4())
    return OutboxMessage.objects.create(
        **{
            "topic": "library.note",
            "event_type": "UPDATE",
            "tenant": "diku",
            "key": "the-key",
            "payload": dump({"eventId": str(values["event_id"]), "type": "UPDATE"})
            if payload is None
            else payload,
            "repeating_headers": dump([("ce_source", "/library")]),
            "own_headers": dump(list(own)) if own else b"",
            "occurred_at": NOON,
            **values,
        }
    )


def changed(old: Any, new: Any, **values: Any) -> OutboxMessage:
    """An event in the outbox, in the dialect of inventory."""
    event_id = uuid.uuid4()
    body = {"eventId": str(event_id), "type": "UPDATE", "old": old, "new": new}
    return written(dump(body), event_id=event_id, **values)


def failed(headers: Headers | None = None, **values: Any) -> Delivery:
    """A dead letter."""
    return Delivery.objects.create(
        **{
            "receiver": "tests.sync",
            "group": "tests",
            "event_id": uuid.uuid4(),
            "state": "dead",
            "order": "key",
            "attempts": 1,
            "topic": "folio.library.note",
            "partition": 2,
            "offset": 77,
            "key": "the-key",
            "raw_key": b"the-key",
            "headers": encode_headers(headers or []),
            "payload": b"{}",
            "published_at": NOON,
            "created_at": NOON,
            "last_attempt_at": NOON,
            "error_class": "builtins.ValueError",
            **values,
        }
    )


def attempt(of: Delivery, number: int = 1, **values: Any) -> Attempt:
    return Attempt.objects.create(
        **{
            "delivery": of,
            "receiver": of.receiver,
            "number": number,
            "started_at": NOON + timedelta(seconds=number),
            "duration": 0.25,
            "outcome": "failed",
            "error_class": "builtins.ValueError",
            "error": "no such loan",
            "traceback": "Traceback: line 7",
            **values,
        }
    )


def client_with(*permissions: str) -> Client:
    """A browser of a member of staff who has these permissions of the app."""
    user = User.objects.create_user(f"staff-{uuid.uuid4().hex[:8]}", is_staff=True)
    for codename in permissions:
        user.user_permissions.add(
            Permission.objects.get(codename=codename, content_type__app_label="folio_events")
        )
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def viewer() -> Client:
    """A member of staff who may look, but at no private field."""
    return client_with("view_outboxmessage", "view_delivery", "view_withheldmessage")


def page(client: Client, event_id: object, **query: str) -> str:
    response = client.get(f"{PAGES}{event_id}/", query)
    assert response.status_code == 200, response
    return response.content.decode()


class _Text(HTMLParser):
    """What a page says, and the elements it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def test_the_page_tells_the_whole_way_of_an_event(viewer: Client) -> None:
    """Who wrote it, where it stands, who failed on it how often, and what waits."""
    row = written(own=[("x-okapi-request-id", "99/notes")])
    Publication.objects.create(
        outbox_message=row, topic="folio.library.note", partition=4, offset=123,
        published_at=NOON + timedelta(seconds=2),
    )  # fmt: skip
    dead = failed(event_id=row.event_id, partition=4, offset=123)
    attempt(dead)
    attempt(dead, 2, outcome="lost", duration=None, error="", traceback="", error_class="")
    failed(state="retrying", offset=124)
    html = page(viewer, row.event_id)
    text = _Text(html).text
    for said in (
        "library.note", "UPDATE", "diku", "the-key", "/library", "99/notes",
        "partition 4, offset 123", "tests.sync", "attempt 1, 250 ms, builtins.ValueError",
        "no such loan", "Traceback: line 7", "no end", "1 waits behind it",
        "no longer registered", "+2.0 s",
    ):  # fmt: skip
        assert said in text, said
    for link in (
        f"/admin/folio_events/outboxmessage/{row.pk}/change/",
        f"/admin/folio_events/delivery/{dead.pk}/change/",
        "receiver=tests.sync",
        "q=99%2Fnotes",
    ):
        assert link in html, link


def test_what_waited_says_behind_what(viewer: Client) -> None:
    """Also when both are settled."""
    minute = timedelta(minutes=1)
    first = failed(state="discarded", resolved_at=NOON + minute)
    second = failed(state="resolved", resolved_at=NOON + 2 * minute, offset=78)
    attempt(second, started_at=NOON + 2 * minute, outcome="succeeded", error_class="", error="")
    html = page(viewer, second.event_id)
    assert f'href="/admin/folio_events/delivery/{first.pk}/change/"' in html
    assert f"kept for later tests.sync behind delivery {first.pk}" in _Text(html).text
    assert "behind delivery" not in _Text(page(viewer, first.event_id)).text


def test_cause_and_effect_lead_to_each_other(viewer: Client) -> None:
    """The pages of both have a link to the other."""
    cause = written()
    effect = written(
        own=[("ce_causationid", str(cause.event_id))], occurred_at=NOON + timedelta(seconds=1)
    )
    assert f"{PAGES}{effect.event_id}/" in page(viewer, cause.event_id)
    assert f"{PAGES}{cause.event_id}/" in page(viewer, effect.event_id)


def test_what_it_caused_is_looked_for_further(
    viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look is bounded; the page says how far it went and has the link to go on."""
    monkeypatch.setattr(search, "LOOKED_AT_AFTER", 2)
    cause = written()
    for number in range(4):
        written(occurred_at=NOON + timedelta(seconds=number))
    effect = written(
        own=[("ce_causationid", str(cause.event_id))], occurred_at=NOON + timedelta(minutes=1)
    )
    html = page(viewer, cause.event_id)
    seen = str(effect.event_id) in html
    for _ in range(5):
        further = re.search(r'href="[^"]*\?after=(\d+)', html)
        if seen or further is None:
            break
        assert "Looked through what was recorded up to" in html
        html = page(viewer, cause.event_id, after=further[1])
        seen = str(effect.event_id) in html
    assert seen


@pytest.mark.parametrize("model", ["outboxmessage", "delivery", "withheldmessage"])
@pytest.mark.parametrize("is_list", [True, False], ids=["list", "row"])
def test_lists_and_rows_lead_to_the_event(viewer: Client, model: str, is_list: bool) -> None:
    """From wherever a person meets an event."""
    row = written()
    found = {
        "outboxmessage": row.pk,
        "delivery": failed(event_id=row.event_id).pk,
        "withheldmessage": WithheldMessage.objects.create(
            outbox_message=row, topic=row.topic, state="refused", withheld_at=NOON
        ).pk,
    }
    tail = "" if is_list else f"{found[model]}/change/"
    html = viewer.get(f"/admin/folio_events/{model}/{tail}").content.decode()
    assert f'href="{PAGES}{row.event_id}/"' in html


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"q": "the-key"}, True),
        ({"q": "another"}, False),
        ({"q": "the-key", "by": "id_or_key"}, True),
        ({"q": "99/notes", "by": "request_id"}, True),
        ({"q": "ab" * 16, "by": "trace_id"}, True),
        ({"q": "diku", "by": "tenant"}, True),
        ({"q": "diku"}, False),
        ({"q": ""}, False),
        ({"q": "the-key", "by": "nonsense"}, False),
        ({"q": "\0"}, False),
        ({}, False),
    ],
)
def test_events_are_found(viewer: Client, query: dict[str, str], says: bool) -> None:
    """By key, request, trace and tenant."""
    row = written(
        own=[("x-okapi-request-id", "99/notes"), ("traceparent", f"00-{'ab' * 16}-cd-01")]
    )
    response = viewer.get(PAGES, query)
    assert response.status_code == 200
    assert (str(row.event_id) in response.content.decode()) is says


def test_an_event_id_leads_straight_to_its_page(viewer: Client) -> None:
    """Unless it is the key of others as well: then there is a choice."""
    row = written()
    response = viewer.get(PAGES, {"q": f" {row.event_id} "})
    assert (response.status_code, response["Location"]) == (302, f"{PAGES}{row.event_id}/")
    other = written(key=str(row.event_id))
    html = viewer.get(PAGES, {"q": str(row.event_id)}).content.decode()
    assert f"{PAGES}{row.event_id}/" in html
    assert f"{PAGES}{other.event_id}/" in html


def test_a_partial_search_says_how_far_it_looked(
    viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the link that looks further back."""
    monkeypatch.setattr(search, "LOOKED_AT", 2)
    for _ in range(5):
        written()
    html = viewer.get(PAGES, {"q": "nobody", "by": "tenant"}).content.decode()
    assert "Looked through what was recorded since" in html
    assert re.search(r"before=\d+\.0", html)


@pytest.mark.parametrize(
    "url",
    [f"{PAGES}{uuid.UUID(int=9)}/", f"{PAGES}{uuid.UUID(int=9)}/payload/", f"{PAGES}?q=k&before=x"],
)
def test_what_is_not_there_is_not_found(viewer: Client, url: str) -> None:
    """No server error for a link that is old or was typed."""
    assert viewer.get(url).status_code == 404


@pytest.mark.parametrize("tail", ["", "{id}/", "{id}/payload/"])
def test_without_permission_there_is_no_page(tail: str) -> None:
    """Staff alone is not enough; who is no staff is asked to log in."""
    url = PAGES + tail.format(id=written().event_id)
    assert client_with().get(url).status_code == 403
    assert client_with("view_withheldmessage", "view_private").get(url).status_code == 403
    assert "/login/" in Client().get(url)["Location"]


def test_who_may_see_one_part_sees_that_part() -> None:
    """The outbox without the failures, or the failures without the outbox."""
    row = written()
    dead = failed(event_id=row.event_id)
    attempt(dead)
    outbox, deliveries = client_with("view_outboxmessage"), client_with("view_delivery")
    html = page(outbox, row.event_id)
    assert "tests.sync" not in html
    assert "Traceback: line 7" not in html
    html = page(deliveries, row.event_id)
    assert "Traceback: line 7" in html
    assert "outboxmessage/1/" not in html
    assert "What it caused" not in html
    alone = written()
    assert deliveries.get(f"{PAGES}{alone.event_id}/").status_code == 403
    assert outbox.get(f"{PAGES}{failed().event_id}/").status_code == 403
    assert str(alone.event_id) not in deliveries.get(PAGES, {"q": "the-key"}).content.decode()


def test_old_and_new_are_compared_field_by_field(viewer: Client) -> None:
    """What is equal is left out; the whole stands below."""
    row = changed(
        {"title": "Emma", "pages": 474, "gone": 1}, {"title": "Emma", "pages": 475, "added": [1]}
    )
    shown = _Text(page(viewer, row.event_id)).text
    start = shown.index("Field old new")
    assert shown[start:].startswith("Field old new pages 474 475 added [1] gone 1 ")


@pytest.mark.parametrize(
    ("old", "new", "title"), [(None, {"a": 1}, "Created"), ({"a": 1}, None, "Deleted")]
)
def test_a_creation_has_no_old_and_a_deletion_no_new(
    viewer: Client, old: Any, new: Any, title: str
) -> None:
    """There is one column."""
    tags = _Text(page(viewer, changed(old, new).event_id))
    assert f"{title} Field" in tags.text


def test_a_payload_that_is_no_change_has_no_comparison(viewer: Client) -> None:
    """Not even where it has something that is called old."""
    body = {"id": str(uuid.uuid4()), "type": "X", "timestamp": 1, "data": {"old": 5, "new": "x"}}
    row = written(dump({**body, "tenant": "diku"}))
    assert "Field" not in _Text(page(viewer, row.event_id)).text


HOSTILE = {
    "markup": dump({"eventId": "x", "type": SCRIPT, "old": {SCRIPT: SCRIPT}, "new": {SCRIPT: 1}}),
    "5 MB": dump({"type": "UPDATE", "new": {"text": "x" * 5_000_000}}),
    "many members": dump({"type": "UPDATE", "new": {f"m{n}": n for n in range(50_000)}}),
    "no UTF-8": b"\xff\xfe" + b"\x00" * 100_000,
    "nested": b'{"type":"UPDATE","new":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "nested as a change": b'{"type":"UPDATE","new":{"a":' + b"[" * 900 + b"]" * 900 + b"}}",
    "huge number": b'{"type":"UPDATE","new":{"a":' + b"9" * 100_000 + b"}}",
    "large exponent": b'{"type":"UPDATE","new":{"a":1e999999}}',
    "not a number": b'{"type":"UPDATE","new":{"a":NaN}}',
    "controls": dump({"type": "UPDATE", "new": {"a": "\x00\x07\x1b[31m\x9f"}}),
    "direction": dump({"type": "UPDATE", "new": {"\u202egnp.exe": "\u2066a\u2069\u200f"}}),
    "lone surrogate": b'{"type":"UPDATE","new":{"a":"\\ud800"}}',
    "no object": b"[1, 2]",
    "cut": b'{"type":"UPD',
    "empty": b"",
}


@pytest.mark.parametrize("is_own", [True, False], ids=["outbox", "delivery"])
@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_payload_breaks_no_page(viewer: Client, payload: bytes, is_own: bool) -> None:
    """Nothing of it is markup, a control or a megabyte, and nothing fails."""
    event_id = uuid.uuid4()
    if is_own:
        written(
            payload,
            event_id=event_id,
            key=SCRIPT[:50],
            own=[("note", SCRIPT), ("x-okapi-request-id", SCRIPT)],
        )
    else:
        dead = failed([(SCRIPT, b"\xff\x00")], payload=payload, error=SCRIPT, traceback=SCRIPT,
                      receiver=SCRIPT, event_type=SCRIPT, tenant=SCRIPT, event_id=event_id)  # fmt: skip
        attempt(dead, error=SCRIPT, traceback=SCRIPT, error_class=SCRIPT)
    html = page(viewer, event_id)
    seen = _Text(html)
    assert len(html) < 1_500_000
    assert not any(
        tag == "img" or name.startswith("on") for tag, attrs in seen.tags for name in attrs
    )
    assert "alert(1)</script>" not in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200f\u202a-\u202e\u2066-\u2069]", html)
    assert seen.text.count("Payload")
    assert SCRIPT not in seen.parts[0]
    found = viewer.get(f"{PAGES}{event_id}/payload/")
    assert found.status_code == 200


def test_a_value_that_cannot_be_written_is_named() -> None:
    """Python reads deeper JSON than it writes, in some versions."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in _value(deep, ())


def test_the_page_has_neither_script_nor_style_of_its_own(viewer: Client) -> None:
    """A strict content security policy takes it."""
    dead = failed()
    attempt(dead)
    before = _Text(viewer.get("/admin/").content.decode()).tags
    for html in (page(viewer, dead.event_id), viewer.get(PAGES, {"q": "the-key"}).content.decode()):
        tags = _Text(html).tags
        assert not [attrs for _, attrs in tags if "style" in attrs]
        assert not [attrs for tag, attrs in tags if tag == "script" and not attrs.get("src")]
        assert [tag for tag, _ in tags].count("style") == [tag for tag, _ in before].count("style")


def test_the_whole_payload_can_be_downloaded(viewer: Client) -> None:
    """As a file that no browser shows."""
    row = changed(None, {"text": "x" * 200_000})
    assert "the first 100,000 characters are shown" in page(viewer, row.event_id)
    response = viewer.get(f"{PAGES}{row.event_id}/payload/")
    assert response.content == bytes(row.payload or b"")
    assert response["Content-Disposition"] == f'attachment; filename="{row.event_id}.json"'
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Type"] == "application/octet-stream"


def test_tokens_are_masked_everywhere(viewer: Client) -> None:
    """In headers, payload, errors and the file."""
    row = written(
        dump({"type": "UPDATE", "new": {"note": TOKEN}}), own=[("x-okapi-token", "opaque-secret")]
    )
    dead = failed([("Authorization", b"opaque-secret")], event_id=row.event_id, error=TOKEN)
    attempt(dead, error=TOKEN, traceback=TOKEN)
    root = client_with("view_outboxmessage", "view_delivery", "view_private")
    for client in (viewer, root):
        for text in (
            page(client, row.event_id),
            client.get(f"{PAGES}{row.event_id}/payload/").content.decode(),
        ):
            assert "opaque-secret" not in text
            assert not any(part in text for part in TOKEN.split("."))


@pytest.fixture
def private_notes() -> Any:
    """Events of books go to the topic, and their title is private."""
    before = events.find(Book)
    events.unregister(Book)

    @events.register(Book)
    class PrivateBookEvents(ModelEvents):
        topic = "library.note"
        fields = ("id", "title")
        private = ("title",)

    yield
    events.unregister(Book)
    if before is not None:
        events.register(Book)(type(before))


def _pages_of(row: OutboxMessage, dead: Delivery) -> list[str]:
    return [
        f"{PAGES}{row.event_id}/",
        f"{PAGES}{row.event_id}/payload/",
        f"/admin/folio_events/outboxmessage/{row.pk}/change/",
        f"/admin/folio_events/delivery/{dead.pk}/change/",
    ]


@pytest.mark.usefixtures("private_notes")
def test_private_fields_are_masked_unless_the_permission_allows(viewer: Client) -> None:
    """Such as of an event that was written before the field was declared private."""
    row = changed({"title": "secret-old"}, {"title": "secret-new", "pages": 17})
    dead = failed(event_id=row.event_id, payload=bytes(row.payload or b""))
    allowed = client_with("view_outboxmessage", "view_delivery", "view_private")
    for url in _pages_of(row, dead):
        masked = viewer.get(url).content.decode()
        assert "secret-" not in masked, url
        assert "17" in masked
        assert "secret-new" in allowed.get(url).content.decode(), url


@pytest.mark.usefixtures("private_notes")
@pytest.mark.parametrize(
    "payload",
    [
        b'{"type": "UPDATE", "new": {"title": "secret-new"',
        b"\xff title secret-new",
        b"[" * 50_000 + b'"secret-new"' + b"]" * 50_000,
        dump(
            {
                "id": "1",
                "eventType": "X",
                "eventMetadata": {},
                "eventPayload": '{"title":"secret-new"}',
            }
        ),
        dump({"type": "UPDATE", "new": {"title": {"deep": ["secret-new", "}"]}}}),
        b'{"type": "UPDATE", "new": {"t\\u0069tle": "secret-new"}}',
        dump({"type": "UPDATE", "new": {"author": {"title": "secret-new"}}}),
    ],
    ids=["cut", "no UTF-8", "nested", "pubsub", "structure", "escaped name", "inside a change"],
)
def test_private_fields_do_not_show_in_another_form(viewer: Client, payload: bytes) -> None:
    """Where a body cannot be told apart, all of it is hidden."""
    row = written(payload)
    dead = failed(event_id=row.event_id, payload=payload)
    for url in _pages_of(row, dead):
        shown = viewer.get(url).content.decode("latin-1")
        assert "secret-new" not in shown, url
        assert b"secret-new".hex(" ") not in shown, url


def test_titles_hold_nothing_of_the_event(viewer: Client) -> None:
    """They end up in histories of browsers and in pictures of screens."""
    row = changed(None, {"barcode": "a-secret"}, key="a-secret-key")
    html = page(viewer, row.event_id)
    title = re.search("<title>(.*?)</title>", html, re.DOTALL)
    assert title is not None
    assert "secret" not in title[1]
    assert str(row.event_id) in title[1]


def test_a_receiver_that_has_not_come_to_it_is_named(viewer: Client) -> None:
    """Also those that have nothing kept of it."""

    @receiver("library.note", name="patient")
    def wait(event: Event) -> None: ...

    text = _Text(page(viewer, written().event_id)).text
    assert "patient" in text
    assert "waiting to be published" in text


@pytest.mark.parametrize(("write", "loads"), [(written, 0), (failed, 1)])
def test_a_page_reads_the_body_of_one_delivery_at_most(
    viewer: Client, write: Callable[..., Any], loads: int, django_assert_max_num_queries: Any
) -> None:
    """Receivers that failed too do not each load their copy."""
    row = write()
    for number in range(5):
        failed(receiver=f"r{number}", event_id=row.event_id, offset=number)
    with django_assert_max_num_queries(45) as queries:
        page(viewer, row.event_id)
    assert sum('_delivery"."payload"' in query["sql"] for query in queries) == loads


def test_json_numbers_and_repeats_stay_as_they_were_sent(viewer: Client) -> None:
    """The body is shown, not what Python makes of it."""
    row = written(b'{"type":"UPDATE","a":1.10,"a":12345678901234567890123}')
    text = _Text(page(viewer, row.event_id)).text
    assert '"a": 1.10, "a": 12345678901234567890123' in text
    assert json.loads(viewer.get(f"{PAGES}{row.event_id}/payload/").content)
