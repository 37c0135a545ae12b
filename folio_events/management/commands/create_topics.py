"""``create_topics``: create this project's topics, compare them, and change them when told to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage
from django.core.management.base import CommandError, CommandParser

from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.exceptions import MissingTenantError
from folio_events.management.command import EventsCommand
from folio_events.provisioning import (
    Drift,
    Wanted,
    alter_configs,
    compare,
    grow_partitions,
    known_tenants,
    wanted_topics,
)


class Command(EventsCommand):
    help = (
        "Create the topics that this project's models, declarations and receivers name. A second "
        "run changes nothing; topics that are there are compared, and changed only on --alter "
        "and --grow."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--tenant",
            action="append",
            default=[],
            help="whose topics; may be repeated; needed where tenancy is on",
        )
        parser.add_argument(
            "--all-tenants", action="store_true", help="those of tenants that have topics already"
        )
        parser.add_argument(
            "--check",
            action="store_true",
            help="change nothing; end with an error if a topic is missing or not as declared",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="change nothing; list what would be created and changed",
        )
        parser.add_argument(
            "--alter",
            action="store_true",
            help="set those settings of topics that are not as declared",
        )
        parser.add_argument(
            "--grow",
            action="store_true",
            help="give topics the partitions they lack: keys move to other partitions",
        )
        parser.add_argument(
            "--even-unread",
            action="store_true",
            help="with --grow: although groups have not read all, at the price of the order",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        broker = get_broker()
        try:
            tenants = {
                *options["tenant"],
                *(known_tenants(broker) if options["all_tenants"] else ()),
            }
            wanted = wanted_topics(sorted(tenants))
            if options["check"]:
                self._check(wanted, broker)
            else:
                self._create(wanted, broker, options)
        except MissingTenantError as error:
            raise CommandError(
                "Tenancy is on: name the tenants with --tenant, or take --all-tenants."
            ) from error

    def _check(self, wanted: Wanted, broker: Broker) -> None:
        found = compare(wanted, broker)
        for spec in found.missing:
            self.stdout.write(spec.name)
        for drift in found.drift:
            self.stdout.write(str(drift))
        self._warn(broker.check_topics(wanted.specs.keys() - {spec.name for spec in found.missing}))
        faults = []
        if found.missing:
            faults.append(f"{len(found.missing)} of {len(wanted.specs)} topics are missing.")
        if found.drift:
            count = len({drift.topic for drift in found.drift})
            faults.append(f"{count} of {len(wanted.specs)} topics are not as declared.")
        if faults:
            raise CommandError(" ".join(faults))
        self.stdout.write(
            f"{len(wanted.specs)} topics checked: all are on the broker, with partitions, "
            "replication and settings as declared."
        )

    def _create(self, wanted: Wanted, broker: Broker, options: dict[str, Any]) -> None:
        found = compare(wanted, broker)
        if options["dry_run"]:
            created = {spec.name for spec in found.missing}
        else:
            created = broker.create_topics(found.missing)
        would = "would have " if options["dry_run"] else ""
        for name in sorted(created):
            self.stdout.write(f"{would}created {name}")
        left = self._change(found.drift, broker, options)
        for drift in left:
            self.stderr.write(self.style.WARNING(f"{drift}{_advice(drift)}"))
        if not options["dry_run"]:
            self._warn(broker.check_topics(wanted.specs))
        self.stdout.write(f"{len(wanted.specs)} topics, {len(created)} {would}created")

    def _change(self, found: list[Drift], broker: Broker, options: dict[str, Any]) -> list[Drift]:
        """Change what may be changed; returns the rest."""
        changed: list[Drift] = []
        if options["grow"]:
            changed += grow_partitions(
                found, broker, even_unread=options["even_unread"], dry_run=options["dry_run"]
            )
        if options["alter"]:
            changed += alter_configs(found, broker, dry_run=options["dry_run"])
        would = "would have " if options["dry_run"] else ""
        for drift in changed:
            self.stdout.write(
                f"{would}changed {drift.topic}: {drift.what} from {drift.found} to {drift.declared}"
            )
        return [drift for drift in found if drift not in changed]

    def _warn(self, found: Iterable[CheckMessage]) -> None:
        for warning in found:
            self.stderr.write(self.style.WARNING(f"({warning.id}) {warning.msg} {warning.hint}"))


def _advice(drift: Drift) -> str:
    if drift.is_config:
        return " (left so; --alter sets it)"
    if drift.what == "partitions" and int(drift.declared) > int(drift.found):
        return " (left so; --grow adds them)"
    return " (left so; change the declaration, or the topic with Kafka's own tools)"
