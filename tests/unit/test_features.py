"""docs/features.md: each feature with the tests that show it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.pages import ROOT, Page, page, pages

FEATURES = page("docs/features.md")
#: Those that the first release has to show.
REQUIRED = frozenset(
    re.findall(
        r"\S+",
        """
0.3 0.8 1.2 1.13 2.1 2.2 2.3 2.6 2.7 2.8 2.10 2.11 2.12 2.13 2.15 2.16 2.18 2.19 2.22 2.23 2.24
2.25 2.26 2.28 3.7 3.8 3.9 3.14 3.19 3.26 3.31 3.34 3.36 3.38 3.44 3.52 3.53 3.72 B.1 B.2 B.4
""",
    )
)
ROW = re.compile(r"^\| (?P<feature>[0-4B]\.\d+) \| (?P<shown>.+) \|$", re.M)


def rows() -> list[tuple[str, list[str]]]:
    """Features with what shows them, in the order of the page."""
    return [
        (match["feature"], [one.strip() for one in match["shown"].split(",")])
        for match in ROW.finditer(FEATURES.text)
    ]


@cache
def names_in(path: Path) -> frozenset[str]:
    """The tests of a file as pytest names them, without parameters."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}::{inner.name}"
                for inner in node.body
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def exists(shown: str) -> bool:
    """Whether a test, or a decision's file, is there."""
    name, _, test = shown.partition("::")
    path = ROOT / name
    if not path.is_file():
        return False
    if not test:
        return path.is_relative_to(ROOT / "docs" / "decisions")
    return test.partition("[")[0] in names_in(path)


def test_every_required_feature_has_a_row() -> None:
    """No feature of the first release is missing, and none is listed twice."""
    listed = [feature for feature, _ in rows()]
    assert len(listed) == len(set(listed))
    assert set(listed) >= REQUIRED


@pytest.mark.parametrize(
    ("feature", "shown"), [pytest.param(f, s, id=f"{f} {s}") for f, all_ in rows() for s in all_]
)
def test_what_shows_a_feature_exists(feature: str, shown: str) -> None:
    """Each test and each decision that a row names is there."""
    assert exists(shown), f"{feature}: {shown}"


def test_rows_are_in_the_order_of_their_numbers() -> None:
    """A row is found where its number belongs."""
    listed = [feature for feature, _ in rows()]
    assert listed == sorted(listed, key=lambda name: (name[0], int(name.partition(".")[2])))


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in pages()])
def test_tests_that_pages_name_exist(page: Page) -> None:
    """Every test that a page names in its text is there."""
    for shown in re.findall(r"tests/[\w/]+\.py::[\w:]+", page.text):
        assert exists(shown), f"{page.name}: {shown}"
