"""Outbox and relay against a model: any order of writes, drains, faults, deaths and purges."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from django.db import connection
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from folio_events import publish, relay, withheld
from folio_events.brokers.base import Report
from folio_events.cursor import OutboxCursor
from folio_events.exceptions import BrokerUnavailableError
from folio_events.message import Message
from folio_events.models import (
    OutboxMessage,
    Publication,
    RelayCursor,
    RelayGap,
    WithheldMessage,
)
from folio_events.operations import retention
from folio_events.relay import Drain, drain
from tests.faulty_broker import FaultyBroker
from tests.properties.worker import Worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(1800)]

TOPIC, WIRE = "library.note", "folio.library.note"
WANTED = st.sampled_from(("a", "b", "c", None))
FATES = st.sampled_from(("fine", "fine", "fine", "unanswered", "lost", "refused"))
Note = tuple[str | None, int]


def number_of(body: bytes | memoryview | None) -> int:
    return int(json.loads(bytes(body or b""))["data"]["number"])


class Died(BaseException):
    """The relay's process ends here."""


class FatefulBroker(FaultyBroker):
    """Treats each message by the fate of its number."""

    def __init__(self) -> None:
        super().__init__({})
        self.unanswered: set[int] = set()
        self.refused: set[int] = set()
        #: Their acknowledgement gets lost once, with those of the key's later messages.
        self.lost: set[int] = set()
        #: What the relay may publish twice, since it cannot know that it is in the log.
        self.repeatable: set[int] = set()
        self.acknowledges = lambda message: number_of(message.value) not in self.unanswered
        self.refuses = lambda message: number_of(message.value) in self.refused

    def publish(self, messages: Sequence[Message], *, timeout: float) -> list[Report]:
        reports = super().publish(messages, timeout=timeout)
        silent: set[bytes] = set()
        for at, message in enumerate(messages):
            number = number_of(message.value)
            is_lost = number in self.lost
            self.lost.discard(number)
            if is_lost or message.key in silent:
                reports[at] = BrokerUnavailableError("no answer")
                self.repeatable.add(number)
            if is_lost and message.key is not None:
                silent.add(message.key)
        return reports

    def log(self) -> list[Note]:
        """Key and number of every record, each partition in its order."""
        return [
            (None if record.key is None else record.key.decode(), number_of(record.value))
            for record in self.records(WIRE)
        ]


@dataclass
class Writer:
    """A writer's connection, and what the model knows of its open transaction."""

    worker: Worker
    #: Of each open block: what it appended, and the keys it was the first to lock.
    blocks: list[tuple[list[Note], set[str]]] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        return {key for _notes, keys in self.blocks for key in keys}

    def enter(self) -> None:
        self.worker.enter()
        self.blocks.append(([], set()))

    def append(self, note: Note) -> None:
        key, number = note
        self.worker.do(lambda: publish(TOPIC, key=key, payload={"number": number}))
        if key is not None and key not in self.keys:
            self.blocks[-1][1].add(key)
        self.blocks[-1][0].append(note)

    def leave(self, *, undo: bool) -> list[Note]:
        """Close the innermost block; returns what was committed by that."""
        self.worker.leave(undo=undo)
        notes, keys = self.blocks.pop()
        if undo:
            return []
        if not self.blocks:
            return notes
        self.blocks[-1][0].extend(notes)
        self.blocks[-1][1].update(keys)
        return []


