"""Dead letters as an operator repairs them: real browsers, strict policy, light, dark and narrow.

With ADMIN_IMAGES=docs/images the pictures are kept there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from folio_events import Event, RejectEvent
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import BulkAction, Delivery
from folio_events.redelivery import retry_due
from tests.browser import Browser, has_browser
from tests.note_topic import NoteTopic, effects, note_receiver

pytest_plugins = ("tests.browser_site",)
pytestmark = has_browser


def announce(event: Event) -> None:
    if event.payload.get("copies", 0) < 0:
        raise RejectEvent(f"{event.payload['copies']} copies of note {event.payload['number']}")


def index(event: Event) -> None:
    raise ConnectionError(f"https://search/notes/{event.payload['number']}: 503")


@pytest.fixture
def letters(site: str, memory_broker: MemoryBroker, only_test_receivers: None) -> NoteTopic:
    """Twelve pages that an index refused, two notes that were rejected, and one that is none."""
    notes = NoteTopic(memory_broker)
    note_receiver("library.loans.announce", announce)
    note_receiver("library.search.index", index, order="none", types=["page"])
    for number in range(12):
        notes.put(f"page-{number}", number, type="page")
    for number in (20, 21):
        notes.put(f"note-{number}", number, data={"copies": -number})
    for number in (22, 23):
        notes.put("note-20", number)
    notes.put_raw(b'{"number": 30', b"note-30")
    notes.consume()
    Delivery.objects.filter(receiver="library.search.index").update(
        state="dead", next_attempt_at=None, attempts=5
    )
    return notes


@pytest.fixture
def second(browser: Browser) -> Iterator[Browser]:
    """Another person's browser."""
    other = Browser(int(browser.address.split(":")[2].split("/")[0]))
    yield other
    other.call("DELETE", "")


def log_in(browser: Browser, url: str, name: str = "operator") -> None:
    """Open a page as a new superuser."""
    client = Client()
    client.force_login(User.objects.create_superuser(name))
    browser.open(url)
    browser.run(f"document.cookie = 'sessionid={client.cookies['sessionid'].value}; path=/'")
    browser.open(url)


def keep(name: str, browser: Browser) -> None:
    image = browser.image()
    if folder := os.environ.get("ADMIN_IMAGES"):
        (Path(folder) / f"{name}.png").write_bytes(image)


def replace_in(browser: Browser, field: str, old: str, new: str) -> None:
    """Change a word in a text field, as somebody who types."""
    browser.run(
        f"(function () {{ const field = document.getElementById('{field}');"
        f" field.value = field.value.replace({old!r}, {new!r}); }})()"
    )


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("dead-letters", 1280, "light"),
        ("dead-letters-dark", 1280, "dark"),
        ("dead-letters-narrow", 375, "light"),
    ],
)
def test_the_page_fits_and_obeys_the_policy(
    site: str, browser: Browser, letters: NoteTopic, name: str, width: int, scheme: str
) -> None:
    """Nothing inline, nothing from elsewhere, nothing that sticks out at the side."""
    browser.show(width=width, height=900, scheme=scheme)
    log_in(browser, f"{site}/admin/folio_events/deadletter/")
    browser.show(width=width, scheme=scheme)
    assert "16 dead letters" in browser.text()
    assert browser.run("document.documentElement.scrollWidth") <= width
    keep(name, browser)
    assert browser.complaints() == []


