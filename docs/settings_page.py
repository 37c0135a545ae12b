"""Writes docs/reference/settings.md from the comments of ``folio_events.conf.Settings``.

``python docs/settings_page.py`` after a setting was added or changed.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "settings.md"
HEAD = """# Settings

One dict, `FOLIO_EVENTS`, read when it is used. Every key has a default; an unknown key is
refused, and the error names the key that was probably meant. Times are in seconds.
`settings_from_env()` makes the dict from [environment variables](environment.md).

This page is written by `docs/settings_page.py` from the comments in `folio_events/conf.py`.

| key | type | default | meaning |
|---|---|---|---|
"""


class Setting(NamedTuple):
    """A key of FOLIO_EVENTS."""

    name: str
    type: str
    default: str
    meaning: str


def read_settings(source: str) -> list[Setting]:
    """Take the fields of ``Settings`` from the source of ``conf``, with the comments above them."""
    lines = source.splitlines()
    tree = ast.parse(source)
    constants = {
        target.id: ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    found = []
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.value is None:
            raise ValueError(f"{node.target.id} has no default")
        comment: list[str] = []
        line = node.lineno - 2
        while lines[line].strip().startswith("#:"):
            comment.insert(0, lines[line].strip().removeprefix("#:").strip())
            line -= 1
        found.append(
            Setting(
                node.target.id,
                ast.unparse(node.annotation),
                _default(node.value, constants),
                " ".join(comment),
            )
        )
    return found


def _default(value: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(value, ast.Call):  # field(default_factory=lambda: ...) or dict
        factory = value.keywords[0].value
        value = factory.body if isinstance(factory, ast.Lambda) else ast.Dict([], [])
    text = ast.unparse(value)
    for name, constant in constants.items():
        text = text.replace(name, constant)
    return text.replace("'", '"')


def render() -> str:
    """The page as it has to be."""
    source = (ROOT / "folio_events" / "conf.py").read_text()
    rows = [
        f"| `{s.name}` | `{s.type.replace('|', chr(92) + '|')}` | `{s.default}` | {s.meaning} |\n"
        for s in read_settings(source)
    ]
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(render())
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
