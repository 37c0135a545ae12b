"""A real browser."""

from __future__ import annotations

import base64
import json
import shutil
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

has_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Chromium: apt-get install chromium chromium-driver",
)


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

    def show(self, *, width: int, height: int = 0, scheme: str = "light") -> None:
        """Take on a size and a colour scheme; height 0: that of the whole page."""
        self._devtools(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        for tall in (height or 800, height or 0):
            size = tall or self.run("document.documentElement.scrollHeight")
            self._devtools(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=size, deviceScaleFactor=1, mobile=False,
            )  # fmt: skip

    def image(self) -> bytes:
        """What is shown, as PNG."""
        return base64.b64decode(self.call("GET", "/screenshot"))

    def _devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=parameters)

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
