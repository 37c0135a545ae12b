"""The rule by which two sides agree on a field; pure, one field and one event at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Stamp(NamedTuple):
    """When and where a field was edited; the later one compares as greater."""

    #: Microseconds since 1970.
    at: int
    by_owner: bool
    row: str


UNSTAMPED = Stamp(0, False, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncedField:
    """One text that both sides hold, under its JSON name on each."""

    hub: str
    spoke: str
    #: Topic of the side that the fact belongs to.
    owner: str
    #: Whether the other side may blank it too.
    blankable: bool = False

    def may_blank(self, topic: str) -> bool:
        return self.blankable or topic == self.owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What a row holds of a field."""

    value: str
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an event says about a field."""

    field: SyncedField
    #: Topic of the event.
    sender: str
    value: str
    #: What the sender held before; None when it was not linked before.
    before: str | None
    stamp: Stamp


Verdict = Literal["keep", "take", "answer"]


def decide(change: Change, local: Version) -> Verdict:
    """Say what a change means for a row.

    Returns:
        "keep": nothing. "take": the change holds. "answer": what is here holds, and the
        sender has to be told.
    """
    if change.value == local.value:
        return "keep"
    if not change.value and not change.field.may_blank(change.sender):
        return "answer"
    if change.stamp > local.stamp:
        return "take"
    # Usually the edit here is on its way to the sender already. It is lost on a sender
    # that was not linked when it passed, or that held the same value and so kept its own,
    # earlier stamp for it.
    return "answer" if change.before is None or change.before == local.value else "keep"
