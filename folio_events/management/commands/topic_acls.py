"""``topic_acls``: print the calls of kafka-acls.sh that give this project its rights."""

from __future__ import annotations

from typing import Any, get_args

from django.core.management.base import CommandParser

from folio_events.conf import get_settings
from folio_events.management.command import EventsCommand
from folio_events.operations.acls import Role, acls


class Command(EventsCommand):
    help = "Print the calls of kafka-acls.sh that give this project its rights; changes nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--principal", required=True, help="who gets the rights, such as User:mysite"
        )
        parser.add_argument(
            "--role",
            action="append",
            choices=get_args(Role),
            help="what it does; may be repeated (default producer and consumer)",
        )
        parser.add_argument(
            "--tenant", action="append", default=[], help="whose topics; may be repeated"
        )
        parser.add_argument(
            "--bootstrap-server",
            metavar="ADDRESS",
            help="Kafka's address (default that of the setting BROKER)",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        configured = get_settings().BROKER.get("OPTIONS", {}).get("bootstrap.servers")
        address = options["bootstrap_server"] or configured or "localhost:9092"
        found = acls(options["role"] or ["producer", "consumer"], tenants=options["tenant"])
        for acl in found:
            self.stdout.write(acl.command(options["principal"], address))
