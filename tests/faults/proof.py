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
    #: The field of the result that must not be 0.
    seen_as: str

    @property
    def name(self) -> str:
        return f"planted: {self.defect}"


PROOFS = (
    Proof(
        defect="two-statements",
        scenario="rows commit late, in another order than their ids",
        seen_as="inverted",
    ),
    Proof(
        defect="kafka-first",
        scenario="consumer killed at four points of a batch",
        seen_as="lost",
    ),
    Proof(defect="no-inbox", scenario="events stand in the log twice", seen_as="doubled"),
    Proof(
        defect="purge-by-age",
        scenario="a purge races relay, late commits and an absent relay",
        seen_as="lost",
    ),
    Proof(
        defect="pass-over-refused",
        scenario="rows too large for their topic, then released",
        seen_as="inverted",
    ),
    Proof(
        defect="no-fence",
        scenario="a frozen consumer wakes up after its inbox was purged",
        seen_as="doubled",
    ),
)


#: Committed events of each proof; what makes it certain is the course of its scenario.
_SIZE = 200


def prove(proof: Proof, parts: Parts, *, seed: int) -> Result:
    """Run a scenario with a defect planted; the result is red where the oracle stayed green."""
    seen = run(
        SCENARIOS[proof.scenario], parts, seed=seed, size=_SIZE, defect=proof.defect, patience=30
    )
    seen.scenario = proof.name
    if seen.skipped:
        return seen
    count = getattr(seen, proof.seen_as)
    result = Result(
        scenario=proof.name, events=seen.events, duration_s=seen.duration_s,
        remarks=[f"seen: {count} {proof.seen_as}"],
    )  # fmt: skip
    if not count:
        result.failures = [f"the oracle did not see it: {proof.scenario}", *seen.failures]
    elif proof.seen_as == "lost" and seen.stuck:
        # What only is late must not pass for lost.
        result.failures = [f"not settled, so nothing is proved: {', '.join(seen.remarks)}"]
    return result
