"""The admin as a person uses it: a real browser, a strict content security policy."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from folio_events.encoding import dump
from folio_events.models import Delivery
from tests.browser import Browser, has_browser

pytest_plugins = ("tests.browser_site",)
pytestmark = [has_browser, pytest.mark.once]

HOSTILE = "</pre><script>document.title = 'taken over'</script><img src=x onerror=alert(1)>"


def dead_letter(**values: Any) -> Delivery:
    return Delivery.objects.create(
        receiver="tests.gone",
        group="tests",
        event_id=uuid.uuid4(),
        state="dead",
        order="key",
        attempts=5,
        topic="folio.diku.inventory.item",
        partition=0,
        offset=1,
        headers=b"[]",
        published_at=timezone.now(),
        created_at=timezone.now(),
        **values,
    )


def test_an_operator_finds_a_dead_letter_and_discards_it(site: str, browser: Browser) -> None:
    """Log in, see the coloured state, look at a hostile case, give the reason, read the log."""
    User.objects.create_superuser("operator", password="a good one")
    row = dead_letter(key=HOSTILE, payload=dump({"x": HOSTILE}), traceback=HOSTILE, error=HOSTILE)
    dead_letter(key="other", payload=b"\xff")

    browser.open(f"{site}/admin/folio_events/delivery/")
    browser.type("#id_username", "operator")
    browser.type("#id_password", "a good one")
    browser.click("input[type=submit]")
    badge = "document.querySelector('.folio-events-bad')"
    assert browser.run(f"getComputedStyle({badge}).backgroundColor") == "rgb(183, 28, 28)"
    assert HOSTILE[:50] in browser.text()

    browser.type("#searchbar", str(row.event_id))
    browser.click("#changelist-search input[type=submit]")
    browser.click("#result_list tbody th a")
    assert browser.text().count(HOSTILE) >= 3
    assert "taken over" not in browser.run("document.title")

    browser.click(".folio-events-settle:has([value=discard]) button")
    assert "Discard 1 delivery" in browser.text()
    browser.type("#id_reason", "the receiver is gone")
    browser.click("input[type=submit]")
    assert "Discarded: 1." in browser.text()
    row.refresh_from_db()
    assert (row.state, row.reason) == ("discarded", "the receiver is gone")

    browser.open(f"{site}/admin/folio_events/delivery/{row.pk}/history/")
    assert "discarded: the receiver is gone" in browser.text()
    assert browser.complaints() == []


def test_an_operator_retries_all_pages_of_a_list(site: str, browser: Browser) -> None:
    """The choice across pages that the list offers reaches rows of other pages."""
    User.objects.create_superuser("operator", password="a good one")
    for number in range(101):
        dead_letter(key=str(number))
    browser.open(f"{site}/admin/folio_events/delivery/?receiver=tests.gone")
    browser.type("#id_username", "operator")
    browser.type("#id_password", "a good one")
    browser.click("input[type=submit]")
    browser.choose("#action-toggle")
    browser.choose(".actions .question a")
    browser.choose("select[name=action] option[value=retry]")
    browser.click("button[name=index]")
    assert "101 deliveries run again" in browser.text()
    assert Delivery.objects.filter(state="retrying").count() == 101
    assert browser.complaints() == []
