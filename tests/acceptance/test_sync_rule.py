"""Whatever way the events of simultaneous edits cross, the rule leaves one value everywhere.

Every interleaving of edits and deliveries of small scenarios is walked through. Messages
of one sender to one receiver keep their order, as events of one key do; nothing else is
ordered. Clocks may be equal or run backwards from one record to the other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from sample_project.sync.rule import UNSTAMPED, Change, Stamp, SyncedField, Version, decide

pytestmark = pytest.mark.once  # no database at all

HUB = "hub"
TOPIC = {"hub": "inventory.item", "p1": "orders.piece", "p2": "orders.piece"}
BY_ITEM = SyncedField(hub="enumeration", spoke="enumeration", owner="inventory.item")
BY_PIECE = SyncedField(hub="barcode", spoke="barcode", owner="orders.piece", blankable=True)


class Edit(NamedTuple):
    """Somebody writes a value in a record, whose clock shows ``at``."""

    row: str
    value: str
    at: int


class Link(NamedTuple):
    """A piece is linked to the item from now on."""

    row: str
    at: int


class Sent(NamedTuple):
    """What an event says about the field."""

    value: str
    before: str | None
    stamp: Stamp


@dataclass(frozen=True)
class Library:
    """The state of all records and of all events on their way."""

    field: SyncedField
    rows: tuple[tuple[str, Version], ...]
    linked: frozenset[str]
    #: Edits still to be made, by record, in their order.
    plan: tuple[tuple[str, tuple[Edit | Link, ...]], ...]
    #: Events on their way, by sender and receiver, in their order.
    wire: tuple[tuple[tuple[str, str], tuple[Sent, ...]], ...]

    def successors(self):
        for row, edits in self.plan:
            if edits:
                yield self._edited(row, edits[0])
        for (sender, receiver), events in self.wire:
            if events:
                yield self._delivered(sender, receiver, events[0])

    def _edited(self, row, edit):
        plan = {**dict(self.plan), row: dict(self.plan)[row][1:]}
        local = dict(self.rows)[row]
        is_link = isinstance(edit, Link)
        value = local.value if is_link else edit.value
        if row in self.linked and not value and not self.field.may_blank(TOPIC[row]):
            value = local.value
        linked = self.linked | {row} if is_link else self.linked
        if value == local.value and not (is_link and value):
            return self._with(plan=plan, linked=linked)
        version = Version(value=value, stamp=self._stamp(row, edit.at, local.stamp))
        before = None if is_link else local.value
        return self._with(plan=plan, linked=linked)._written(row, version, before)

    def _delivered(self, sender, receiver, sent):
        wire = dict(self.wire)
        wire[sender, receiver] = wire[sender, receiver][1:]
        after = self._with(wire=wire)
        if receiver != HUB and receiver not in self.linked:
            return after
        local = dict(self.rows)[receiver]
        change = Change(
            field=self.field,
            sender=TOPIC[sender],
            value=sent.value,
            before=sent.before,
            stamp=sent.stamp,
        )
        verdict = decide(change, local)
        if verdict == "keep":
            return after
        if verdict == "take":
            version = Version(value=sent.value, stamp=sent.stamp)
        else:
            stamp = self._stamp(receiver, 0, local.stamp, sent.stamp)
            version = Version(value=local.value, stamp=stamp)
        return after._written(receiver, version, local.value)

    def _stamp(self, row, now, *earlier):
        at = max(now, *(stamp.at + 1 for stamp in earlier))
        return Stamp(at, TOPIC[row] == self.field.owner, row)

    def _written(self, row, version, before):
        rows = {**dict(self.rows), row: version}
        wire = dict(self.wire)
        sent = Sent(version.value, before, version.stamp)
        # An item's events reach orders whoever is linked; a piece's count only when it is.
        receivers = [r for r, _ in self.rows if r != HUB] if row == HUB else [HUB]
        for receiver in receivers if row == HUB or row in self.linked else []:
            wire[row, receiver] = (*wire.get((row, receiver), ()), sent)
        return self._with(rows=rows, wire=wire)

    def _with(self, **changes):
        pack = {
            name: tuple(sorted(value.items())) if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        state = {name: getattr(self, name) for name in self.__dataclass_fields__} | pack
        return Library(**state)


def library(field, edits, values="x", unlinked=(), rows=("hub", "p1", "p2")):
    values = dict.fromkeys(rows, values) if isinstance(values, str) else values
    plan = {row: tuple(e for e in edits if e.row == row) for row in rows}
    return Library(
        field=field,
        rows=tuple(sorted((row, Version(value=values[row], stamp=UNSTAMPED)) for row in rows)),
        linked=frozenset(rows) - set(unlinked),
        plan=tuple(sorted(plan.items())),
        wire=(),
    )


def ends(start):
    """Walk all interleavings; return every state in which nothing is left to happen."""
    seen, todo, found = {start}, [start], set()
    while todo:
        state = todo.pop()
        following = list(state.successors())
        if not following:
            found.add(state)
        for successor in following:
            if successor not in seen:
                seen.add(successor)
                todo.append(successor)
        assert len(seen) < 200_000, "it does not come to rest"
    return found


def held(state):
    return {row: version.value for row, version in state.rows if row in state.linked}


def dated(edits):
    """All ways to date the edits against each other: earlier, at once, later."""
    orders = set()
    for clocks in itertools.product((5, 6, 7), repeat=len(edits)):
        ranks = tuple(sorted(set(clocks)).index(clock) for clock in clocks)
        by_row = {
            row: [r for r, e in zip(ranks, edits, strict=True) if e.row == row] for row in TOPIC
        }
        if all(own == sorted(own) for own in by_row.values()):
            orders.add(ranks)
    for ranks in sorted(orders):
        yield [edit._replace(at=5 + rank) for edit, rank in zip(edits, ranks, strict=True)]


SCENARIOS = {
    "both sides at once": [Edit("hub", "a", 0), Edit("p1", "b", 0)],
    "both pieces at once": [Edit("p1", "a", 0), Edit("p2", "b", 0)],
    "all three at once": [Edit("hub", "a", 0), Edit("p1", "b", 0), Edit("p2", "c", 0)],
    "the same value twice, another once": [
        Edit("hub", "a", 0),
        Edit("p1", "a", 0),
        Edit("p2", "b", 0),
    ],
    "there and back": [Edit("hub", "a", 0), Edit("hub", "x", 0), Edit("p1", "b", 0)],
    "both there and back": [
        Edit("hub", "a", 0),
        Edit("hub", "x", 0),
        Edit("p1", "b", 0),
        Edit("p1", "x", 0),
    ],
    "a piece blanks": [Edit("p1", "", 0), Edit("hub", "a", 0), Edit("p2", "b", 0)],
    "the item blanks": [Edit("hub", "", 0), Edit("p1", "a", 0), Edit("p2", "b", 0)],
    "both blank and one writes": [Edit("hub", "", 0), Edit("p1", "", 0), Edit("p2", "b", 0)],
}


@pytest.mark.parametrize(
    "field", [BY_ITEM, BY_PIECE], ids=["owned by the item", "owned by the piece"]
)
@pytest.mark.parametrize("edits", SCENARIOS.values(), ids=SCENARIOS)
def test_simultaneous_edits_converge_to_one_value_in_every_interleaving(edits, field):
    for plan in dated(edits):
        for end in ends(library(field, plan)):
            assert len(set(held(end).values())) == 1, f"{plan} ended as {held(end)}"


@pytest.mark.parametrize(
    "field", [BY_ITEM, BY_PIECE], ids=["owned by the item", "owned by the piece"]
)
def test_a_piece_that_is_linked_while_the_item_is_edited_converges(field):
    edits = [Link("p2", 0), Edit("hub", "a", 0), Edit("p1", "b", 0)]
    for plan in dated(edits):
        for end in ends(
            library(field, plan, values={"hub": "x", "p1": "x", "p2": "y"}, unlinked=["p2"])
        ):
            assert len(set(held(end).values())) == 1, f"{plan} ended as {held(end)}"


def crossing(field, *edits):
    """The state after both edits, before either event has arrived."""
    state = library(field, edits, rows=("hub", "p1"))
    for edit in edits:
        state = state._edited(edit.row, edit)
    return state


@pytest.mark.parametrize(("first", "second"), [("hub", "p1"), ("p1", "hub")])
def test_of_two_edits_whose_events_cross_the_later_wins(first, second):
    start = crossing(BY_ITEM, Edit(first, "early", 5), Edit(second, "late", 6))
    assert {frozenset(held(end).values()) for end in ends(start)} == {frozenset({"late"})}


@pytest.mark.parametrize(
    ("field", "winner"), [(BY_ITEM, "of the item"), (BY_PIECE, "of the piece")]
)
def test_of_two_edits_of_one_microsecond_the_owners_wins(field, winner):
    start = crossing(field, Edit("hub", "of the item", 5), Edit("p1", "of the piece", 5))
    assert {frozenset(held(end).values()) for end in ends(start)} == {frozenset({winner})}


def test_an_edit_after_another_was_taken_over_wins_even_if_its_clock_is_behind():
    start = library(BY_ITEM, [Edit("hub", "first", 9), Edit("p1", "second", 5)], rows=("hub", "p1"))
    (edited,) = [s for s in start.successors() if held(s)["hub"] == "first"]
    (arrived,) = [s for s in edited.successors() if held(s)["p1"] == "first"]
    answered = arrived._edited("p1", Edit("p1", "second", 5))
    assert {frozenset(held(end).values()) for end in ends(answered)} == {frozenset({"second"})}


@pytest.mark.parametrize("row", ["hub", "p1"])
def test_one_edit_settles_after_one_event_each_way(row):
    (state,) = library(BY_ITEM, [Edit(row, "a", 5)], rows=("hub", "p1")).successors()
    deliveries = 0
    while following := list(state.successors()):
        (state,) = following
        deliveries += 1
    assert deliveries == 2
    assert set(held(state).values()) == {"a"}


def test_the_same_value_on_both_sides_sends_nothing_back():
    start = crossing(BY_ITEM, Edit("hub", "a", 5), Edit("p1", "a", 6))
    (end,) = ends(start)
    assert held(end) == {"hub": "a", "p1": "a"}
    assert all(version.stamp.row == row for row, version in end.rows)
