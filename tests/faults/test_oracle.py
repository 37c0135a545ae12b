"""The oracle sees what it is there to see."""

from __future__ import annotations

import pytest

from tests.faults.oracle import (
    Breach,
    Change,
    breaches_of_effects,
    breaches_of_identity,
    breaches_of_log,
    breaches_of_runs,
)

COMMITTED = {"a": 3, "b": 2}
GOOD = [Change("a", 1), Change("b", 1), Change("a", 2), Change("b", 2), Change("a", 3)]


def without(number: int) -> list[Change]:
    return GOOD[:number] + GOOD[number + 1 :]


def test_a_faultless_run_has_no_breach() -> None:
    """Keys may mix as they like as long as each keeps its order."""
    assert breaches_of_log(COMMITTED, GOOD) == []
    assert breaches_of_effects(COMMITTED, GOOD) == []


@pytest.mark.parametrize("place", range(len(GOOD)))
def test_a_missing_change_is_lost_wherever_it_stood(place: int) -> None:
    """The first, the last and each between them."""
    expected = [Breach("lost", GOOD[place])]
    assert breaches_of_log(COMMITTED, without(place)) == expected
    assert breaches_of_effects(COMMITTED, without(place)) == expected


def test_a_key_of_which_nothing_arrived_is_lost() -> None:
    """A key that is missing altogether does not go unnoticed."""
    found = [change for change in GOOD if change.key == "a"]
    assert breaches_of_log(COMMITTED, found) == [
        Breach("lost", Change("b", 1)),
        Breach("lost", Change("b", 2)),
    ]


def test_a_repeated_change_is_a_breach_for_effects_only() -> None:
    """The log may hold a change twice; a receiver may not have done it twice."""
    twice = [*GOOD, GOOD[0]]
    assert breaches_of_log(COMMITTED, twice) == []
    assert breaches_of_effects(COMMITTED, twice) == [Breach("doubled", GOOD[0])]


def test_an_inversion_within_a_key_is_a_breach() -> None:
    """Only the first appearance of each change counts."""
    swapped = [Change("a", 2), Change("a", 1), Change("a", 3), Change("b", 1), Change("b", 2)]
    assert breaches_of_log(COMMITTED, swapped) == [Breach("inverted", Change("a", 1))]
    assert breaches_of_effects(COMMITTED, swapped) == [Breach("inverted", Change("a", 1))]
    repeated = [*GOOD, Change("a", 1), Change("a", 2)]
    assert breaches_of_log(COMMITTED, repeated) == []


@pytest.mark.parametrize("change", [Change("a", 4), Change("a", 0), Change("c", 1)])
def test_a_change_that_nobody_committed_is_a_phantom(change: Change) -> None:
    """A number too high, one of a rolled-back change, a key that does not exist."""
    kinds = {breach.kind for breach in breaches_of_log(COMMITTED, [*GOOD, change])}
    assert "phantom" in kinds
    kinds = {breach.kind for breach in breaches_of_effects(COMMITTED, [*GOOD, change])}
    assert "phantom" in kinds


def test_two_events_of_one_change_are_a_phantom() -> None:
    """The same event sent twice is none; another id stems from what was rolled back."""
    once = [(change, f"{change.key}{change.number}") for change in GOOD]
    assert breaches_of_identity([*once, once[0]]) == []
    assert breaches_of_identity([*once, (GOOD[0], "another")]) == [Breach("phantom", GOOD[0])]


def test_a_run_after_the_commit_is_a_breach() -> None:
    """Runs before it were rolled back; those of events without effect count for nothing."""
    committed_at = {"x": (GOOD[0], 10.0)}
    assert breaches_of_runs(committed_at, [("x", 9.0), ("x", 9.5), ("y", 99.0)]) == []
    assert breaches_of_runs(committed_at, [("x", 9.0), ("x", 11.0)]) == [Breach("rerun", GOOD[0])]
