"""``topic_report``: topics and partitions now, one per tenant, and under a tenant collection."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandParser

from folio_events.management.command import EventsCommand
from folio_events.operations.topic_report import Size, topic_report


class Command(EventsCommand):
    help = (
        "Count this project's topics, partitions and replicas on the broker, and what they would "
        "be with topics for each tenant and under a tenant collection."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--tenant",
            action="append",
            default=[],
            help="reckon for this tenant too; may be repeated",
        )
        parser.add_argument("--json", action="store_true", help="the result as JSON")

    def handle(self, *_args: Any, **options: Any) -> None:
        report = topic_report(tenants=options["tenant"])
        if options["json"]:
            self.stdout.write(json.dumps(report.as_dict(), indent=2))
            return
        self._write("", "topics", "partitions", "replicas", "files")
        for name, size in report.by_topic.items():
            self._size(f"topic {name}", size)
        for name, size in report.by_tenant.items():
            self._size(f"tenant {name}" if name else "without tenant", size)
        self._size("now", report.now)
        self._size(f"one for each of {len(report.tenants)} tenants", report.per_tenant)
        self._size("under a tenant collection", report.collection)

    def _size(self, what: str, size: Size) -> None:
        self._write(what, size.topics, size.partitions, size.replicas, size.files)

    def _write(self, what: str, *cells: object) -> None:
        self.stdout.write(f"{what:<44}" + "".join(f"{cell:>12}" for cell in cells))
