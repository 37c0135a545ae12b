"""The admin shows what was recorded, published, withheld and failed, and settles it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from folio_events.admin import DeliveryAdmin, OutboxMessageAdmin
from folio_events.encoding import dump
from folio_events.message import Headers, encode_headers
from folio_events.models import (
    ConsumerOffset,
    Delivery,
    OutboxMessage,
    Publication,
    ReceiverState,
    RelayCursor,
    RelayGap,
    WithheldMessage,
)
from folio_events.receivers import receiver

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkaWt1In0.c2lnbmF0dXJl"
HOSTILE = "<script>alert('x')</script>\" onmouseover=\"alert(1)"
DEEP = b"[" * 100_000 + b"]" * 100_000


def message(**values: Any) -> OutboxMessage:
    """A recorded event."""
    values.setdefault("event_id", uuid.uuid4())
    values.setdefault("topic", "inventory.item")
    values.setdefault("event_type", "UPDATE")
    values.setdefault("tenant", "diku")
    values.setdefault("key", str(uuid.uuid4()))
    values.setdefault("payload", dump({"type": "UPDATE", "new": {"barcode": "123"}}))
    values.setdefault("repeating_headers", dump([("ce_type", "inventory.item.UPDATE")]))
    values.setdefault("own_headers", b"")
    return OutboxMessage.objects.create(occurred_at=NOON, **values)


def published(row: OutboxMessage, offset: int = 0) -> OutboxMessage:
    """The same, acknowledged by the broker."""
    Publication.objects.create(
        outbox_message=row,
        topic=f"folio.{row.tenant}.{row.topic}",
        partition=4,
        offset=offset,
        published_at=NOON + timedelta(seconds=1),
    )
    return row


def withheld_message(
    state: str = "refused", row: OutboxMessage | None = None, **values: Any
) -> WithheldMessage:
    """An event that the broker refused."""
    row = row or message()
    values.setdefault("error", "MessageTooLargeError: 2000000 bytes")
    return WithheldMessage.objects.create(
        outbox_message=row,
        topic=row.topic,
        tenant=row.tenant,
        key=row.key,
        state=state,
        withheld_at=NOON,
        **values,
    )


def delivery(state: str = "dead", *, headers: Headers | None = None, **values: Any) -> Delivery:
    """An event that a receiver failed on."""
    key = values.setdefault("key", str(uuid.uuid4()))
    values.setdefault("receiver", "tests.sync")
    values.setdefault("event_id", uuid.uuid4())
    values.setdefault("topic", "folio.diku.inventory.item")
    values.setdefault("tenant", "diku")
    values.setdefault("payload", b'{"a": 1}')
    values.setdefault("raw_key", None if key is None else key.encode())
    values.setdefault("error_class", "builtins.ValueError")
    return Delivery.objects.create(
        state=state,
        group="tests",
        order="key",
        attempts=3,
        partition=2,
        offset=77,
        headers=encode_headers(headers or []),
        published_at=NOON,
        created_at=NOON,
        **values,
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
def root() -> Client:
    """A browser of a superuser."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def url(model: Any, page: str = "changelist", *args: Any) -> str:
    return reverse(f"admin:folio_events_{model._meta.model_name}_{page}", args=args)


def page_of(client: Client, row: Any) -> str:
    """The page about one row."""
    return get(client, url(type(row), "change", row.pk))


def get(client: Client, address: str, **query: Any) -> str:
    response = client.get(address, query)
    assert response.status_code == 200
    return str(response.content.decode())


