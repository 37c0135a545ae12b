"""Orphans in the admin: shown without secrets, assigned and discarded by who may."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from folio_events.message import encode_headers
from folio_events.models import Delivery, Orphan
from folio_events.receivers import receiver
from tests.integration.test_admin import (
    HOSTILE,
    TOKEN,
    act,
    client_with,
    confirm,
    get,
    listed,
    page_of,
    root,
    text_of,
    url,
)

__all__ = ["root"]

pytestmark = pytest.mark.django_db
NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _tenancy(folio_events: Callable[..., None], only_test_receivers: None) -> None:
    folio_events(TENANCY="folio")
    receiver("library.note", name="notes")(print)


def orphan(offset: int = 0, **values: Any) -> Orphan:
    """A message that names two tenants."""
    values.setdefault("key", "k-1")
    values.setdefault("payload", b'{"barcode": "123"}')
    values.setdefault("headers", encode_headers([("folio.tenantId", b"diku")]))
    values.setdefault("error", "It names several tenants.")
    return Orphan.objects.create(
        topic="folio.ALL.library.note",
        partition=2,
        offset=offset,
        fault="disagreeing",
        published_at=NOON,
        found_at=NOON,
        **values,
    )


def assign(client: Client, page: str, tenant: str) -> str:
    """Fill in the page that asks for the tenant, and send what its form holds."""
    fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page))
    response = client.post(url(Orphan), {**fields, "tenant": tenant}, follow=True)
    assert response.status_code == 200
    return str(response.content.decode())


def test_an_orphan_shows_why_it_is_one_and_what_it_holds(root: Client) -> None:
    """List and page; found by its key."""
    row = orphan(offset=77)
    for html in (get(root, url(Orphan)), page_of(root, row)):
        for fact in ("open", "several tenants", "folio.ALL.library.note", "partition 2, offset 77"):
            assert fact in text_of(html)
    assert '"barcode": "123"' in text_of(page_of(root, row))
    assert listed(root, Orphan, q="k-1") == [row.pk]
    assert listed(root, Orphan, q="00000000-0000-0000-0000-000000000001") == []


def test_tokens_are_masked_and_hostile_text_is_escaped(root: Client) -> None:
    """In headers, body, key and error."""
    row = orphan(
        key=HOSTILE,
        error=HOSTILE,
        payload=f'{{"token": "{TOKEN}", "name": "<script>"}}'.encode(),
        headers=encode_headers([("X-Okapi-Token", TOKEN.encode()), (HOSTILE, b"<script>")]),
    )
    for html in (get(root, url(Orphan)), page_of(root, row)):
        assert TOKEN not in html
        assert "<script>alert" not in html
        assert "<script>" not in re.sub(r"<script [^>]*src=[^>]*>", "", html)


def test_an_orphan_is_assigned_to_the_tenant_that_is_named(root: Client) -> None:
    """Its delivery runs at the next retry pass, and the log names who did it."""
    first, second = orphan(0), orphan(1)
    page = act(root, "assign", [first, second])
    said = text_of(assign(root, page, "diku"))
    assert "2 orphans run as diku at the next retry pass." in said
    assert set(Orphan.objects.values_list("state", "tenant")) == {("assigned", "diku")}
    assert [delivery.tenant for delivery in Delivery.objects.all()] == ["diku", "diku"]
    assert {entry.change_message for entry in LogEntry.objects.all()} == {"assigned to tenant diku"}


def test_a_name_that_is_no_tenants_is_asked_for_again(root: Client) -> None:
    """The rows stay chosen."""
    row = orphan()
    page = assign(root, act(root, "assign", [row]), "two words")
    assert "Letters, digits" in text_of(page)
    assert "1 orphan runs as diku" in text_of(assign(root, page, "diku"))


def test_an_orphan_is_discarded_with_a_reason(root: Client) -> None:
    """And shows it."""
    row = orphan()
    confirm(root, act(root, "discard", [row]), "a load test", Orphan)
    assert "a load test" in text_of(page_of(root, row))
    assert not Delivery.objects.exists()


def test_a_settled_orphan_is_refused_in_words(root: Client) -> None:
    """Nothing happens to it."""
    row = orphan(state="discarded", resolved_at=NOON)
    said = text_of(assign(root, act(root, "assign", [row]), "diku"))
    assert "is discarded; only open ones can be assigned" in said
    assert not Delivery.objects.exists()


@pytest.mark.parametrize("action", ["assign", "discard"])
def test_each_action_has_a_permission_of_its_own(action: str) -> None:
    """Who has the other one's is not offered it, and cannot ask for it by hand."""
    row = orphan()
    other = {"assign": "discard", "discard": "assign"}[action]
    allowed = client_with("view_orphan", f"{action}_orphan")
    refused = client_with("view_orphan", f"{other}_orphan")
    assert f'value="{action}"' in page_of(allowed, row)
    assert f'value="{action}"' not in page_of(refused, row)
    act(refused, action, [row], reason="r", tenant="diku", ids=str(row.pk))
    row.refresh_from_db()
    assert row.state == "open"
