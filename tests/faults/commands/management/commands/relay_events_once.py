"""``relay_events_once``: ``relay_events --once``, to be repeated."""

from __future__ import annotations

from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "relay_events --once."

    def handle(self, *_args: Any, **_options: Any) -> None:
        call_command("relay_events", "--once")