def text_of(html: str) -> str:
    """What a reader sees, blanks as one."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def act(client: Client, name: str, rows: list[Any], **data: Any) -> str:
    """Choose an action for rows of a list; the page that follows."""
    response = client.post(
        url(type(rows[0])),
        {"action": name, "index": 0, "_selected_action": [row.pk for row in rows], **data},
        follow=True,
    )
    assert response.status_code == 200
    return str(response.content.decode())


def confirm(client: Client, page: str, reason: str, model: Any) -> str:
    """Fill in the page that asks for a reason, and send what its form holds."""
    fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page))
    response = client.post(url(model), {**fields, "reason": reason}, follow=True)
    assert response.status_code == 200
    return str(response.content.decode())


def listed(client: Client, model: Any, **query: Any) -> list[Any]:
    """Primary keys of the rows in a list, in its order."""
    response = client.get(url(model), query)
    assert response.status_code == 200
    return [row.pk for row in response.context["cl"].result_list]


def states(*rows: Any) -> list[str]:
    return [type(row).objects.get(pk=row.pk).state for row in rows]


# The outbox


def test_a_published_message_shows_where_it_stands_on_the_broker(root: Client) -> None:
    """List and page name topic, partition, offset and time of the publication."""
    row = published(message(event_id=uuid.UUID(int=7), key="k-1"), offset=4711)
    for html in (get(root, url(OutboxMessage)), page_of(root, row)):
        text = text_of(html)
        for fact in (
            "published",
            "folio.diku.inventory.item",
            "partition 4, offset 4711",
            "2026-03-04 12:00:01",
            "UPDATE",
            "diku",
            "k-1",
            str(row.event_id),
            "2026-03-04 12:00:00",
        ):
            assert fact in text


def test_a_message_shows_how_far_it_got(root: Client) -> None:
    """Without a publication it waits, or is withheld, or was discarded."""
    message(key="of-waiting")
    withheld_message("refused", message(key="of-refused"))
    withheld_message("waiting", message(key="of-follower"))
    withheld_message("discarded", message(key="of-discarded"))
    rows = re.findall(r"<tr>.*?</tr>", get(root, url(OutboxMessage)), re.DOTALL)
    shown = {
        key: badge
        for row in rows
        for key in re.findall(r"(of-\w+)</code>", row)
        for badge in re.findall(r"folio-events-badge[^>]*>([^<]+)", row)
    }
    assert shown == {
        "of-waiting": "waiting",
        "of-refused": "withheld",
        "of-follower": "withheld",
        "of-discarded": "discarded",
    }


@pytest.mark.parametrize(
    "make",
    [lambda: published(message()), delivery, withheld_message],
    ids=["outbox", "deliveries", "withheld"],
)
def test_more_rows_cost_no_more_queries(root: Client, make: Callable[[], Any]) -> None:
    """A list of thirty rows takes as many statements as a list of one."""
    address = url(type(make()))
    root.get(address)
    with CaptureQueriesContext(
        connection,
    ) as one:
        root.get(address)
    for _ in range(30):
        make()
    with CaptureQueriesContext(connection) as many:
        root.get(address)
    assert len(many) == len(one)


@pytest.mark.parametrize("model", [OutboxMessage, WithheldMessage, Delivery])
def test_a_list_neither_counts_nor_compares_patterns_nor_reads_payloads(
    root: Client, model: Any
) -> None:
    """No LIKE, DISTINCT or payload in what a list asks of the database, no COUNT without end."""
    row = published(message())
    withheld_message(row=row)
    delivery()
    with CaptureQueriesContext(connection) as queries:
        for query in ({}, {"q": str(row.event_id)}, {"q": "some key"}, {"topic": "x"}):
            get(root, url(model), **query)
    statements = [q["sql"] for q in queries if "folio_events_" in q["sql"]]
    assert statements
    for statement in statements:
        assert not re.search(r"\bLIKE\b|DISTINCT|payload|traceback", statement)
        assert not re.search(r"COUNT\((?!\*\) FROM \(.* LIMIT 1000\) )", statement)


def test_pages_follow_each_other_without_a_count(root: Client) -> None:
    """Each page but the last says that there is more; the last says how many there are."""
    OutboxMessage.objects.bulk_create(_copy(number) for number in range(250))
    newest = OutboxMessage.objects.order_by("-pk").values_list("pk", flat=True)
    pages = [get(root, url(OutboxMessage), p=number) for number in (1, 2, 3)]
    assert "100+ outbox messages" in text_of(pages[0])
    assert "200+ outbox messages" in text_of(pages[1])
    assert "250 outbox messages" in text_of(pages[2])
    assert "?p=2" in pages[0]
    assert "?p=4" not in pages[2]
    assert listed(root, OutboxMessage, p=2) == list(newest[100:200])
    assert listed(root, OutboxMessage, p=3) == list(newest[200:])


def _copy(number: int) -> OutboxMessage:
    return OutboxMessage(
        event_id=uuid.uuid4(),
        topic="inventory.item",
        event_type="UPDATE",
        tenant="diku",
        key=f"key {number}",
        payload=b"{}",
        repeating_headers=b"[]",
        own_headers=b"",
        occurred_at=NOON,
    )


@pytest.mark.parametrize("number", ["7", "0", "-1", "1000000", str(10**30), "x"])
def test_a_page_that_is_not_there_is_no_error(root: Client, number: str) -> None:
    """Whatever stands in the address, the list answers."""
    message()
    response = root.get(url(OutboxMessage), {"p": number}, follow=True)
    assert response.status_code == 200
    assert "1 outbox message" in text_of(response.content.decode())


@pytest.mark.parametrize(
    "make",
    [message, delivery, lambda **v: withheld_message(row=message(**v))],
    ids=["outbox", "deliveries", "withheld"],
)
def test_search_finds_a_whole_event_id_or_key_and_nothing_less(
    root: Client, make: Callable[..., Any]
) -> None:
    """Event id, key, a key that is a UUID and a key with blanks; no part of any."""
    event_id, key = uuid.uuid4(), str(uuid.uuid4())
    by_id, by_key, blank = make(event_id=event_id), make(key=key), make(key="two words")
    model = type(by_id)
    assert listed(root, model, q=str(event_id)) == [by_id.pk]
    assert listed(root, model, q=f"  {str(event_id).upper()} ") == [by_id.pk]
    assert listed(root, model, q=key) == [by_key.pk]
    assert listed(root, model, q="two words") == [blank.pk]
    for other in ("two", key[:8], "%", "a\0b", "'; --"):
        assert listed(root, model, q=other) == (
            [] if "\0" not in other else [blank.pk, by_key.pk, by_id.pk]
        )


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (message, ["topic", "event_type", "tenant"]),
        (delivery, ["receiver", "topic", "tenant"]),
    ],
)
def test_filters_offer_the_newest_values_and_take_any_other(
    root: Client, make: Callable[..., Any], fields: list[str]
) -> None:
    """A value is offered as a link, and one that is typed in is compared exactly."""
    row = make()
    for field in fields:
        other = make(**{field: f"some.other/{field}"})
        html = get(root, url(type(row)))
        assert f"?{field}=some.other%2F{field}" in html
        assert f'<input type="text" name="{field}"' in html
        assert listed(root, type(row), **{field: f"some.other/{field}"}) == [other.pk]
        assert listed(root, type(row), **{field: "some.other"}) == []
        other.delete()


def test_a_filter_keeps_the_search_and_the_other_filters(root: Client) -> None:
    """The form of a filter repeats what else was asked for."""
    message(key="k", tenant="one")
    message(key="k", tenant="two")
    html = get(root, url(OutboxMessage), q="k", tenant="two", progress="waiting")
    form = re.findall(
        r'<form method="get" class="folio-events-filter">.*?</form>', html, re.DOTALL
    )[0]
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)"', form))
    assert hidden == {"q": "k", "tenant": "two", "progress": "waiting"}
    assert len(listed(root, OutboxMessage, **hidden, topic="inventory.item")) == 1


def test_a_filter_with_nul_is_refused(root: Client) -> None:
    """PostgreSQL takes no NUL: the list is shown without the filter."""
    message()
    response = root.get(url(OutboxMessage), {"topic": "a\0b"}, follow=True)
    assert response.redirect_chain
    assert response.status_code == 200


def test_messages_are_filtered_by_how_far_they_got(root: Client) -> None:
    """Waiting ones are found above the cursor and in its gaps, and withheld ones are none."""
    done = published(message())
    late = message()
    published(message(), offset=1)
    refused, given_up = withheld_message().pk, withheld_message("discarded").pk
    last = published(message(), offset=2)
    tail = message()
    RelayCursor.objects.create(position=last.pk, version=1, updated_at=NOON)
    RelayGap.objects.create(first_id=late.pk, last_id=late.pk)
    assert listed(root, OutboxMessage, progress="waiting") == [tail.pk, late.pk]
    assert listed(root, OutboxMessage, progress="withheld") == [refused]
    assert listed(root, OutboxMessage, progress="discarded") == [given_up]
    found = listed(root, OutboxMessage, progress="published")
    assert found[0] == last.pk
    assert found[-1] == done.pk
    assert len(found) == 3
    assert listed(root, OutboxMessage, progress="anything") == listed(root, OutboxMessage)


# One row's page


def test_a_message_shows_its_payload_indented_and_its_headers_as_sent(root: Client) -> None:
    """The body is JSON on several lines; the headers are those of the wire."""
    row = message(
        payload=b'{"new":{"title":"\xc3\x86nigma & Co","n":[]},"n":1.10,"n":1e400}',
        own_headers=dump([("x-okapi-request-id", "812/circulation")]),
    )
    html = page_of(root, row)
    assert unescape(html.partition("<pre")[2].partition(">")[2].partition("</pre>")[0]) == (
        '{\n  "new": {\n    "title": "Ænigma & Co",\n    "n": []\n  },\n  "n": 1.10,\n  "n": 1e400\n}'
    )
    text = text_of(html)
    for header in (
        "ce_type inventory.item.UPDATE",
        f"ce_id {row.event_id}",
        f"ce_sequence {row.pk:019d}",
        "x-okapi-request-id 812/circulation",
    ):
        assert header in text


@pytest.mark.parametrize("name", ["x-okapi-token", "X-Okapi-Token", "Authorization", "cookie"])
def test_no_page_shows_a_token(root: Client, name: str) -> None:
    """Outbox and delivery name the header and mask its value."""
    row = message(own_headers=dump([(name, TOKEN)]))
    failed = delivery(headers=[(name, TOKEN.encode()), ("empty", None), ("odd", b"\xff\x00")])
    for html in (page_of(root, row), page_of(root, failed)):
        assert f"{name} masked" in text_of(html)
        assert TOKEN not in html
    assert "empty no value" in text_of(html)
    assert "odd ff 00" in text_of(html)


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (HOSTILE.encode(), HOSTILE),
        (dump({"a": HOSTILE}), r"<script>alert('x')</script>\" onmouseover"),
        (b"\xff\xfe\x00<b>", "00000000  ff fe 00 3c 62 3e" + " " * 30 + "  ...<b>"),
        (b"a\x00b\x1b[31m", "a\N{SYMBOL FOR NULL}b\N{SYMBOL FOR ESCAPE}[31m"),
        ("a\u202eb".encode(), "a\\u202eb"),
        (DEEP, "[[[[[[[["),
        (
            b"[" + b'"x", ' * 200_000 + b"1]",
            "1,000,003 bytes; the first 100,000 characters are shown",
        ),
        (b"\xff" * 1_000_000, "1,000,000 bytes, no UTF-8; the first 16,384 are shown"),
        (b"[" + b"9" * 10_000 + b"]", "9" * 10_000),
        (b"{not json]", "{not json]"),
        (b"", "0 bytes"),
    ],
    ids=[
        "html",
        "html in json",
        "no utf-8",
        "control",
        "bidi",
        "deep",
        "1 MB",
        "1 MB of bytes",
        "long number",
        "no json",
        "empty",
    ],
)
@pytest.mark.parametrize("make", [message, delivery])
def test_whatever_the_payload_is_the_page_shows_it_as_text(
    root: Client, make: Callable[..., Any], payload: bytes, shown: str
) -> None:
    """Hostile, broken and large bodies are shown, escaped, and a part of them if they are large."""
    html = page_of(root, make(payload=payload))
    assert shown in unescape(html)
    assert "<script>alert" not in html
    assert len(html) < 1_500_000


def test_a_delivery_without_a_body_says_so(root: Client) -> None:
    """A tombstone has no payload and, here, no key."""
    text = text_of(page_of(root, delivery(payload=None, key=None)))
    assert "The record has no body." in text


def test_everything_that_came_from_outside_is_escaped(root: Client) -> None:
    """Keys, topics, errors, headers and reasons are text in lists, pages and confirmations."""
    row = message(topic=HOSTILE, event_type=HOSTILE, tenant=HOSTILE, key=HOSTILE)
    aside = withheld_message(row=row, error=HOSTILE, reason=HOSTILE)
    failed = delivery(
        receiver=HOSTILE,
        topic=HOSTILE,
        tenant=HOSTILE,
        event_type=HOSTILE,
        key=HOSTILE,
        error_class=HOSTILE,
        error=HOSTILE,
        traceback=HOSTILE,
        reason=HOSTILE,
        headers=[(HOSTILE, HOSTILE.encode())],
    )
    pages = [get(root, url(type(one)), q=HOSTILE) for one in (row, aside, failed)]
    pages += [page_of(root, one) for one in (row, aside, failed)]
    pages += [act(root, "discard", [one]) for one in (aside, failed)]
    pages.append(get(root, url(Delivery), receiver=HOSTILE))
    for html in pages:
        assert "alert(" in html
        assert "<script>alert" not in html
        assert not re.search(r"<[^>]*\sonmouseover=\"alert", html)


def test_a_delivery_shows_its_whole_case(root: Client) -> None:
    """State, receiver, attempts, place, key, event id and error are in the list; the rest is on its page."""
    row = delivery(
        "retrying",
        key="k-9",
        error="no such item",
        traceback="Traceback (most recent call last):\n  File 'x'",
        next_attempt_at=NOON,
        raw_key=b"k-9\xff",
    )
    listed_text, text = text_of(get(root, url(Delivery))), text_of(page_of(root, row))
    for fact in (
        "retrying",
        "tests.sync",
        "builtins.ValueError",
        "folio.diku.inventory.item",
        "partition 2, offset 77",
        "2026-03-04 12:00:00",
        "k-9",
        str(row.event_id),
    ):
        assert fact in listed_text
        assert fact in text
    for fact in ("no such item", "Traceback (most recent call last): File 'x'", "6b 2d 39 ff"):
        assert fact in text


def test_a_delivery_of_a_receiver_that_is_no_more_is_marked(
    root: Client, only_test_receivers: None
) -> None:
    """Vanished is who is not registered, in list and page."""

    @receiver("inventory.item", name="tests.here")
    def here(event: object) -> None: ...

    present, gone = delivery(receiver="tests.here"), delivery(receiver="tests.gone")
    text = text_of(get(root, url(Delivery)))
    assert "tests.gone vanished" in text
    assert "tests.here vanished" not in text
    assert "vanished" in page_of(root, gone)
    assert "vanished" not in page_of(root, present)


def test_a_held_delivery_names_the_one_it_waits_for(root: Client) -> None:
    """Held is a retrying one behind an open one of its receiver, topic and key, and no other.

    When it would have been run itself says nothing then.
    """
    settled = delivery("discarded", key="k")
    dead = delivery("dead", key="k")
    delivery("retrying", key="k", receiver="tests.other")
    free = delivery("retrying", key="other", next_attempt_at=NOON)
    later = [delivery("retrying", key="k", next_attempt_at=NOON) for _ in range(2)]
    assert settled.pk < dead.pk
    html = get(root, url(Delivery))
    assert len(re.findall(">held<", html)) == 2
    for row in later:
        html = page_of(root, row)
        assert f'href="{url(Delivery, "change", dead.pk)}"' in html
        assert f"delivery {dead.pk}, the oldest open one of its key" in html
        assert "Next attempt" not in text_of(html)
    assert "Next attempt" in text_of(page_of(root, free))
    assert ">held<" not in page_of(root, dead)


def test_a_settled_delivery_names_the_one_it_waited_for(root: Client) -> None:
    """It was the oldest open one of its key when this one was recorded; others kept nobody."""
    hour = timedelta(hours=1)
    delivery("resolved", key="k", resolved_at=NOON - hour)
    first = delivery("discarded", key="k", resolved_at=NOON + hour)
    follower = delivery("resolved", key="k", resolved_at=NOON + hour)
    apart = delivery("resolved", key="other", resolved_at=NOON + hour)
    html = page_of(root, follower)
    assert f'href="{url(Delivery, "change", first.pk)}"' in html
    assert f"behind delivery {first.pk}, which was open when it was recorded" in text_of(html)
    for row in (first, apart):
        assert "was held" not in text_of(page_of(root, row)).lower()


def test_the_list_shows_what_went_wrong(root: Client) -> None:
    """Class and first line of the error, cut, escaped and without tokens."""
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkaWt1In0.c2lnbmF0dXJl"
    delivery(error=f"no <loan> of {token}\nsecond line", error_class="library.errors.NoLoan")
    delivery(error="x" * 200)
    html = get(root, url(Delivery))
    assert "library.errors.NoLoan" in html
    assert "no &lt;loan&gt; of [masked]" in html
    assert "second line" not in html
    assert "x" * 61 not in html


def test_a_delivery_whose_run_has_not_told_of_an_end_is_marked(root: Client) -> None:
    """Somebody is at it, or the process died of it."""
    row = delivery("retrying", unfinished=True)
    for html in (get(root, url(Delivery)), page_of(root, row)):
        assert "retrying unfinished" in text_of(html)


def test_a_withheld_message_is_listed_after_its_outbox_row_was_purged(root: Client) -> None:
    """What is left of it is shown without event id and type."""
    row = withheld_message("discarded", error="too large", reason="sent by mail")
    OutboxMessage.objects.all().delete()
    assert listed(root, WithheldMessage) == [row.pk]
    text = text_of(page_of(root, row))
    assert "too large" in text
    assert "sent by mail" in text
    assert "Event id" not in text


# Permissions


@pytest.mark.parametrize("make", [message, delivery, withheld_message])
def test_nobody_adds_changes_or_deletes(root: Client, make: Callable[..., Any]) -> None:
    """Not even a superuser, by page or by hand-made request."""
    row = make()
    model = type(row)
    before = model.objects.filter(pk=row.pk).values().get()
    assert root.get(url(model, "add")).status_code == 403
    assert root.post(url(model, "add"), {}).status_code == 403
    assert root.post(url(model, "change", row.pk), {"state": "resolved"}).status_code == 403
    assert root.post(url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    root.post(url(model), {"action": "delete_selected", "_selected_action": row.pk, "index": 0})
    assert model.objects.filter(pk=row.pk).values().get() == before
    assert '<input type="submit" value="Save"' not in page_of(root, row)


@pytest.mark.parametrize("make", [message, delivery, withheld_message])
def test_who_looks_needs_the_permission_to_view(make: Callable[..., Any]) -> None:
    """Members of staff without it see nothing; with it they see list and page, and no action."""
    row = make()
    model = type(row)
    pages = [url(model), url(model, "change", row.pk), url(model, "history", row.pk)]
    stranger = client_with()
    reader = client_with(f"view_{model._meta.model_name}")
    assert [stranger.get(page).status_code for page in pages] == [403, 403, 403]
    assert [reader.get(page).status_code for page in pages] == [200, 200, 200]
    for page in pages[:2]:
        assert 'name="action"' not in get(reader, page)


@pytest.mark.parametrize(
    ("make", "action"),
    [
        (delivery, "retry"),
        (delivery, "discard"),
        (withheld_message, "release"),
        (withheld_message, "discard"),
    ],
)
def test_each_action_needs_its_own_permission(make: Callable[..., Any], action: str) -> None:
    """Without it the action is neither offered nor done; with it, it alone is offered."""
    row = make()
    model = type(row)
    name = model._meta.model_name
    others = {"retry", "release", "discard"} - {action}
    reader = client_with(f"view_{name}", *(f"{o}_{name}" for o in others & set(_actions(model))))
    settler = client_with(f"view_{name}", f"{action}_{name}")
    before = states(row)
    act(reader, action, [row], reason="because", ids=str(row.pk))
    assert states(row) == before
    for page in (url(model), url(model, "change", row.pk)):
        assert f'value="{action}"' not in get(reader, page)
        assert f'value="{action}"' in get(settler, page)
        assert not any(f'value="{other}"' in get(settler, page) for other in others)
    act(settler, action, [row], reason="because", ids=str(row.pk))
    assert states(row) != before


def _actions(model: Any) -> list[str]:
    return ["retry", "discard"] if model is Delivery else ["release", "discard"]


# Actions


def test_retry_makes_deliveries_due_and_is_logged(root: Client) -> None:
    """Dead ones run again at the next retry pass; Django's log says who asked for it."""
    rows = [delivery("dead"), delivery("dead")]
    page = act(root, "retry", rows)
    assert "2 deliveries run again at the next retry pass." in text_of(page)
    assert states(*rows) == ["retrying", "retrying"]
    entries = LogEntry.objects.all()
    assert {entry.object_id for entry in entries} == {str(row.pk) for row in rows}
    assert {(e.user.get_username(), e.get_change_message()) for e in entries} == {
        ("root", "retried")
    }
    assert "retried" in get(root, url(Delivery, "history", rows[0].pk))


