"""The pure parts of the gap-aware cursor: snapshots, holes in ids, gaps and what changed of them."""

from __future__ import annotations

import random

import pytest

from folio_events.cursor import Gaps, Holders, Range, Snapshot, _identify, _missing, _ranges

WRAP = 2**32


# Snapshots


def test_a_snapshot_is_read_from_its_text() -> None:
    """As PostgreSQL writes it, with and without running transactions."""
    assert Snapshot.parse("10:20:10,14,15") == Snapshot(10, 20, frozenset({10, 14, 15}))
    assert Snapshot.parse("10:10:") == Snapshot(10, 10, frozenset())
    wide = f"{5 * WRAP}:{5 * WRAP + 7}:{5 * WRAP}"
    assert Snapshot.parse(wide).running == {5 * WRAP}


@pytest.mark.parametrize(
    ("xid", "expected"),
    [(9, True), (10, False), (11, True), (14, False), (19, True), (20, False), (21, False)],
)
def test_what_a_snapshot_knows_to_have_ended(xid: int, expected: bool) -> None:
    """All below xmax that were not running; xmax itself had not begun."""
    assert Snapshot.parse("10:20:10,14,15").ended(xid) is expected


@pytest.mark.parametrize("epoch", [0, 1, 7])
@pytest.mark.parametrize("low", [3, 1000, WRAP // 2, WRAP - 1])
@pytest.mark.parametrize("distance", [0, 1, -1, 500, -500, 2**31 - 1, -(2**31)])
def test_a_32_bit_id_is_made_64_bits_wide(epoch: int, low: int, distance: int) -> None:
    """It is the one nearest to the snapshot, also across a wrap-around in either direction."""
    xmax = epoch * WRAP + low
    wide = xmax + distance

    assert Snapshot(xmax, xmax, frozenset()).widen(wide % WRAP) == wide


# Holes


@pytest.mark.parametrize(
    ("first", "last", "ids", "expected"),
    [
        (1, 5, [], [(1, 5)]),
        (1, 5, [1, 2, 3, 4, 5], []),
        (1, 5, [3], [(1, 2), (4, 5)]),
        (1, 5, [1, 5], [(2, 4)]),
        (1, 5, [2, 4], [(1, 1), (3, 3), (5, 5)]),
        (4, 6, [1, 2, 3, 7, 8], [(4, 6)]),
        (4, 6, [3, 5, 7], [(4, 4), (6, 6)]),
        (4, 4, [4], []),
        (5, 4, [], []),
    ],
)
def test_the_ids_that_are_missing(
    first: int, last: int, ids: list[int], expected: list[tuple[int, int]]
) -> None:
    """Ranges between first and last that the given ids leave out."""
    assert list(_missing(first, last, ids)) == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        ([7], [(7, 7)]),
        ([1, 2, 3], [(1, 3)]),
        ([1, 3, 4, 9], [(1, 1), (3, 4), (9, 9)]),
        ([0, 1], [(0, 1)]),
    ],
)
def test_ids_as_ranges_of_neighbours(ids: list[int], expected: list[tuple[int, int]]) -> None:
    """A range for each run of ids without a hole."""
    assert list(_ranges(ids)) == expected


def test_what_is_there_and_what_is_missing_make_up_the_whole() -> None:
    """For any ids, both together cover each number once."""
    rng = random.Random(7)
    for _ in range(300):
        first, last = rng.randrange(20), rng.randrange(20, 60)
        ids = sorted(rng.sample(range(80), rng.randrange(60)))

        within = [number for number in ids if first <= number <= last]
        covered = [
            number
            for part in (*_missing(first, last, ids), *_ranges(within))
            for number in range(part.first, part.last + 1)
        ]

        assert sorted(covered) == list(range(first, last + 1))


# Gaps


A, B, C, D = Range(1, 2), Range(5, 9), Range(12, 12), Range(20, 30)


