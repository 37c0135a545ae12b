"""The page about fault testing names what there is."""

from __future__ import annotations

import re

import tests.faults.scenarios  # noqa: F401 - registers them
from tests.faults.harness import SCENARIOS
from tests.faults.proof import PROOFS
from tests.pages import page

PAGE = page("docs/explanation/fault-testing.md")


def test_the_page_lists_every_scenario_and_which_of_them_the_short_run_has() -> None:
    """In the order of their run."""
    listed = re.findall(r"^- (.+)$", PAGE.text.partition("\n## Scenarios\n")[2], re.M)
    assert listed == [f"{one.name}{' *' if one.telling else ''}" for one in SCENARIOS.values()]


def test_the_page_lists_every_proof() -> None:
    """With the scenario that it is seen in."""
    for proof in PROOFS:
        assert re.search(
            rf"^\| {proof.defect} \| .* \| {re.escape(proof.scenario)} \|", PAGE.text, re.M
        )


def test_every_proof_has_its_scenario_and_a_field_that_shows_it() -> None:
    """A proof that names nothing would pass for the wrong reason."""
    for proof in PROOFS:
        assert proof.scenario in SCENARIOS
        assert proof.seen_as in {"lost", "doubled", "inverted"}