@pytest.mark.parametrize(
    ("rows", "action"),
    [
        (lambda: [delivery("dead"), delivery("resolved")], "retry"),
        (lambda: [delivery("dead"), delivery("discarded")], "discard"),
        (lambda: [withheld_message("refused"), withheld_message("published")], "release"),
        (lambda: [withheld_message("refused"), withheld_message("waiting")], "discard"),
    ],
    ids=["retry delivery", "discard delivery", "release message", "discard message"],
)
def test_an_action_that_does_not_fit_the_state_says_so_and_does_nothing(
    root: Client, rows: Callable[[], list[Any]], action: str
) -> None:
    """One row that cannot be settled keeps all of the choice as it was."""
    chosen = rows()
    before = states(*chosen)
    page = act(root, action, chosen)
    if action == "discard":
        page = confirm(root, page, "because", type(chosen[0]))
    assert '<li class="error">' in page
    assert f" {chosen[1].pk} is {before[1]}; only" in page
    assert states(*chosen) == before
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize(("make", "action"), [(delivery, "retry"), (withheld_message, "release")])
def test_to_settle_many_takes_few_statements_and_reads_no_payload(
    root: Client, make: Callable[[], Any], action: str
) -> None:
    """Forty rows cost as many statements as two, log entries included."""
    rows = [make() for _ in range(42)]
    act(root, action, [make()])
    with CaptureQueriesContext(connection) as few:
        act(root, action, rows[:2])
    with CaptureQueriesContext(connection) as many:
        act(root, action, rows[2:])
    assert len(many) == len(few)
    assert not any("payload" in query["sql"] for query in many)


