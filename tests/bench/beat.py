"""Runs the Celery task once a second, as beat and a worker would."""

from __future__ import annotations

import time

import django


def main() -> None:
    django.setup()
    from folio_events.tasks import relay_events

    tick = time.monotonic()
    while True:
        relay_events()
        tick += 1
        time.sleep(max(tick - time.monotonic(), 0))


if __name__ == "__main__":
    main()
