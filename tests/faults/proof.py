"""The proof that the oracle sees: planted defects must turn it red, one by one."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.harness import SCENARIOS, run
from tests.faults.parts import Parts
from tests.faults.report import Result


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A defect, the scenario that suffers from it, and what must be seen."""

    defect: str
    scenario: str
    #: Fields of the result, one of which must not be 0.
    seen_as: tuple[str, ...]


PROOFS = (
    Proof(
        defect="two-statements",
        scenario="rows commit late, in another order than their ids",
        seen_as=("inverted",),
    ),
    Proof(
        defect="kafka-first",
        scenario="consumer killed at four points of a batch",
        seen_as=("lost",),
    ),
    Proof(defect="no-inbox", scenario="events stand in the log twice", seen_as=("doubled",)),
    Proof(
        defect="purge-by-age",
        scenario="a purge races relay, late commits and an absent relay",
        seen_as=("lost",),
    ),
    Proof(
        defect="pass-over-refused",
        scenario="a row too large for its topic, then released",
        seen_as=("inverted",),
    ),
    Proof(
        defect="no-fence",
        scenario="a frozen consumer wakes up after its inbox was purged",
        seen_as=("doubled", "stuck"),
    ),
)


def prove(proof: Proof, parts: Parts, *, seed: int) -> Result:
    """Run a scenario with a defect planted; the result is red where the oracle stayed green."""
    seen = run(
        SCENARIOS[proof.scenario], parts, seed=seed, size=500, defect=proof.defect, patience=15
    )
    if seen.skipped:
        return seen
    counts = {name: getattr(seen, name) for name in proof.seen_as}
    result = Result(
        scenario=seen.scenario, events=seen.events, duration_s=seen.duration_s,
        remarks=[f"seen: {', '.join(f'{n} {name}' for name, n in counts.items())}"],
    )  # fmt: skip
    if not any(counts.values()):
        result.failures = [f"the oracle did not see it: {proof.scenario}", *seen.failures]
    return result