def test_gaps_wake_when_one_of_their_transactions_ended() -> None:
    """They are asked for again, with the transactions that they waited for."""
    gaps = Gaps(
        waiting={
            frozenset({10, 11}): {A, B},
            frozenset({12}): {C},
            frozenset({13}): {D},
        }
    )

    assert gaps.wake(Snapshot.parse("11:14:11,13"))

    assert gaps.fresh == {
        A: Holders(frozenset({10, 11})),
        B: Holders(frozenset({10, 11})),
        C: Holders(frozenset({12})),
    }
    assert gaps.waiting == {frozenset({13}): {D}}


def test_gaps_sleep_while_all_their_transactions_run() -> None:
    """A transaction that has not begun in the snapshot has not ended either."""
    gaps = Gaps(waiting={frozenset({11, 13}): {A}, frozenset({20}): {B}})

    assert not gaps.wake(Snapshot.parse("11:14:11,13"))

    assert gaps.fresh == {}
    assert gaps.waiting == {frozenset({11, 13}): {A}, frozenset({20}): {B}}


def test_waking_touches_no_gap_that_is_asked_for_already() -> None:
    """Nor does it count as a change to be stored."""
    gaps = Gaps(fresh={A: None}, waiting={frozenset({1}): {B}})

    assert gaps.wake(Snapshot.parse("5:5:"))

    assert gaps.fresh == {A: None, B: Holders(frozenset({1}))}
    assert (gaps.added, gaps.removed) == (set(), set())


def test_a_gap_that_gave_way_is_noted() -> None:
    """What is new is stored, what is gone is deleted, what stayed costs nothing."""
    gaps = Gaps()

    gaps.replace([A, B], [B, C])

    assert (gaps.added, gaps.removed) == ({C}, {A})


def test_a_gap_that_came_and_went_was_never_stored() -> None:
    """Between two saves only the difference counts, whatever happened in between."""
    gaps = Gaps()

    gaps.replace([], [A, B])
    gaps.replace([A], [C])
    assert (gaps.added, gaps.removed) == ({B, C}, set())

    gaps.replace([B, C], [])
    assert (gaps.added, gaps.removed) == (set(), set())


def test_a_gap_that_went_and_came_back_stays_stored() -> None:
    """As a row that was held back, read and held back again."""
    gaps = Gaps()

    gaps.replace([A], [])
    gaps.replace([], [A, D])

    assert (gaps.added, gaps.removed) == ({D}, set())


def test_changes_add_up_to_the_difference() -> None:
    """After any sequence of replacements, stored gaps and changes give the gaps of now."""
    rng = random.Random(3)
    every = [Range(n, n) for n in range(12)]
    for _ in range(200):
        gaps = Gaps()
        stored = now = frozenset(rng.sample(every, 5))
        for _ in range(10):
            before = frozenset(rng.sample(sorted(now), min(2, len(now))))
            after = frozenset(rng.sample(every, 2)) - (now - before)
            gaps.replace(before, after)
            now = (now - before) | after

        assert (stored - gaps.removed) | gaps.added == now
        assert gaps.removed <= stored
        assert not gaps.added & stored


# Holders


def test_holders_are_somebody_or_nobody() -> None:
    """Whether any transaction may still bring the rows."""
    assert not Holders()
    assert Holders(frozenset({1}))
    assert Holders(vxids=frozenset({"3/1"}))


def test_a_virtual_id_is_known_by_its_transaction_once_it_has_one() -> None:
    """Until then it stays virtual; what is known already stays known."""
    holders = Holders(frozenset({5}), frozenset({"3/1", "4/1"}))

    found = _identify(holders, {"3/1": 7, "4/1": None, "9/9": 99})

    assert found == Holders(frozenset({5, 7}), frozenset({"4/1"}))


def test_a_virtual_id_that_is_gone_may_have_been_prepared() -> None:
    """PREPARE changes it to one that begins with -1: every prepared one may be the owner."""
    holders = Holders(vxids=frozenset({"3/1"}))

    assert _identify(holders, {"4/1": 8, "-1/70": 70, "-1/71": 71}) == Holders(frozenset({70, 71}))
    assert _identify(holders, {"4/1": 8}) == Holders()
