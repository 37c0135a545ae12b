"""FOLIO's names of fields and Python's."""

from __future__ import annotations

import re


def snake_case(name: str) -> str:
    """Turn FOLIO's name of a field into Python's: ``holdingsRecordId``, ``holdings_record_id``."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()
