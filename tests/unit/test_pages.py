"""The documentation against the code: names, settings, checks, commands, tables, bytes, links."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.core.management import get_commands, load_command_class

import folio_events as package
from folio_events import dialects, encoding, exceptions, receivers, testing, trigger_context
from folio_events.event import Event
from folio_events.message import Headers
from folio_events.models import Delivery, WithheldMessage
from folio_events.outbox import make_row
from tests.pages import ROOT, Page, page, pages
from tests.unit.vectors import cases

PAGES = [pytest.param(page, id=page.name) for page in pages()]
PACKAGE = ROOT / "folio_events"


def words_in_first_column(text: str) -> set[str]:
    """What the first cells of a page's tables have in code quotes."""
    found: set[str] = set()
    for line in text.splitlines():
        if line.startswith("| "):
            found |= set(re.findall(r"`([^`]+)`", line.split(" | ")[0]))
    return found


def section(page: Page, heading: str) -> str:
    """The text under a heading of the second level."""
    rest = page.text.partition(f"\n## {heading}\n")[2]
    assert rest, f"{page.name} has no section {heading!r}"
    return rest.partition("\n## ")[0]


# Links


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Page) -> None:
    """Every relative link of a page names a file, and a heading of it if it names one."""
    for target in page.links():
        name, _, anchor = target.partition("#")
        path = (page.path.parent / name).resolve() if name else page.path
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in Page(path).anchors(), f"{page.name} links to {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    """A reader gets from the README to every page of docs/ by links."""
    seen: set[Path] = set()
    waiting = [page("README.md").path]
    while waiting:
        path = waiting.pop()
        if path in seen or path.suffix != ".md":
            continue
        seen.add(path)
        for target in Page(path).links():
            name = target.partition("#")[0]
            if name:
                waiting.append((path.parent / name).resolve())
    missing = {found.name for found in pages() if found.path not in seen}
    assert not missing


# Code


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_pages_is_python_with_names_that_exist(page: Page) -> None:
    """Each Python block parses, imports only names there are, and passes arguments that are taken."""
    takes = {
        "receiver": set(inspect.signature(receivers.receiver).parameters),
        "publish": set(inspect.signature(package.publish).parameters),
        "apublish": set(inspect.signature(package.apublish).parameters),
        "RetryPolicy": set(inspect.signature(package.RetryPolicy).parameters),
        "RetryLater": set(inspect.signature(package.RetryLater).parameters),
        "RejectEvent": set(inspect.signature(package.RejectEvent).parameters),
        "Event": set(inspect.signature(Event).parameters),
    }
    for block in page.blocks("python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("folio_events"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
                if node.module == "folio_events":
                    assert {alias.name for alias in node.names} <= set(package.__all__)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = {keyword.arg for keyword in node.keywords if keyword.arg}
                assert given <= takes.get(node.func.id, given), f"{page.name}: {node.func.id}"


_DOTTED = re.compile(r"(?<![\w/-])folio_events(?:\.[A-Za-z_]\w*)+")


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_pages_name_exist(page: Page) -> None:
    """A dotted path of the package in a page leads to something; so does a path of a file."""
    text = page.text
    for path in set(_DOTTED.findall(text)):
        is_logger = page.name == "docs/howto/monitor.md" and path in loggers()
        assert is_logger or leads_somewhere(path), f"{page.name} names {path}"
    for path in set(re.findall(r"`((?:folio_events|sample_project|tests|docs)/[\w./-]*)`", text)):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_modules_that_docstrings_name_exist() -> None:
    """A dotted path of the package in a docstring leads to something, too."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            said = ast.get_docstring(node) if isinstance(node, documented) else None
            for path in _DOTTED.findall(said or ""):
                assert leads_somewhere(path), f"{file.relative_to(ROOT)} names {path}"


