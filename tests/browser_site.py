"""A site under a strict content security policy, and a browser that looks at it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.http import HttpRequest, HttpResponse
from pytest_django.live_server_helper import LiveServer

from tests.browser import Browser


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
