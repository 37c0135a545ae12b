"""Options that all commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest
from django.core.management import get_commands, load_command_class
from django.db import connections

OWN = sorted(name for name, app in get_commands().items() if app == "folio_events")


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of the parts of a command too."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from options(part)


@pytest.mark.parametrize("name", OWN)
def test_every_option_explains_itself(name: str) -> None:
    """Nobody has to guess what an argument is for."""
    parser = load_command_class("folio_events", name).create_parser("manage.py", name)
    assert parser.description
    assert [option.dest for option in options(parser) if not option.help] == []


@pytest.mark.parametrize("name", OWN)
def test_an_alias_that_is_none_is_refused_where_it_is_read(name: str) -> None:
    """A typing error ends in a line of usage, not in a traceback."""
    parser = load_command_class("folio_events", name).create_parser("manage.py", name)
    for option in options(parser):
        if option.dest == "database":
            assert tuple(option.choices or ()) == tuple(connections)