def leads_somewhere(path: str) -> bool:
    """Whether a dotted path is a module or a name, an id of a check or a permission."""
    _, *parts = path.split(".")
    if path in check_ids() or path in permissions():
        return True
    if parts[0] in trigger_context.NAMES:  # settings of a transaction
        return True
    found: Any = package
    for part in parts:
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = importlib.import_module(f"{found.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
    return True


@cache
def permissions() -> set[str]:
    return {
        f"folio_events.{name}"
        for model in apps.get_app_config("folio_events").get_models()
        for name, _ in model._meta.permissions
    }


@cache
def loggers() -> set[str]:
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        found |= set(re.findall(r'getLogger\("([^"]+)"\)', path.read_text()))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_that_pages_name_exist(page: Page) -> None:
    """Each ``make`` command of a page is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    shown = [block.text for block in page.blocks("sh", "console")]
    shown += re.findall(r"`([^`]+)`", page.prose)
    for target in re.findall(r"^(?:\$ )?make ([a-z][a-z-]*)", "\n".join(shown), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), f"{page.name}: make {target}"


# Reference


def test_the_settings_page_says_what_conf_says() -> None:
    """The settings page is what its script writes from the comments in conf.py."""
    script = load(ROOT / "docs" / "settings_page.py")
    assert script.PAGE.read_text() == script.render(), "run python docs/settings_page.py"
    for setting in script.read_settings((PACKAGE / "conf.py").read_text()):
        assert setting.meaning, f"{setting.name} has no comment"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def check_ids() -> set[str]:
    """The ids in the code of the checks."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r'"(folio_events\.[EWI]\d{3})"', text))
        for node in ast.walk(ast.parse(text)):
            # brokers give a number to a function of theirs
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                last = node.args[-1] if node.args else None
                number = last.value if isinstance(last, ast.Constant) else None
                if node.func.id == "error" and isinstance(number, int):
                    found.add(f"folio_events.E{number:03}")
    return found


def test_the_checks_page_has_every_id_and_no_other() -> None:
    """Each id of a check stands in the table once."""
    listed = re.findall(r"^\| `(folio_events\.\w+)`", page("docs/reference/checks.md").text, re.M)
    assert sorted(listed) == sorted(check_ids())


def own_commands() -> Iterator[str]:
    return (name for name, app in get_commands().items() if app == "folio_events")


def words_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Where each option and positional argument is kept, and its name; those of parts too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, part in action.choices.items():
                yield name, name
                yield from words_of(part)
        else:
            yield action.dest, (action.option_strings or [action.dest])[-1]


def test_the_commands_page_has_every_command_and_option() -> None:
    """Each command has a section with its own options and no others."""
    commands = page("docs/reference/commands.md")
    for name in own_commands():
        parser = load_command_class("folio_events", name).create_parser("manage.py", name)
        base = {
            "help", "version", "verbosity", "settings", "pythonpath", "traceback", "no_color",
            "force_color", "skip_checks",
        }  # fmt: skip
        options = {word for dest, word in words_of(parser) if dest not in base}
        listed = {word.split()[0] for word in words_in_first_column(section(commands, name))}
        assert listed == options, name
    sections = set(re.findall(r"^## (\w+)$", commands.text, re.M))
    assert sections == set(own_commands())


def test_every_command_has_an_example_that_it_takes() -> None:
    """Each section of the page shows calls of its command with options that it has."""
    commands = page("docs/reference/commands.md")
    for name in own_commands():
        parser = load_command_class("folio_events", name).create_parser("manage.py", name)
        calls = re.findall(rf"^\$ python manage.py {name}(.*)$", section(commands, name), re.M)
        assert calls, name
        for arguments in calls:
            parser.parse_args(shlex.split(arguments))


def test_the_commands_page_has_every_celery_task() -> None:
    """Each task stands in the table of tasks by the name that beat is given."""
    names = set(re.findall(r'name="([^"]+)"', (PACKAGE / "tasks.py").read_text()))
    listed = words_in_first_column(section(page("docs/reference/commands.md"), "Celery tasks"))
    assert listed == names


def test_the_errors_page_has_every_error() -> None:
    """Each class of exceptions.py stands in a table with its bases."""
    text = page("docs/reference/errors.md").text
    for name, error in inspect.getmembers(exceptions, inspect.isclass):
        if error.__module__ != exceptions.__name__:
            continue
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}")), None)
        assert row is not None, name
        for base in error.__bases__:
            assert f"`{base.__name__}`" in row, f"{name}: {base.__name__}"


def test_the_tables_page_has_every_table() -> None:
    """Each model stands in the table of tables with its database table."""
    text = page("docs/reference/tables.md").text
    models = [m for m in apps.get_app_config("folio_events").get_models() if not m._meta.proxy]
    for model in models:
        [row] = re.findall(rf"^\| `{model._meta.db_table}` \| `{model.__name__}` \|.*", text, re.M)
        assert ("not in the admin" in row) is not admin.site.is_registered(model), row
    assert len(re.findall(r"^\| `", text, re.M)) == len(models)


def test_the_names_page_has_every_public_name() -> None:
    """All of __all__ and of folio_events.testing stands in the page, and nothing else."""
    names = page("docs/reference/api.md")
    listed = {word.partition("(")[0] for word in words_in_first_column(names.text)}
    public = {
        name
        for name, value in vars(testing).items()
        if getattr(value, "__module__", "") == testing.__name__ and not name.startswith("_")
    }
    returned = {"Delivered", "CapturedEvents"}
    assert listed == set(package.__all__) | (public - returned)


@pytest.mark.parametrize("name", ["receiver", "publish", "RetryPolicy", "CircuitBreaker"])
def test_the_names_page_shows_signatures_as_they_are(name: str) -> None:
    """The parameters that the page shows are those of the code, in their order."""
    text = page("docs/reference/api.md").text
    [shown] = re.findall(rf"^\| `{name}\(([^`]*)\)`", text, re.M)
    call = ast.parse(f"def f({shown}): ...").body[0]
    assert isinstance(call, ast.FunctionDef)
    listed = [argument.arg for argument in [*call.args.args, *call.args.kwonlyargs]]
    assert listed == list(inspect.signature(getattr(package, name)).parameters)