@pytest.mark.parametrize("make", [delivery, withheld_message])
def test_discard_asks_for_a_reason_and_keeps_it(root: Client, make: Callable[[], Any]) -> None:
    """Nothing happens before a reason is given; it is kept with the row and in the log."""
    row = make()
    before = states(row)
    page = act(root, "discard", [row])
    assert str(row) in unescape(page)
    page = confirm(root, page, "  ", type(row))
    assert "This field is required." in page
    assert states(row) == before
    page = confirm(root, page, "sent by mail", type(row))
    assert "Discarded: 1." in page
    row.refresh_from_db()
    assert (row.state, row.reason) == ("discarded", "sent by mail")
    assert LogEntry.objects.get().get_change_message() == "discarded: sent by mail"


def test_discard_takes_what_was_chosen_and_nothing_that_came_since(root: Client) -> None:
    """A choice across all pages is the one that the confirmation showed."""
    rows = [delivery("dead", receiver="tests.gone") for _ in range(130)]
    other = delivery("dead", receiver="tests.other")
    address = f"{url(Delivery)}?receiver=tests.gone"
    page = root.post(
        address,
        {"action": "discard", "index": 0, "select_across": 1, "_selected_action": rows[0].pk},
    ).content.decode()
    assert "Discard 130 deliveries" in page
    assert "and 110 more" in page
    since = delivery("dead", receiver="tests.gone")
    assert "Discarded: 130." in confirm(root, page, "the receiver is gone", Delivery)
    assert Delivery.objects.filter(state="discarded").count() == 130
    assert states(since, other) == ["dead", "dead"]


