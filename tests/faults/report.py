"""What a run found: one table, and docs/faults/results.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.parts import ROOT

RESULTS = ROOT / "docs" / "faults" / "results.json"
#: Fields of a result that are columns of the table, with their titles.
_COLUMNS = {
    "events": "events",
    "lost": "lost",
    "doubled": "doubled",
    "inverted": "out of order",
    "stuck": "stuck",
    "recovery_s": "time to recover",
}
_WIDTH = 72


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
        return f"{result.scenario:<{_WIDTH}} skipped: {result.skipped}"
    values = {**asdict(result), "recovery_s": f"{result.recovery_s:.1f} s"}
    cells = [f"{values[name]:>{_space(title)}}" for name, title in _COLUMNS.items()]
    return f"{result.scenario:<{_WIDTH}} {' '.join(cells)}{'   BREACH' if result.breached else ''}"


def header() -> str:
    titles = [f"{title:>{_space(title)}}" for title in _COLUMNS.values()]
    return f"{'scenario':<{_WIDTH}} {' '.join(titles)}"


def _space(title: str) -> int:
    return max(len(title), 7)


def notes(result: Result) -> list[str]:
    """What stands below a line of the table."""
    beside = {"phantom": "of rolled-back changes", "rerun": "run again after their commit"}
    counts = [
        f"BREACH: {n} {said}" for name, said in beside.items() if (n := getattr(result, name))
    ]
    failures = [f"BREACH: {text}" for text in result.failures]
    return [f"    {text}" for text in (*counts, *failures, *result.remarks)]


def expected_s(names: Iterable[str], path: Path = RESULTS) -> float:
    """Seconds that these took in the run whose results are stored; 0 for what it had not."""
    known = json.loads(path.read_text()) if path.exists() else []
    wanted = set(names)
    return float(sum(one["duration_s"] for one in known if one["scenario"] in wanted))


def write(results: Iterable[Result], path: Path = RESULTS) -> None:
    """Write the results; those of a run of some scenarios take the place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text()) if path.exists() else []
    known = {row["scenario"]: row for row in rows}
    known |= {result.scenario: asdict(result) for result in results}
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n")