def test_the_environment_page_says_what_the_tables_of_variables_say() -> None:
    """The environment page is what its script writes from the tables in variables.py."""
    script = load(ROOT / "docs" / "environment_page.py")
    assert script.PAGE.read_text() == script.render(), "run python docs/environment_page.py"


@pytest.mark.parametrize(
    ("heading", "model"), [("Deliveries", Delivery), ("Withheld messages", WithheldMessage)]
)
def test_the_states_page_has_every_state(heading: str, model: Any) -> None:
    """Diagram and table of a model name its states and no others."""
    text = section(page("docs/explanation/states.md"), heading)
    states = set(model.State.values)
    drawn = set(re.findall(r"^ +(\w+) --> |--> (\w+)", text, re.M))
    assert {name for pair in drawn for name in pair if name} == states
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \|", text, re.M)
    assert dict(rows) == {state: "yes" if state in model.OPEN else "no" for state in states}


# Bytes


@pytest.fixture
def event() -> Callable[..., Event]:
    def make(**values: Any) -> Event:
        return Event(
            id=uuid.UUID("7b1d2f0a-52a4-4f0e-9c53-0c6f3a1d7e11"),
            key="a1",
            tenant="diku",
            occurred_at=datetime(2026, 3, 1, 9, 30, 0, 123456, tzinfo=UTC),
            **values,
        )

    return make


def test_the_bodies_on_the_wire_format_page_are_those_of_the_code(
    event: Callable[..., Event], folio_events: Callable[..., None]
) -> None:
    """Each example body is what its dialect writes, member by member."""
    folio_events(SOURCE="mod-source-record-manager-3.8.0")
    change = {
        "old": {"id": "a1", "enumeration": "v. 1"},
        "new": {"id": "a1", "enumeration": "v. 2"},
    }
    loan = {"loanId": "l1", "dueDate": "2026-03-29T09:30:00+00:00"}
    written = [
        ("inventory", event(topic="inventory.item", type="UPDATE", payload=change)),
        ("circulation", event(topic="a.ITEM_CHECKED_OUT", type="ITEM_CHECKED_OUT", payload=loan)),
        ("pubsub", event(topic="DI", type="DI_COMPLETED", payload={"jobExecutionId": "j1"})),
    ]
    blocks = page("docs/reference/wire-format.md").blocks("json")
    for block, (dialect, one) in zip(blocks, written, strict=True):
        body = make_row(one, dialect).payload or b""
        assert json.dumps(json.loads(block.text)) == json.dumps(json.loads(body))


def test_the_types_on_the_wire_format_page_are_those_of_the_code() -> None:
    """Each type that has another word in some dialects, with it, and no other."""
    text = section(page("docs/reference/wire-format.md"), "Types")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", text, re.M)
    assert dict(rows) == dialects.PAST_WORDS


@pytest.mark.parametrize("case", cases("partition_key"))
def test_the_keys_of_folios_streams_are_on_the_wire_format_page(case: dict[str, Any]) -> None:
    """What a stream's key is upstream, beside what is declared here for the same."""
    text = section(page("docs/reference/wire-format.md"), "Key and partition")
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", text, re.M)
    named = [key for streams, key, _ in rows if f"`{case['input']['topic']}`" in streams]
    assert named == [case["expected"]["key"]]


def test_the_headers_on_the_wire_format_page_are_those_of_the_code(
    event: Callable[..., Event], folio_events: Callable[..., None]
) -> None:
    """Every header that a message can have stands in the table, and no other."""
    folio_events(TENANCY="folio")
    change = event(topic="inventory.item", type="UPDATE", payload={})
    repeating: Headers = [
        (name, value.encode())
        for name, value in dialects.repeating_headers(change.topic, change.type, change.tenant)
    ]
    headers = dialects.wire_headers(
        repeating, [], event_id=str(change.id), occurred_at=change.occurred_at, sequence=1
    )
    from folio_events.tenants import FORWARDED, TRACE_HEADERS

    written = {name for name, _ in headers} | {*FORWARDED, *TRACE_HEADERS, "ce_causationid"}
    listed = words_in_first_column(section(page("docs/reference/wire-format.md"), "Headers"))
    assert listed == written


def test_the_values_on_the_wire_format_page_are_those_of_the_code() -> None:
    """Every type that to_json() takes is named."""
    text = section(page("docs/reference/wire-format.md"), "Values")
    for name in ("Decimal", "date", "time", "datetime", "timedelta", "UUID", "bytes", "Enum"):
        assert f"`{name}`" in text
    source = inspect.getsource(encoding.to_json)
    for word in ("ipaddress", "Promise", "FieldFile"):
        assert word in source, f"{word}: the page names it, the code does not"
