"""Who is called back: python -m tests.bench.subscriber PORT."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import django


class Callback(BaseHTTPRequestHandler):
    """A subscriber that writes the same one row, or nothing, and answers 204."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/row":
            from django.db import connection

            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO bench_effect (event_id, key) VALUES (gen_random_uuid(), %s)",
                    [body["id"]],
                )
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    django.setup()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Callback).serve_forever()