@pytest.mark.once
def test_an_operator_mends_a_poison_event(site: str, browser: Browser, letters: NoteTopic) -> None:
    """From the index to the cause, to the letter; edit, retry, see it resolved."""
    log_in(browser, f"{site}/admin/folio_events/")
    browser.click(".object-tools a[href$='deadletter/']")
    poison = Delivery.objects.get(key="note-30", receiver="library.loans.announce")
    # Whoever keeps the pictures need not show where things lie.
    poison.traceback = re.sub(r'"/\S*/(?=json/|folio_events/)', '"/srv/library/', poison.traceback)
    poison.save()
    browser.click(
        f".folio-events-causes a[href$='fingerprint={poison.fingerprint}&state__exact=dead']"
    )
    browser.click("#result_list tbody th a")
    assert "the body is no JSON" in browser.text()
    browser.click(".folio-events-edit-link")
    browser.type("#id_reason", "the brace was missing")
    replace_in(browser, "id_payload", '"number": 30', '"number": 30]')
    browser.click("input[name=retry]")
    assert "Not saved, this is no event: the body is no JSON." in browser.text()
    replace_in(browser, "id_payload", '"number": 30]', '"number": 30}')
    browser.show(width=1280)
    keep("edit-a-message", browser)
    browser.click("input[name=retry]")
    assert "Changed: payload. It runs at the next retry pass." in browser.text()
    browser.show(width=1280)
    keep("edited-delivery", browser)
    assert retry_due(receivers=["library.loans.announce"]).resolved == 1
    browser.open(f"{site}/admin/folio_events/delivery/{poison.pk}/change/")
    assert "RESOLVED" in browser.text().upper()
    assert 30 in effects("library.loans.announce")
    browser.open(f"{site}/admin/folio_events/delivery/{poison.pk}/history/")
    assert "edited payload: the brace was missing" in browser.text()
    assert browser.complaints() == []


def test_two_people_retry_the_same_letter_and_it_runs_once(
    site: str, browser: Browser, second: Browser, letters: NoteTopic
) -> None:
    """Both press the button at once; then one of them looks again, and the button is gone."""
    letter = Delivery.objects.get(key="note-21")
    page = f"{site}/admin/folio_events/delivery/{letter.pk}/change/"
    people = {"ann": browser, "bob": second}
    for name, theirs in people.items():
        log_in(theirs, page, name)
    Delivery.objects.filter(pk=letter.pk).update(
        payload=bytes(letter.payload or b"").replace(b"-21", b"21")
    )
    button = ".folio-events-settle:has([value=retry]) button"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda theirs: theirs.click(button), people.values()))
    passed = retry_due(receivers=["library.loans.announce"])
    assert passed.resolved == 1
    assert effects("library.loans.announce").count(21) == 1
    assert retry_due(receivers=["library.loans.announce"]).resolved == 0
    who = LogEntry.objects.filter(object_id=str(letter.pk)).values_list("user__username", flat=True)
    assert sorted(who) == ["ann", "bob"]
    browser.open(page)
    assert not browser.run(f"document.querySelector({button!r})")
    assert browser.complaints() + second.complaints() == []


def test_two_people_retry_a_whole_cause_and_follow_it(
    site: str, browser: Browser, second: Browser, letters: NoteTopic
) -> None:
    """One bulk action comes of it, whose page follows the retry pass and can be stopped."""
    home = f"{site}/admin/folio_events/deadletter/"
    for name, theirs in {"ann": browser, "bob": second}.items():
        log_in(theirs, f"{home}?receiver=library.search.index&error=builtins.ConnectionError", name)
        theirs.click(".folio-events-causes tbody .folio-events-act[href*='retry']")
        assert "12 dead letters match." in theirs.text()
        theirs.type("#id_reason", "the index is up again")
        theirs.type("#id_rate", "0.5")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda theirs: theirs.click("input[type=submit]"), (browser, second)))
    bulk = BulkAction.objects.get()
    assert (bulk.total, bulk.state) == (12, "running")
    for theirs in (browser, second):
        assert "0 of 12" in theirs.text()
    retry_due(receivers=["library.loans.announce"])
    browser.wait_until(lambda: "5 of 12" in browser.text())
    browser.show(width=1280)
    keep("bulk-action", browser)
    second.click(".folio-events-settle button")
    assert "It is cancelled." in second.text()
    assert (
        Delivery.objects.filter(state="dead", error_class="builtins.ConnectionError").count() == 7
    )
    assert browser.complaints() + second.complaints() == []
