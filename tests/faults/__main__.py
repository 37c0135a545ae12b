"""Runs the fault harness: python -m tests.faults [--seed N] [--scenario NAME] [--short] [--list]."""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from tests.faults import report
from tests.faults.harness import SCENARIOS, Scenario, run
from tests.faults.parts import Parts
from tests.faults.proof import PROOFS, prove

#: More than these skipped, and the run shows too little.
MOST_SKIPPED = 3


def main() -> int:
    import tests.faults.scenarios  # noqa: F401 - registers them

    options = _options()
    proofs = [] if options.without_proof else list(PROOFS)
    chosen = _chosen(options)
    names = [*(proof.name for proof in proofs), *(one.name for one in chosen)]
    if options.list:
        _say("\n".join(names))
        return 0
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    expected = report.expected_s(names)
    _say(f"seed {seed}", report.header())
    began = time.monotonic()
    results: list[report.Result] = []

    def note(result: report.Result) -> None:
        results.append(result)
        _say(report.line(result), *report.notes(result))
        took = time.monotonic() - began
        all_in_all = f" of about {expected / 60:.0f}" if expected else ""
        sys.stderr.write(f"[{len(results)}/{len(names)}, {took / 60:.1f}{all_in_all} minutes]\n")

    parts = Parts()
    try:
        for proof in proofs:
            note(prove(proof, parts, seed=seed))
        for position, scenario in enumerate(chosen):
            size = options.size or (scenario.short_size if options.short else scenario.size)
            note(run(scenario, parts, seed=seed, size=size, patience=options.patience))
            if scenario.kafka not in {later.kafka for later in chosen[position + 1 :]}:
                parts.drop_kafka(scenario.kafka)
    finally:
        parts.close()
        if options.results:
            if options.whole:
                options.results.unlink(missing_ok=True)
            report.write(results, options.results)
    bad = [result.scenario for result in results if result.breached]
    skipped = [result.scenario for result in results if result.skipped]
    _say(
        f"seed {seed}: {len(results)} run in {time.monotonic() - began:.0f} s,"
        f" {len(bad)} breached, {len(skipped)} skipped",
        *(f"  breached: {name}" for name in bad),
        *(f"  skipped: {name}" for name in skipped),
    )
    return 1 if bad or not results or len(skipped) > MOST_SKIPPED else 0


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201 - the report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--seed", type=int, help="of the schedule; printed when not given")
    parser.add_argument(
        "--scenario", action="append", help="by name or the beginning of it; may be repeated"
    )
    parser.add_argument("--short", action="store_true", help="the most telling ones, smaller")
    parser.add_argument("--list", action="store_true", help="only name the scenarios")
    parser.add_argument("--size", type=int, help="committed events of each scenario")
    parser.add_argument("--patience", type=float, default=90, help="seconds to settle")
    parser.add_argument(
        "--results",
        type=Path,
        help=f"write the results there as JSON; a whole run to {report.RESULTS.name} in docs/faults",
    )
    parser.add_argument("--without-proof", action="store_true", help="plant no defects first")
    options = parser.parse_args()
    options.whole = not (options.scenario or options.short or options.size or options.without_proof)
    if not options.results and options.whole:
        options.results = report.RESULTS
    return options


def _chosen(options: argparse.Namespace) -> list[Scenario]:
    if options.scenario:
        chosen = [
            one
            for one in SCENARIOS.values()
            if any(one.name.startswith(name) for name in options.scenario)
        ]
        if not chosen:
            sys.exit(f"No scenario is called {' or '.join(options.scenario)}; see --list.")
        return chosen
    return [one for one in SCENARIOS.values() if one.telling or not options.short]


if __name__ == "__main__":
    sys.exit(main())