def test_ids_that_are_none_are_refused(root: Client) -> None:
    """A hand-made confirmation discards nothing and breaks nothing."""
    row = delivery("dead")
    assert "Not a list of ids." in act(root, "discard", [row], reason="x", ids="1 OR 1=1")
    assert states(row) == ["dead"]


def test_release_has_refused_messages_tried_again(root: Client) -> None:
    """A refused message waits for the next drain, and the log says who released it."""
    row = withheld_message("refused")
    page = act(root, "release", [row])
    assert "1 message is tried again by the next drain." in text_of(page)
    assert states(row) == ["waiting"]
    assert LogEntry.objects.get().get_change_message() == "released"


@pytest.mark.parametrize(
    ("row", "buttons"),
    [
        (lambda: delivery("dead"), ["retry", "discard"]),
        (lambda: delivery("retrying"), ["retry", "discard"]),
        (lambda: delivery("resolved"), []),
        (lambda: withheld_message("refused"), ["release", "discard"]),
        (lambda: withheld_message("waiting"), []),
    ],
    ids=["dead", "retrying", "resolved", "refused", "waiting"],
)
def test_an_open_row_has_buttons_on_its_page(
    root: Client, row: Callable[[], Any], buttons: list[str]
) -> None:
    """They send what the list would send for this row alone, and lead back to it."""
    one = row()
    forms = re.findall(r"<form[^>]*folio-events-settle.*?</form>", page_of(root, one), re.DOTALL)
    sent = [
        dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', f)) for f in forms
    ]
    assert [fields["action"] for fields in sent] == buttons
    if buttons:
        response = root.post(url(type(one)), sent[0], follow=True)
        assert '<li class="success">' in response.content.decode()
        assert response.redirect_chain[-1][0] == url(type(one), "change", one.pk)


