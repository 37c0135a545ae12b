"""What a run found: one table, and docs/faults/results.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.parts import ROOT

RESULTS = ROOT / "docs" / "faults" / "results.json"
_COLUMNS = ("events", "lost", "doubled", "inverted", "phantom", "rerun", "stuck", "recovery_s")


@dataclass(kw_only=True)
class Result:
    """What became of one scenario."""

    scenario: str
    events: int = 0
    lost: int = 0
    doubled: int = 0
    inverted: int = 0
    #: Rolled back, and delivered all the same.
    phantom: int = 0
    #: Runs of a receiver for an event that it was done with.
    rerun: int = 0
    #: What had not been settled within the bound.
    stuck: int = 0
    #: Seconds from the end of faults and load until everything was settled.
    recovery_s: float = 0.0
    #: Seconds that the scenario took.
    duration_s: float = 0.0
    #: Why it could not be run; "" where it was.
    skipped: str = ""
    #: Promises of this scenario's own that were not kept, and why it did not come about.
    failures: list[str] = field(default_factory=list)
    #: What was measured beside.
    remarks: list[str] = field(default_factory=list)

    @property
    def breached(self) -> bool:
        counts = (self.lost, self.doubled, self.inverted, self.phantom, self.rerun, self.stuck)
        return any(counts) or bool(self.failures)


def line(result: Result) -> str:
    """One line of the table."""
    if result.skipped:
        return f"{result.scenario:<52} skipped: {result.skipped}"
    values = asdict(result)
    cells = [
        f"{values[name]:>10.1f}" if name == "recovery_s" else f"{values[name]:>8}"
        for name in _COLUMNS
    ]
    return f"{result.scenario:<52} {' '.join(cells)}{'   BREACH' if result.breached else ''}"


def header() -> str:
    names = [f"{name:>10}" if name == "recovery_s" else f"{name:>8}" for name in _COLUMNS]
    return f"{'scenario':<52} {' '.join(names)}"


def notes(result: Result) -> list[str]:
    """What stands below a line of the table."""
    return [f"    BREACH: {text}" for text in result.failures] + [
        f"    {text}" for text in result.remarks
    ]


def write(results: Iterable[Result], path: Path = RESULTS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(result) for result in results]
    path.write_text(json.dumps(rows, indent=1) + "\n")
