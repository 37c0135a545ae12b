"""The benchmarks' arithmetic: what is compared with what, and when a goal is missed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.chart import draw
from tests.bench.harness import Bench, Figure, Goal, Results, Sample, percentile, quartiles


def bench(folder: Path, rounds: int) -> Bench:
    return Bench(Results.open(folder / "results.json", "a note"), rounds, quick=True)


def test_forms_take_turns_at_being_first(tmp_path: Path) -> None:
    """Each round runs every form once and begins with another one than the round before."""
    order: list[str] = []

    def form(name: str) -> Sample:
        order.append(name)
        return {name: 1.0}

    forms = [lambda name=name: form(name) for name in "abc"]
    bench(tmp_path, 3).measure(forms, [])
    assert "".join(order) == "abcbcacab"


def test_a_ratio_is_taken_within_each_round(tmp_path: Path) -> None:
    """A round that is slow for both sides does not move the ratio."""
    pace = iter([1.0, 10.0, 100.0])

    def form() -> Sample:
        factor = next(pace)
        return {"ours": 80 * factor, "theirs": 100 * factor}

    figure = Figure("speed", "events/s", "ours", "theirs", Goal("ratio", "at least", 0.9))
    bench(tmp_path, 3).measure([form], [figure])
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert (row["value"], row["control"], row["ratio"]) == (800, 1000, 0.8)
    assert (row["goal"], row["met"]) == ("ratio at least 0.9", False)
    assert row["note"] == "a note"


@pytest.mark.parametrize(
    ("numbers", "met"),
    [([0.95, 0.95, 0.95], True), ([0.8, 0.85, 0.99], True), ([0.8, 0.81, 0.82], False)],
)
def test_a_goal_is_missed_only_outside_the_quartiles(numbers: list[float], met: bool) -> None:
    """The better quartile of the rounds decides."""
    assert Goal("ratio", "at least", 0.9).met(numbers) is met
    assert Goal("ratio", "at most", 1.1).met([2 - number for number in numbers]) is met


def test_results_of_other_benchmarks_stay(tmp_path: Path) -> None:
    """A run of one benchmark replaces its own rows and keeps the others."""
    for name in ("first", "second"):
        bench(tmp_path, 1).measure([lambda: {"x": 2.0}], [Figure(name, "ms", "x")])
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in rows] == ["first", "second"]


def test_quartiles_and_percentiles_are_of_the_numbers_given() -> None:
    """Quartiles include the ends, and a percentile is one of the numbers."""
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
    assert quartiles([7]) == (7, 7, 7)
    assert percentile(list(range(100)), 0.99) == 99


def test_the_chart_names_every_ratio_and_escapes_it(tmp_path: Path) -> None:
    """Each figure with a control is a bar; a goal that was missed shows in another colour."""
    figures = [
        Figure("fast & good", "events/s", "x", "y", Goal("ratio", "at least", 0.9)),
        Figure("slow", "events/s", "y", "x", Goal("ratio", "at least", 0.9)),
        Figure("alone", "ms", "x"),
    ]
    run = bench(tmp_path, 1)
    run.measure([lambda: {"x": 2.0, "y": 1.0}], figures)
    draw(list(run.results.rows.values()), tmp_path / "chart.svg")
    chart = (tmp_path / "chart.svg").read_text()
    assert "fast &amp; good" in chart
    assert "alone" not in chart
    assert chart.count("#2e7d5b") == 1
    assert chart.count("#b3442e") == 1
