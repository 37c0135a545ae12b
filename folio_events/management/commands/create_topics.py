"""``create_topics``: create the topics of this project that do not exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage
from django.core.management.base import BaseCommand, CommandError, CommandParser

from folio_events import topics
from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.conf import get_settings
from folio_events.declarations import events
from folio_events.exceptions import BrokerError
from folio_events.receivers import registry


class Command(BaseCommand):
    help = "Create the topics that this project's models and receivers name. A second run changes nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--tenant", action="append", help="may be repeated; needed where tenancy is on"
        )
        parser.add_argument("--check", action="store_true", help="only list what is missing")

    def handle(self, *_args: Any, **options: Any) -> None:
        settings = get_settings()
        tenants: list[str | None] = options["tenant"] or [None]
        if settings.TENANCY is not None and not settings.TENANT_COLLECTION and tenants == [None]:
            raise CommandError("Tenancy is on: name the tenants with --tenant.")
        listened = {receiver.topic for receiver in registry if "*" not in receiver.topic}
        names = {
            topics.wire_topic(topic, tenant)
            for topic in {*events.topics(), *listened}
            for tenant in tenants
        }
        broker = get_broker()
        try:
            missing = broker.missing_topics(names)
            if options["check"]:
                for name in sorted(missing):
                    self.stdout.write(name)
                self._warn(broker.check_topics(names - missing))
                if missing:
                    raise CommandError(f"{len(missing)} of {len(names)} topics are missing.")
                return
            specs = [
                TopicSpec(name, settings.TOPIC_PARTITIONS, settings.TOPIC_REPLICATION)
                for name in sorted(missing)
            ]
            created = broker.create_topics(specs)
            self._warn(broker.check_topics(names))
        except BrokerError as error:
            raise CommandError(f"{type(error).__name__}: {error}") from error
        for name in sorted(created):
            self.stdout.write(f"created {name}")
        self.stdout.write(f"{len(names)} topics, {len(created)} created")

    def _warn(self, found: Iterable[CheckMessage]) -> None:
        for warning in found:
            self.stderr.write(self.style.WARNING(f"({warning.id}) {warning.msg} {warning.hint}"))
