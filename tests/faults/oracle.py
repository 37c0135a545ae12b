"""The oracle: what became of committed changes, held against what was promised.

A change is named by its key and a number. The numbers of a key's committed changes run from 1
without a hole, in the order of their commits; that is the whole truth, and it comes from the
changed rows themselves, not from anything that folio_events has written.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Change(NamedTuple):
    """One committed change as somebody saw it."""

    key: str
    #: Counted from 1 in each key; a change that was rolled back bears a number below 1.
    number: int


class Breach(NamedTuple):
    """A promise that was not kept."""

    #: "lost", "doubled", "inverted", "phantom" or "rerun".
    kind: str
    change: Change


def breaches_of_log(committed: Mapping[str, int], log: Iterable[Change]) -> list[Breach]:
    """Hold a broker's log against the commits.

    Each change stands in it at least once, first appearances of a key in commit order, and
    nothing else stands in it.

    Args:
        committed: Key to the number of its committed changes.
        log: In the order of each partition.
    """
    return _breaches(committed, list(log))


def breaches_of_effects(committed: Mapping[str, int], effects: Iterable[Change]) -> list[Breach]:
    """Hold what one receiver did against the commits.

    As for the log, and each change took effect exactly once.

    Args:
        committed: Key to the number of its committed changes.
        effects: In the order in which they were made.
    """
    found = list(effects)
    doubled = [Breach("doubled", change) for change, n in Counter(found).items() if n > 1]
    return _breaches(committed, found) + doubled


def _breaches(committed: Mapping[str, int], found: Sequence[Change]) -> list[Breach]:
    breaches = []
    wanted = {Change(key, n) for key, last in committed.items() for n in range(1, last + 1)}
    firsts = dict.fromkeys(found)
    breaches += [Breach("lost", change) for change in sorted(wanted - firsts.keys())]
    breaches += [Breach("phantom", change) for change in sorted(firsts.keys() - wanted)]
    highest: dict[str, int] = defaultdict(int)
    for change in firsts:
        if change.number < highest[change.key]:
            breaches.append(Breach("inverted", change))
        highest[change.key] = max(highest[change.key], change.number)
    return breaches


def breaches_of_identity(log: Iterable[tuple[Change, str]]) -> list[Breach]:
    """Hold the ids of events against the changes: one change is one event, however often sent.

    A second event of a change stems from a transaction that was rolled back and whose number
    was given again.
    """
    ids: dict[Change, str] = {}
    breaches = []
    for change, event_id in log:
        if ids.setdefault(change, event_id) != event_id:
            breaches.append(Breach("phantom", change))
    return breaches


def breaches_of_runs(
    committed_at: Mapping[str, tuple[Change, float]],
    runs: Iterable[tuple[str, float]],
    slack: float = 0.0,
) -> list[Breach]:
    """Hold the runs of a receiver against its commits: what took effect is not run again.

    Args:
        committed_at: Event id to its change and the time at which its effect was committed.
        runs: Event id and the time at which a run began.
        slack: Seconds by which the clocks may differ.
    """
    return [
        Breach("rerun", committed_at[event_id][0])
        for event_id, began_at in runs
        if event_id in committed_at and began_at > committed_at[event_id][1] + slack
    ]