class OutboxMachine(RuleBasedStateMachine):
    """What is in the log, against what was committed in which order."""

    writer_count = 1

    def __init__(self) -> None:
        super().__init__()
        for model in (Publication, WithheldMessage, RelayGap, RelayCursor, OutboxMessage):
            model.objects.all().delete()
        relay._cursor.cache_clear()
        self.serial = connection.vendor == "sqlite"
        self.broker = FatefulBroker()
        self.writers = [Writer(Worker()) for _ in range(self.writer_count)]
        self.relays = [Worker(), Worker()]
        self.numbers = 0
        self.committed: dict[str | None, list[int]] = defaultdict(list)
        self.discarded: set[int] = set()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.everything_settles()
                self.the_log_is_a_prefix_of_what_was_committed()
        finally:
            for worker in (*self.relays, *(writer.worker for writer in self.writers)):
                worker.close()

    # The writers.

    @rule(
        writer=st.integers(0, 2),
        notes=st.lists(st.tuples(WANTED, FATES), min_size=1, max_size=4),
        savepoint=st.booleans(),
        stay=st.booleans(),
    )
    def write(
        self, writer: int, notes: list[tuple[str | None, str]], savepoint: bool, stay: bool
    ) -> None:
        """Append in the writer's transaction, or in a savepoint of it, and stay in it or leave."""
        chosen = self.writers[writer % len(self.writers)]
        if savepoint or not chosen.blocks:
            chosen.enter()
        # Whoever wants a key that another transaction has locked would wait for it.
        locked = {key for other in self.writers if other is not chosen for key in other.keys}
        for wanted, fate in notes:
            self.numbers += 1
            chosen.append((None if wanted in locked else wanted, self.numbers))
            if fate != "fine":
                getattr(self.broker, fate).add(self.numbers)
        if not stay:
            self._leave(chosen, undo=False)

    @precondition(lambda self: any(writer.blocks for writer in self.writers))
    @rule(writer=st.integers(0, 2), undo=st.booleans())
    def leave(self, writer: int, undo: bool) -> None:
        """Commit or roll back the innermost block of a writer that has one."""
        self._leave([w for w in self.writers if w.blocks][writer % self._open()], undo=undo)

    def _open(self) -> int:
        return sum(bool(writer.blocks) for writer in self.writers)

    def _leave(self, writer: Writer, *, undo: bool) -> None:
        for key, number in writer.leave(undo=undo):
            self.committed[key].append(number)

    def _is_free(self) -> bool:
        # SQLite has one write lock; who waits for it in this thread waits for ever.
        return not (self.serial and self._open())

    # The relay.

    def _drain(self, which: int, limit: int) -> Drain:
        result = self.relays[which].do(lambda: drain(broker=self.broker, limit=limit))
        assert isinstance(result, Drain)
        return result

    @precondition(_is_free)
    @rule(which=st.integers(0, 1), limit=st.integers(1, 6))
    def drain(self, which: int, limit: int) -> None:
        """Either relay drains; the other may have gone on meanwhile."""
        assert not self._drain(which, limit).standby

    @precondition(_is_free)
    @rule(which=st.integers(0, 1), limit=st.integers(1, 6), forgets=st.booleans())
    def drain_and_die(self, which: int, limit: int, forgets: bool) -> None:
        """The relay ends when the broker has the batch and the database does not know it."""
        self.broker.after_publish = mock.Mock(side_effect=Died)
        before = Counter(self.broker.log())
        with suppress(Died):
            self._drain(which, limit)
        self.broker.after_publish = lambda: None
        unknown = Counter(self.broker.log()) - before
        self.broker.repeatable |= {number for _key, number in unknown}
        if forgets:
            relay._cursor.cache_clear()

    @precondition(lambda self: not self.serial and self._open())
    @rule(
        which=st.integers(0, 1),
        limit=st.integers(1, 6),
        writer=st.integers(0, 2),
        undo=st.booleans(),
        seam=st.sampled_from(("_read_once", "_holders", "publish")),
    )
    def drain_while_a_writer_ends(
        self, which: int, limit: int, writer: int, undo: bool, seam: str
    ) -> None:
        """A writer commits or rolls back in the midst of a drain, at one of its seams."""
        chosen = [w for w in self.writers if w.blocks][writer % self._open()]

        def end() -> None:
            if chosen.blocks:
                self._leave(chosen, undo=undo)

        with _before(self.broker if seam == "publish" else OutboxCursor, seam, end):
            self._drain(which, limit)

    @rule(which=st.integers(0, 1))
    @precondition(_is_free)
    def drain_while_the_other_does(self, which: int) -> None:
        """Of two relays at once the second stands by."""
        seen: list[Drain] = []
        other = 1 - which
        with _before(self.broker, "publish", lambda: seen.append(self._drain(other, 3))):
            self._drain(which, 3)
        assert all(result == Drain(standby=True) for result in seen)

    # The people who look after it.

    @rule()
    def heal(self) -> None:
        """The broker answers everything again that it does not refuse."""
        self.broker.unanswered.clear()

    @precondition(lambda self: self._is_free() and self.broker.refused)
    @rule(at=st.integers(0, 5), mended=st.booleans())
    def release(self, at: int, mended: bool) -> None:
        """A refused message is released, with or without its cause gone."""
        found = self._refused()
        if found:
            message = found[at % len(found)]
            if mended:
                self.broker.refused.discard(number_of(message.outbox_message.payload))
            withheld.release([message.pk])

    @precondition(lambda self: self._is_free() and self.broker.refused)
    @rule(at=st.integers(0, 5))
    def discard(self, at: int) -> None:
        """A refused message is given up."""
        found = self._refused()
        if found:
            message = found[at % len(found)]
            self.discarded.add(number_of(message.outbox_message.payload))
            withheld.discard([message.pk], reason="given up")

    @staticmethod
    def _refused() -> list[WithheldMessage]:
        rows = WithheldMessage.objects.select_related("outbox_message")
        return list(rows.filter(state="refused").order_by("outbox_message"))

    @precondition(_is_free)
    @rule()
    def purge(self) -> None:
        """Whatever is settled goes at once; nothing else does."""
        retention.purge()
        there = {
            number_of(body) for body in OutboxMessage.objects.values_list("payload", flat=True)
        }
        published = {number for _key, number in self.broker.log()}
        expected = {number for numbers in self.committed.values() for number in numbers}
        assert expected - published - self.discarded <= there

    def everything_settles(self) -> None:
        """When writers have ended and faults are over, all is published, and no gap is left."""
        for writer in self.writers:
            while writer.blocks:
                self._leave(writer, undo=False)
        self.broker.unanswered.clear()
        self.broker.refused.clear()
        withheld.release([message.pk for message in self._refused()])
        idle = 0
        for _ in range(200):
            done = self._drain(0, 5)
            idle = 0 if done.published or done.more else idle + 1
            if idle == 3:
                break
        assert idle == 3, "the relay does not come to rest"
        published = {number for _key, number in self.broker.log()}
        expected = {number for numbers in self.committed.values() for number in numbers}
        assert published | self.discarded >= expected, "lost"
        assert not RelayGap.objects.exists()
        assert not withheld.any_open(using="default")

    @invariant()
    def the_log_is_a_prefix_of_what_was_committed(self) -> None:
        """Of each key, in the order of commits; what was not committed is not there."""
        found: dict[str | None, list[int]] = defaultdict(list)
        for key, number in self.broker.log():
            if number in found[key]:
                assert number in self.broker.repeatable, f"{number} stands there twice"
            else:
                found[key].append(number)
        for key, numbers in found.items():
            gone = self.discarded - set(numbers)
            expected = [number for number in self.committed[key] if number not in gone]
            if key is None:
                assert set(numbers) <= set(expected)
            else:
                assert numbers == expected[: len(numbers)], f"key {key}"


