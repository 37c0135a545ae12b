"""A message is mended by what the schema says of it: a real browser, strict policy, dark and narrow.

With ADMIN_IMAGES=docs/images the picture is kept there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client

from folio_events import Event
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import Delivery
from tests.browser import Browser, has_browser
from tests.note_topic import NoteTopic, note_receiver

pytest_plugins = ("tests.browser_site",)
pytestmark = [has_browser, pytest.mark.once]

NOTE = {
    "type": "object",
    "properties": {
        "number": {"type": "integer"},
        "due": {"type": "string", "format": "date"},
        "title": {"type": "string", "maxLength": 50},
    },
    "required": ["number", "due", "title"],
    "additionalProperties": False,
}


def refuse(event: Event) -> None:
    raise KeyError("due")


def test_an_operator_sees_what_is_wrong_and_that_the_edit_mends_it(
    site: str, browser: Browser, memory_broker: MemoryBroker, only_test_receivers: None
) -> None:
    """On the letter's page and while it is edited, before anything is saved."""
    notes = NoteTopic(memory_broker)
    note_receiver("library.loans.remind", refuse, schema=NOTE)
    notes.put("note-1", 1, data={"dueDate": "tomorrow", "title": 7})
    notes.consume()
    letter = Delivery.objects.get()
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    url = f"{site}/admin/folio_events/delivery/{letter.pk}/change/"
    browser.open(url)
    browser.run(f"document.cookie = 'sessionid={client.cookies['sessionid'].value}; path=/'")
    for width, scheme in ((1280, "dark"), (375, "light"), (1280, "light")):
        browser.show(width=width, height=900, scheme=scheme)
        browser.open(url)
        text = browser.text()
        for said in ("/due", "missing", "/dueDate", "not expected", "found integer"):
            assert said in text
        assert browser.run("document.documentElement.scrollWidth") <= width
    browser.click(".folio-events-edit-link")
    payload = "document.getElementById('id_payload')"
    browser.run(f'{payload}.value = {payload}.value.replace(\'"title": 7\', \'"title": "Emma"\')')
    browser.click("input[name=compare]")
    assert "/dueDate" in browser.text()
    assert "found integer" not in browser.text()
    if folder := os.environ.get("ADMIN_IMAGES"):
        browser.show(width=1280)
        (Path(folder) / "against-the-schema.png").write_bytes(browser.image())
    mended = "replace('dueDate', 'due').replace('tomorrow', '2026-12-01')"
    browser.run(f"{payload}.value = {payload}.value.{mended}")
    browser.click("input[name=compare]")
    assert "The payload fits." in browser.text()
    assert browser.complaints() == []
    letter.refresh_from_db()
    assert letter.edited_at is None
