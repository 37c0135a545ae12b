"""The admin as a person uses it: a real browser, a strict content security policy."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from pytest_django.live_server_helper import LiveServer

from folio_events.encoding import dump
from folio_events.models import Delivery

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Chromium: apt-get install chromium chromium-driver",
)

HOSTILE = "</pre><script>document.title = 'taken over'</script><img src=x onerror=alert(1)>"


class Browser:
    """A headless Chromium, spoken to in the words of the W3C's WebDriver protocol."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        options = {
            "goog:chromeOptions": {"args": ["--headless=new", "--no-sandbox", "--disable-gpu"]},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self.call("POST", "/session", capabilities={"alwaysMatch": options})
        self.address += f"/session/{session['sessionId']}"

    def call(self, method: str, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self.address + path,
            method=method,
            data=json.dumps(body).encode() if method == "POST" else None,
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        self.call("POST", "/url", url=url)

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", script=f"return {script}", args=[])

    def _element(self, css: str) -> str:
        (element,) = self.call("POST", "/element", using="css selector", value=css).values()
        return f"/element/{element}"

    def click(self, css: str) -> None:
        """Press what leads to another page, and wait for that page."""
        self.run("document.leaving = true")
        self.call("POST", f"{self._element(css)}/click")
        self.wait_until(lambda: self.run("!document.leaving && document.readyState === 'complete'"))

    def choose(self, css: str) -> None:
        self.call("POST", f"{self._element(css)}/click")

    def type(self, css: str, text: str) -> None:
        self.call("POST", f"{self._element(css)}/value", text=text)

    def text(self) -> str:
        return str(self.run("document.body.innerText"))

    def complaints(self) -> list[str]:
        """What the browser logged since it was last asked."""
        return [
            entry["message"]
            for entry in self.call("POST", "/se/log", type="browser")
            if "favicon.ico" not in entry["message"]
        ]

    @staticmethod
    def wait_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def strict_policy(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Middleware: scripts, styles and everything else from this site's files only."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'"
        return response

    return respond


@pytest.fixture
def site(transactional_db: None, settings: Any) -> Iterator[str]:
    """The address of a site that serves its static files, under the policy."""
    settings.INSTALLED_APPS = [*django_settings.INSTALLED_APPS, "django.contrib.staticfiles"]
    settings.MIDDLEWARE = [
        f"{__name__}.strict_policy",
        *django_settings.MIDDLEWARE,
        "django.middleware.csrf.CsrfViewMiddleware",
    ]
    server = LiveServer("localhost")
    yield server.url
    server.stop()


@pytest.fixture
def browser() -> Iterator[Browser]:
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        started = next(line for line in driver.stdout if "successfully on port" in line)
        found = re.search(r"on port (\d+)", started)
        assert found is not None
        browser = Browser(int(found[1]))
        try:
            yield browser
        finally:
            browser.call("DELETE", "")
            driver.terminate()


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
