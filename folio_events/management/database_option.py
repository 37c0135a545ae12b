"""The option --database of commands: which alias they work on."""

from __future__ import annotations

from argparse import _ActionsContainer

from django.db import DEFAULT_DB_ALIAS, connections


def add_database(parser: _ActionsContainer) -> None:
    """Give a command, or a group of its options, the option."""
    parser.add_argument(
        "--database",
        default=DEFAULT_DB_ALIAS,
        choices=tuple(connections),
        help=f"alias in the setting DATABASES (default {DEFAULT_DB_ALIAS})",
    )
