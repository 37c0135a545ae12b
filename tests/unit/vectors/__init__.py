"""Facts about FOLIO's code, as cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "folio.json").read_text())[
    "vectors"
]


def cases(category: str) -> list[Any]:
    """The cases of one category, each a dict of ``input`` and ``expected``."""
    found = [pytest.param(case, id=case["id"]) for case in VECTORS if case["category"] == category]
    assert found, f"No vector is of category {category!r}."
    return found
