"""Runs the benchmarks: python -m tests.bench [--only NAME] [--rounds N] [--quick]."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import time

from tests.bench.chart import draw
from tests.bench.harness import Bench, Results, line, say
from tests.bench.page import render
from tests.bench.stage import ROOT, parts

NAMES = (
    "capture",
    "bulk",
    "triggers",
    "writers",
    "latency",
    "consumer",
    "callback",
    "relay",
    "topology",
    "tenants",
)
#: Run only when asked for: they decide a default, and are not repeated with every change.
MORE = ("compression",)
FOLDER = ROOT / "docs" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--only", action="append", choices=(*NAMES, *MORE), help="may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many (default 5)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--note", default="", help="kept with each figure")
    options = parser.parse_args()
    # Small sizes say nothing to anybody else.
    folder = ROOT / ".bench" if options.quick else FOLDER
    results = Results.open(folder / "results.json", options.note)
    bench = Bench(results, options.rounds, options.quick)
    start = time.monotonic()
    with parts() as descriptions:
        for text in descriptions:
            say(text)
        say(f"{os.cpu_count()} cores, Python {platform.python_version()}")
        for name in options.only or NAMES:
            say(f"{name} (after {time.monotonic() - start:.0f} s)")
            importlib.import_module(f"tests.bench.{name}").run(bench)
            rows = list(results.rows.values())
            draw(rows, folder / "chart.svg")
            (folder / "figures.md").write_text(render(rows))
    say(f"\nAll figures, in {folder / 'results.json'}:")
    for row in results.rows.values():
        say(line(row))


if __name__ == "__main__":
    main()