def test_a_thousands_separator_does_not_reach_links_and_forms(root: Client, settings: Any) -> None:
    """Numbers in addresses and forms are bare, and pages go on, where numbers are grouped."""
    settings.USE_THOUSAND_SEPARATOR = True
    row, held = delivery("dead", pk=1_234_567, key="k"), delivery("retrying", pk=1_234_568, key="k")
    assert url(Delivery, "change", row.pk) in page_of(root, held)
    page = confirm(root, act(root, "discard", [row]), "because", Delivery)
    assert "Discarded: 1." in page
    assert f'value="{held.pk}"' in page_of(root, held)


# Around


class _Inline(HTMLParser):
    """Finds what a strict content security policy would stop."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _value in attrs}
        if tag == "style" or (tag == "script" and "src" not in names):
            self.found.append(tag)
        self.found += [n for n in names if n == "style" or n.startswith("on")]


def test_no_page_needs_inline_scripts_or_styles(root: Client) -> None:
    """All pages work under a policy that takes scripts and styles from this site only."""
    row, aside, failed = published(message()), withheld_message(), delivery()
    pages = [get(root, url(type(one))) for one in (row, aside, failed)]
    pages += [page_of(root, one) for one in (row, aside, failed)]
    pages += [act(root, "discard", [one]) for one in (aside, failed)]
    for html in pages:
        parser = _Inline()
        parser.feed(html)
        assert parser.found == []
        assert "folio_events/admin.css" in html


def test_an_open_breaker_is_listed(root: Client) -> None:
    """With how often its receiver failed in a row."""
    ReceiverState.objects.create(receiver="well", updated_at=NOON)
    ReceiverState.objects.create(
        receiver="ill", failures=7, opened_at=NOON, probe_at=NOON, updated_at=NOON
    )
    text = text_of(get(root, url(ReceiverState)))
    assert "ill open 7" in text
    assert "well closed 0" in text


def test_positions_of_relay_and_consumers_are_listed(root: Client) -> None:
    """Where the cursor stands, and each group in each partition."""
    RelayCursor.objects.create(position=4321, version=1, updated_at=NOON)
    ConsumerOffset.objects.create(
        group="orders", topic="folio.x", partition=3, database="default", offset=98, updated_at=NOON
    )
    assert "4321" in text_of(get(root, url(RelayCursor)))
    assert "orders folio.x 3 98 default" in text_of(get(root, url(ConsumerOffset)))
    assert root.get(url(ConsumerOffset), {"group": "orders"}).status_code == 200


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("model_admin", "query"),
    [
        (model_admin, query)
        for model_admin in (OutboxMessageAdmin, DeliveryAdmin)
        for query in ({}, {"q": str(uuid.uuid4())}, {"q": "a key"})
    ]
    + [
        (OutboxMessageAdmin, {"progress": "waiting"}),
        (OutboxMessageAdmin, {"progress": "published"}),
    ],
)
def test_lists_and_search_read_by_index(root: Client, model_admin: Any, query: Any) -> None:
    """Neither a page nor a search reads the whole table."""
    model = OutboxMessage if model_admin is OutboxMessageAdmin else Delivery
    fill(model)
    request = RequestFactory().get("/", query)
    request.user = User.objects.get(username="root")
    rows = model_admin(model, admin.site).get_changelist_instance(request).queryset
    plan = rows[:101].explain()
    assert f"Seq Scan on {model._meta.db_table}" not in plan, plan


def fill(model: Any) -> None:
    """Twenty thousand rows, all but the last ten published, and fresh statistics."""
    one = published(message()) if model is OutboxMessage else delivery("resolved")
    own = {"id", "event_id", "key"}
    columns = ", ".join(f'"{f.column}"' for f in model._meta.concrete_fields if f.name not in own)
    table = model._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (event_id, key, {columns}) "
            f"SELECT gen_random_uuid(), gen_random_uuid()::text, {columns} "
            f"FROM {table}, generate_series(1, 20000) WHERE id = {one.pk}"
        )
        if model is OutboxMessage:
            cursor.execute(
                'INSERT INTO folio_events_publication (outbox_message_id, topic, partition, "offset", published_at) '
                f"SELECT id, topic, 0, id, occurred_at FROM {table} WHERE id > {one.pk} ORDER BY id LIMIT 19990"
            )
            last = Publication.objects.latest("pk").pk
            RelayCursor.objects.create(position=last, version=1, updated_at=NOON)
        for name in (table, "folio_events_publication", "folio_events_withheldmessage"):
            cursor.execute(f"ANALYZE {name}")
