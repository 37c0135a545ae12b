"""A client process that writes captured rows when it is told to, one order a line of stdin."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import django
from django.conf import settings
from django.db import transaction


def write_one(number: int) -> None:
    from tests.bench.models import CapturedItem

    with transaction.atomic():
        CapturedItem(
            title=f"volume {number}",
            barcode="326547658598",
            price=Decimal("12.50"),
            catalogued_at=datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC),
        ).save()


def write(seconds: float, rate: float) -> int:
    """Write for some seconds, at a steady rate or, at rate 0, as fast as possible."""
    start = time.perf_counter()
    count = 0
    while (now := time.perf_counter() - start) < seconds:
        ahead = count / rate - now if rate else 0
        if ahead > 0:
            time.sleep(min(ahead, seconds))
            continue
        write_one(count)
        count += 1
    return count


def main() -> None:
    from django.test.utils import override_settings

    django.setup()
    for text in sys.stdin:
        order: dict[str, Any] = json.loads(text)
        with override_settings(FOLIO_EVENTS={**settings.FOLIO_EVENTS, "WAKE_UP": order["wake_up"]}):
            time.sleep(order["delay"])
            count = write(order["seconds"], order["rate"])
        sys.stdout.write(f"{count}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
