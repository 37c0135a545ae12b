"""Facts about FOLIO's code, as cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def cases(category: str) -> list[Any]:
    """The cases of one category, each a dict of ``input`` and ``expected``."""
    text = (Path(__file__).parent / "folio.json").read_text()
    return [pytest.param(case, id=case["id"]) for case in json.loads(text)[category]]