@contextmanager
def _before(owner: Any, name: str, what: Callable[[], None]) -> Iterator[None]:
    """Have something happen, once, when a drain comes to a call."""
    call = getattr(owner, name)
    todo = [what]

    def first_that(*args: Any, **kwargs: Any) -> Any:
        if todo:
            todo.pop()()
        return call(*args, **kwargs)

    with mock.patch.object(owner, name, first_that):
        yield


@pytest.fixture
def machine(writers: int, folio_events: Callable[..., None]) -> type[OutboxMachine]:
    folio_events(OUTBOX_RETENTION=0)
    return type("Machine", (OutboxMachine,), {"writer_count": writers})


def test_outbox_and_relay_lose_repeat_and_invert_nothing(
    machine: type[OutboxMachine], holds: Callable[..., None]
) -> None:
    """In whatever order transactions end, drains fail, relays die and purges run."""
    holds(machine)


def _forget_what_was_held_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OutboxCursor, "hold_back", lambda _self, _ids: None)


def _pass_over_gaps(patch: pytest.MonkeyPatch) -> None:
    def nothing(_first: int, _last: int, _ids: Sequence[int]) -> Iterator[Any]:
        return iter(())

    patch.setattr("folio_events.cursor._missing", nothing)


def _overtake_refused(patch: pytest.MonkeyPatch) -> None:
    def none(_keys: Collection[str], *, using: str) -> set[Any]:
        return set()

    patch.setattr(withheld, "open_chains", none)


def _purge_by_age(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(retention, "horizon", lambda *, using: 2**62)


def _trust_memory(patch: pytest.MonkeyPatch) -> None:
    """A cursor that has loaded once never looks whether another relay went on."""
    load = OutboxCursor.load

    def once(self: OutboxCursor) -> None:
        if self._version is None:
            load(self)

    patch.setattr(OutboxCursor, "load", once)


@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(_forget_what_was_held_back, marks=pytest.mark.once),
        pytest.param(_overtake_refused, marks=pytest.mark.once),
        pytest.param(_purge_by_age, marks=pytest.mark.once),
        pytest.param(_trust_memory, marks=pytest.mark.once),
        pytest.param(_pass_over_gaps, marks=pytest.mark.postgres),
    ],
)
def test_the_model_sees_a_planted_defect(
    defect: Callable[[pytest.MonkeyPatch], None],
    machine: type[OutboxMachine],
    is_broken: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each rule of cursor, withholding and purge is one that the model holds them to."""
    defect(monkeypatch)
    is_broken(machine)
