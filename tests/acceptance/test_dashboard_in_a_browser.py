"""The dashboard as a person sees it: real browser, strict policy, light, dark and narrow.

With ADMIN_IMAGES=docs/images the pictures are kept there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from folio_events.models import Delivery
from tests.browser import Browser, has_browser
from tests.busy_library import furnish

pytest_plugins = ("tests.browser_site",)
pytestmark = [has_browser, pytest.mark.once]


def log_in(browser: Browser, url: str) -> None:
    User.objects.create_superuser("operator", password="a good one")
    browser.open(url)
    browser.type("#id_username", "operator")
    browser.type("#id_password", "a good one")
    browser.click("input[type=submit]")


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("dashboard", 1280, "light"),
        ("dashboard-dark", 1280, "dark"),
        ("dashboard-narrow", 375, "light"),
    ],
)
def test_the_page_fits_and_obeys_the_policy(
    site: str, browser: Browser, name: str, width: int, scheme: str
) -> None:
    """Nothing inline, nothing from elsewhere, nothing that sticks out at the side."""
    furnish()
    browser.show(width=width, height=900, scheme=scheme)
    log_in(browser, f"{site}/admin/folio_events/dashboard/")
    browser.show(width=width, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    keep(name, browser)
    assert browser.complaints() == []


def keep(name: str, browser: Browser) -> None:
    image = browser.image()
    if folder := os.environ.get("ADMIN_IMAGES"):
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(image)


def test_an_operator_goes_from_the_index_to_the_dead_letters_of_a_receiver(
    site: str, browser: Browser
) -> None:
    """The admin's home says that there are some and leads on; the number leads to their list."""
    furnish()
    browser.show(width=1280, height=900)
    log_in(browser, f"{site}/admin/")
    assert "Dead letters (3)" in browser.text()
    keep("home", browser)
    browser.click("#content-main a[href$='folio_events/dashboard/']")
    assert browser.run("document.querySelector('#nav-sidebar .current-model a').innerText") == (
        "Dashboard"
    )
    browser.click(".folio-events-tile a[href$='deadletter/']")
    assert "By cause" in browser.text()
    browser.click(".object-tools a[href$='dashboard/']")
    browser.click("#receivers a[href*='state__exact=dead']")
    assert "3" in browser.text()
    assert browser.run("document.querySelectorAll('#result_list tbody tr').length") == 3
    browser.click(".object-tools a[href$='dashboard/']")
    browser.click(".object-tools a[href$='catalogue/']")
    assert "inventory.item" in browser.text()
    browser.show(width=1280)
    keep("catalogue", browser)
    assert browser.complaints() == []


def test_the_page_refreshes_itself_and_keeps_what_is_open(site: str, browser: Browser) -> None:
    """A dead letter more is shown without a click; the numbers that were unfolded stay so."""
    furnish()
    log_in(browser, f"{site}/admin/folio_events/dashboard/")
    browser.choose("#hour-numbers summary")
    Delivery.objects.update(state="dead")
    dead = "document.querySelectorAll('.folio-events-tile-number')[3].textContent"
    assert browser.run(dead) == "3"
    # As when somebody comes back to the page; the next refresh would be five seconds away.
    browser.run("document.dispatchEvent(new Event('visibilitychange'))")
    browser.wait_until(lambda: browser.run(dead) == "9")
    assert browser.run("document.getElementById('hour-numbers').open")
    assert browser.complaints() == []
