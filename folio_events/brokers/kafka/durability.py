"""What the settings of topics put at risk: events that were acknowledged, or the next ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from django.core import checks
from django.core.checks import CheckMessage

#: Most topics that a warning names.
_NAMED = 5


class Durability(NamedTuple):
    """How a topic is kept."""

    #: Of the partition that has the fewest.
    replicas: int
    min_insync: int
    #: Whether a replica without the newest records may become leader.
    unclean_election: bool


def warnings(topics: Mapping[str, Durability]) -> list[CheckMessage]:
    """Name the topics whose settings can lose events, or refuse all of them.

    Args:
        topics: By name on the broker.
    """

    def those(condition: Callable[[Durability], bool]) -> list[str]:
        return sorted(name for name, kept in topics.items() if condition(kept))

    found = (
        (
            those(lambda kept: kept.replicas == 1),
            "have one replica",
            "An acknowledged event is lost with that broker's disk: give topics three replicas "
            "(FOLIO_EVENTS['TOPIC_REPLICATION'], or the broker's default.replication.factor).",
            "folio_events.W020",
        ),
        (
            those(lambda kept: kept.replicas > 1 and kept.min_insync == 1),
            "have min.insync.replicas 1",
            "An acknowledged event may be on one broker only, and be lost with it: with three "
            "replicas set min.insync.replicas to 2.",
            "folio_events.W021",
        ),
        (
            those(lambda kept: kept.min_insync > kept.replicas),
            "have min.insync.replicas above their replicas",
            "Nothing can be published to them: lower it, or add replicas.",
            "folio_events.W022",
        ),
        (
            those(lambda kept: kept.replicas > 1 and kept.unclean_election),
            "have unclean.leader.election.enable on",
            "A replica without the newest events may become leader, and they are lost: set it "
            "to false.",
            "folio_events.W023",
        ),
    )
    return [
        checks.Warning(
            f"{len(names)} topics {what}: {', '.join(_listed(names))}.", hint=hint, id=number
        )
        for names, what, hint, number in found
        if names
    ]


def _listed(names: list[str]) -> Iterator[str]:
    yield from names[:_NAMED]
    if len(names) > _NAMED:
        yield f"and {len(names) - _NAMED} more"
