"""A client of the library's HTTP interface that keeps its connections open."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from typing import Any

from sample_project.demo.progress import DemoError

_TIMEOUT = 60.0
#: runserver sends headers and body apart and waits for the first to be acknowledged, which
#: a system left to itself puts off for 40 ms. Linux alone can be asked not to.
_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)


class LibraryClient:
    """Talks to the site; each thread has a connection of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._local = threading.local()

    def is_up(self) -> bool:
        try:
            self._send("GET", "/admin/login/", None, {})
        except OSError:
            return False
        return True

    def get(self, tenant: str, path: str) -> dict[str, Any]:
        return self._call("GET", tenant, path, None)

    def post(self, tenant: str, path: str, record: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", tenant, path, record)

    def edit(self, tenant: str, path: str, **changes: Any) -> dict[str, Any]:
        """Change fields of a record as FOLIO's user interface does: read it, put it back whole."""
        record = self.get(tenant, path)
        return self._call("PUT", tenant, path, {**record, **changes})

    def _call(
        self, method: str, tenant: str, path: str, record: dict[str, Any] | None
    ) -> dict[str, Any]:
        status, body = self._send(method, path, record, {"X-Okapi-Tenant": tenant})
        if status >= http.client.BAD_REQUEST:
            raise DemoError(f"{method} {path} was answered with {status}: {body[:500]!r}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def _send(
        self, method: str, path: str, record: dict[str, Any] | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT)
            self._local.connection = connection
        body = None if record is None else json.dumps(record).encode()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            if _QUICK_ACK is not None and connection.sock is not None:
                connection.sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            self._local.connection = None
            raise
