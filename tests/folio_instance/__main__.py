"""Publishes notes of some tenants: ``python -m tests.folio_instance COUNT TENANT...``."""

from __future__ import annotations

import sys

import django


def main(count: int, tenants: list[str]) -> None:
    django.setup()
    from django.db import transaction

    from folio_events import publish, tenant_context

    for tenant in tenants:
        with tenant_context(tenant), transaction.atomic():
            for number in range(count):
                publish("library.note", key=f"{tenant}-{number}", payload={"number": number})


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
