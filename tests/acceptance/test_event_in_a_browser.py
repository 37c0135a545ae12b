"""The page of one event as a person uses it: real browser, strict policy, light, dark and narrow.

With ADMIN_IMAGES=docs/images the pictures are kept there.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from folio_events import Event, RetryPolicy, publish
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import Attempt, Delivery
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from folio_events.tenants import CallContext, call_context
from tests.browser import Browser, has_browser
from tests.note_topic import NoteTopic, note_receiver
from tests.pages import ROOT

pytest_plugins = ("tests.browser_site",)
pytestmark = [has_browser, pytest.mark.once]

OLD = {"title": "Emma", "copies": 4, "shelf": "A 17", "note": None}
NEW = {"title": "Emma", "copies": 3, "shelf": "A 17", "note": "lent <b>twice</b>"}


def lend(event: Event) -> None:
    if event.payload["new"]["copies"] < 4:
        raise LookupError("loan 4711 is not known here")


def follow_up(event: Event) -> None:
    if event.payload["number"] == 0:
        publish("library.reminder", key=event.key, payload={"number": 9})


@pytest.fixture
def dead_letter(site: str, memory_broker: MemoryBroker, only_test_receivers: None) -> Delivery:
    """A note that one receiver handled, and another failed on twice."""
    notes = NoteTopic(memory_broker)
    note_receiver("library.loans.sync", lend, retry=RetryPolicy(attempts=2, backoff=0))
    note_receiver("library.reminders.plan", follow_up, order="none")
    context = CallContext(
        headers={"x-okapi-request-id": "204816/notes", "x-okapi-token": "opaque"},
        cause_id=uuid.uuid4(),
    )
    with call_context(context):
        for number in range(3):
            publish(
                "library.note",
                key="4711",
                payload={"number": number, "old": OLD, "new": NEW},
                dialect="inventory",
                type="UPDATE",
            )
    drain()
    notes.consume()
    Delivery.objects.update(next_attempt_at=timezone.now())
    retry_due(limit=1)
    for attempt in Attempt.objects.exclude(traceback=""):
        # Whoever keeps the pictures need not show where the project lies.
        attempt.traceback = attempt.traceback.replace(str(ROOT), "/srv/library")
        attempt.save()
    return Delivery.objects.get(state="dead")


def log_in(browser: Browser, url: str) -> None:
    User.objects.create_superuser("operator", password="a good one")
    browser.open(url)
    browser.type("#id_username", "operator")
    browser.type("#id_password", "a good one")
    browser.click("input[type=submit]")


def keep(name: str, browser: Browser) -> None:
    image = browser.image()
    if folder := os.environ.get("ADMIN_IMAGES"):
        (Path(folder) / f"{name}.png").write_bytes(image)


def test_an_operator_goes_from_a_dead_letter_to_the_event(
    site: str, browser: Browser, dead_letter: Delivery
) -> None:
    """The traceback is open, the change is visible, the one that waits is a click away."""
    log_in(browser, f"{site}/admin/folio_events/delivery/?state__exact=dead")
    browser.click("#result_list .field-key_and_event_id a")
    text = browser.text()
    assert "loan 4711 is not known here" in text
    assert "Traceback (most recent call last)" in text
    assert "lent <b>twice</b>" in text
    assert "opaque" not in text
    assert str(dead_letter.event_id) in browser.run("document.title")
    browser.show(width=1280)
    keep("event", browser)
    browser.click("a[href*='state__exact=retrying']")
    assert browser.run("document.querySelectorAll('#result_list tbody tr').length") == 2
    browser.click(".object-tools a[href$='outboxmessage/event/']")
    browser.type("input[name=q]", "204816")
    browser.choose("select[name=by] option[value=request_id]")
    browser.click(".folio-events-find button")
    assert browser.run("document.querySelectorAll('.folio-events-hits tbody tr').length") == 4
    browser.show(width=1280)
    keep("find-an-event", browser)
    browser.click(f".folio-events-hits a[href*='{dead_letter.event_id}']")
    browser.click("#folio-events-caused ~ * a[href*='/event/']")
    assert "library.reminder" in browser.text()
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("event-dark", 1280, "dark"), ("event-narrow", 375, "light")]
)
def test_the_page_fits(
    site: str, browser: Browser, dead_letter: Delivery, name: str, width: int, scheme: str
) -> None:
    """Nothing sticks out at the side, in any theme."""
    browser.show(width=width, height=900, scheme=scheme)
    page = f"/admin/folio_events/outboxmessage/event/{dead_letter.event_id}/"
    log_in(browser, f"{site}{page}")
    browser.show(width=width, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    keep(name, browser)
    assert browser.complaints() == []
