"""Fingerprints of failures: those with the same cause have the same one."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

#: Characters of an error's text that count; what comes after is mostly somebody's data.
_MOST = 500
_HEADER = "Traceback (most recent call last):"
#: Source: the Python manual, traceback.format_exception(); groups are drawn with "|" and "+".
_FRAME = re.compile(
    r'^[ |+-]*File "(?P<file>[^"\n]+)", line \d+, in (?P<function>[^\n]+)\n'
    r'(?![ |]*File ")[ |]*(?P<line>[^\n]*)',
    re.MULTILINE,
)
_FOREIGN = re.compile(r"[/\\](?:site-packages|dist-packages|lib[/\\]python3[^/\\]*)[/\\]|^<")
_OWN = str(Path(__file__).parent) + "/"
#: In their order: what an earlier one took, a later one does not see.
_VARYING = (
    (re.compile(r"=\([^)\n]*\)"), "=(…)"),  # PostgreSQL's DETAIL: Key (barcode)=(123)
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), "…"),
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "…"),
    (re.compile(r"'[^'\n]*'"), "…"),
    # PostgreSQL quotes names of tables and constraints so; they tell causes apart.
    (re.compile(r'"(?![A-Za-z]\w*_\w*")[^"\n]*"'), "…"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=[a-f]*\d)[0-9a-f]{8,}\b"), "…"),
    (re.compile(r"\d+"), "…"),
    (re.compile(r"…(?:[-:.,T+ ]*…)+Z?"), "…"),
    (re.compile(r"\s+"), " "),
)


def fingerprint(receiver: str, error_class: str, error: str, traceback: str) -> str:
    """What is the same in all failures of one cause.

    Made of the receiver, the error's class, the place in the project's code that raised it and
    the error's text without what varies. The place is file, function and source line, without
    its number, so that a change elsewhere in the file makes no new group.

    Args:
        receiver: Its name.
        error_class: With its module.
        error: Its text.
        traceback: As Python writes it.

    Returns:
        16 hexadecimal digits, or "" where there was no failure.
    """
    if not error_class:
        return ""
    parts = (receiver, error_class, place(traceback), without_varying(error))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def place(traceback: str) -> str:
    """File, function and line in which an error was raised, nearest to it in code of the project.

    Where none of the frames is the project's, the innermost counts.
    """
    # An error that was raised from another comes last.
    _causes, _, last = traceback.rpartition(_HEADER)
    frames = list(_FRAME.finditer(last))
    own = [frame for frame in frames if not _is_foreign(frame["file"])]
    for frame in reversed(own or frames):
        # Projects lie elsewhere on each host, and with each release.
        file = "/".join(re.split(r"[/\\]", frame["file"])[-2:])
        return f"{file}:{frame['function']}:{frame['line'].strip()}"
    return ""


def without_varying(text: str) -> str:
    """An error's text without ids, numbers, times, addresses and quoted values."""
    shown = text[:_MOST]
    for pattern, replacement in _VARYING:
        shown = pattern.sub(replacement, shown)
    return shown.strip()


def _is_foreign(file: str) -> bool:
    return file.startswith(_OWN) or _FOREIGN.search(file) is not None
