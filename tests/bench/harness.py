"""Figures: interleaved rounds, medians and quartiles, goals, and the file that keeps them."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

#: What one round has measured, by name.
Sample = dict[str, float]
#: Measures one thing once.
Form = Callable[[], Sample]
#: Where a figure takes its number from: a name, or a function of the round.
Source = str | Callable[[Sample], float]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure has to reach.

    Attributes:
        of: "ratio" is value / control, "difference" is value - control.
        bound: Whether it is to be at least or at most the limit.
    """

    of: Literal["ratio", "value", "difference"]
    bound: Literal["at least", "at most"]
    limit: float

    def __str__(self) -> str:
        return f"{self.of} {self.bound} {self.limit:g}"

    def met(self, numbers: Sequence[float]) -> bool:
        """Missed only where even the better quartile of the rounds misses it."""
        low, _, high = quartiles(numbers)
        return high >= self.limit if self.bound == "at least" else low <= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the results, computed from all rounds."""

    name: str
    unit: str
    value: Source
    control: Source | None = None
    goal: Goal | None = None
    #: What the control is, for people.
    against: str = ""

    def result(self, rounds: Sequence[Sample]) -> dict[str, object]:
        values = [_take(self.value, sample) for sample in rounds]
        controls = [] if self.control is None else [_take(self.control, s) for s in rounds]
        # Round by round, so that what slows both down cancels out.
        ratios = [v / c for v, c in zip(values, controls, strict=False) if c]
        numbers = {
            "value": values,
            "ratio": ratios,
            "difference": [v - c for v, c in zip(values, controls, strict=False)],
        }
        low, middle, high = quartiles(values)
        result: dict[str, object] = {
            "name": self.name,
            "value": _rounded(middle),
            "unit": self.unit,
            "control": _rounded(statistics.median(controls)) if controls else None,
            "ratio": _rounded(statistics.median(ratios)) if ratios else None,
            "goal": str(self.goal) if self.goal else None,
            "met": self.goal.met(numbers[self.goal.of]) if self.goal else None,
            "against": self.against or None,
            "quartiles": [_rounded(low), _rounded(high)],
            "rounds": len(rounds),
        }
        if ratios:
            low, _, high = quartiles(ratios)
            result["ratio_quartiles"] = [_rounded(low), _rounded(high)]
        return result


def quartiles(numbers: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(numbers) < 2:
        return (numbers[0],) * 3
    low, middle, high = statistics.quantiles(numbers, method="inclusive")
    return low, middle, high


def percentile(numbers: Sequence[float], share: float) -> float:
    """The number that this share of the others does not exceed."""
    return sorted(numbers)[min(int(len(numbers) * share), len(numbers) - 1)]


@dataclass(slots=True)
class Results:
    """The results, on disk after each round."""

    path: Path
    note: str = ""
    rows: dict[str, dict[str, object]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, note: str) -> Results:
        """Go on from a file that is there: other benchmarks' rows stay."""
        found = json.loads(path.read_text()) if path.exists() else []
        return cls(path, note, {row["name"]: row for row in found})

    def put(self, row: dict[str, object]) -> None:
        self.rows[str(row["name"])] = {**row, "note": self.note or None}

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(list(self.rows.values()), indent=2) + "\n")
        new.replace(self.path)


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: how long, and where its results go."""

    results: Results
    rounds: int
    quick: bool

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def measure(self, forms: Sequence[Form], figures: Sequence[Figure]) -> None:
        """Run all forms once a round, each round beginning with another one."""
        rounds: list[Sample] = []
        for number in range(self.rounds):
            start = number % len(forms)
            sample: Sample = {}
            for form in [*forms[start:], *forms[:start]]:
                sample |= form()
            rounds.append(sample)
            for figure in figures:
                self.results.put(figure.result(rounds))
            self.results.write()
            say(f"  round {number + 1} of {self.rounds}: {_brief(sample)}")
        for figure in figures:
            say(line(self.results.rows[figure.name]))


def line(row: Mapping[str, object]) -> str:
    """A result as a person reads it."""
    text = f"{row['name']}: {row['value']} {row['unit']}"
    if row["control"] is not None:
        text += f"; {row['against'] or 'control'} {row['control']}, ratio {row['ratio']}"
    if row["goal"] is not None:
        text += f"; goal {row['goal']}: {'met' if row['met'] else 'MISSED'}"
    return text


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _take(source: Source, sample: Sample) -> float:
    return sample[source] if isinstance(source, str) else source(sample)


def _rounded(number: float) -> float:
    """Three digits are more than a benchmark knows."""
    return float(f"{number:.3g}") if abs(number) < 1000 else float(round(number))


def _brief(sample: Sample) -> str:
    return ", ".join(f"{name} {_rounded(number):g}" for name, number in sample.items())
