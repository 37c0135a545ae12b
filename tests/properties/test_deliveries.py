"""Consumers, deliveries and retries against a model of what each receiver has to see."""

from __future__ import annotations

import json
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError
from django.utils import timezone
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from folio_events import (
    CircuitBreaker,
    Event,
    RejectEvent,
    RetryPolicy,
    deliveries,
    inbox,
    receiver,
)
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.conf import get_settings
from folio_events.consumer import Consumer
from folio_events.deliveries import Standing
from folio_events.models import ConsumerOffset, Delivery, InboxEntry, ReceiverState
from folio_events.receivers import registry
from folio_events.redelivery import retry_due
from tests.note_topic import LOGICAL, WIRE, NoteTopic
from tests.testapp.models import Effect

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("only_test_receivers"),
    pytest.mark.timeout(1800),
]

#: Receivers by name; "strict" waits with whole partitions, so it has a group of its own.
RECEIVERS: dict[str, dict[str, Any]] = {
    "keyed": {},
    "loose": {"order": "none"},
    "careful": {"breaker": CircuitBreaker(failures=2, pause=3600)},
    "outside": {"mode": "after_commit"},
    "strict": {"order": "partition", "group": "strict"},
}
GROUPS = ("notes", "strict")
FATES = st.sampled_from(("fine", "fine", "fine", "fails", "rejects", "deadlock", "kills"))


class Killed(BaseException):
    """The receiver ends the process."""


class _DeadlockError(Exception):
    sqlstate = "40P01"
    sqlite_errorname = "SQLITE_BUSY"


class DeliveryMachine(RuleBasedStateMachine):
    """What took effect in each receiver, against what stands in the topic."""

    def __init__(self) -> None:
        super().__init__()
        for model in (Effect, Delivery, InboxEntry, ConsumerOffset, ReceiverState):
            model.objects.all().delete()
        self.broker = MemoryBroker({})
        self.broker.create_topics([TopicSpec(WIRE, 2, 1)])
        self.topic = NoteTopic(self.broker)
        self.members: dict[str, list[Consumer]] = {group: [] for group in GROUPS}
        self.notes: dict[int, tuple[uuid.UUID, str | None]] = {}
        #: What happens to a receiver that starts with a number; nothing else than success.
        self.fates: dict[tuple[str, int], str] = {}
        self.done: dict[str, set[int]] = defaultdict(set)
        self.discarded: dict[str, set[int]] = defaultdict(set)
        self.again: list[str] = []
        for known in list(registry):
            registry.remove(known.name)
        for name, options in RECEIVERS.items():
            self._register(name, **{"group": "notes", "breaker": None, **options})

    def _register(self, name: str, **options: Any) -> None:
        def function(event: Event) -> None:
            number = event.payload["number"]
            if number in self.done[name]:
                self.again.append(f"{name} ran again for {number}")
            if name == "outside":
                self._meet_fate(name, number)
            Effect.objects.create(
                receiver=name, event_id=event.id, key=event.key or "", note=str(number)
            )
            self._meet_fate(name, number)

        policy = RetryPolicy(attempts=3, backoff=0)
        receiver(LOGICAL, name=name, retry=policy, **options)(function)

    def _meet_fate(self, name: str, number: int) -> None:
        fate = self.fates.get((name, number))
        if fate == "fails":
            raise ValueError(number)
        if fate == "rejects":
            raise RejectEvent("no such note")
        if fate in ("deadlock", "kills"):
            del self.fates[name, number]
            if fate == "kills":
                raise Killed
            raise OperationalError("deadlock detected") from _DeadlockError()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.everything_settles()
        finally:
            for group in GROUPS:
                self._end(group)

    def _end(self, group: str) -> None:
        while self.members[group]:
            self.members[group].pop().close()

    @staticmethod
    def _set_batch_size(size: int) -> None:
        # Overriding a setting thousands of times would nest as deep.
        settings.FOLIO_EVENTS["CONSUMER_BATCH_SIZE"] = size
        get_settings.cache_clear()

    # The topic.

    @rule(key=st.sampled_from(("a", "b", "c", None)), fates=st.tuples(*[FATES] * len(RECEIVERS)))
    def put(self, key: str | None, fates: tuple[str, ...]) -> None:
        """A new event, and what each receiver will make of it."""
        number = len(self.notes)
        self.notes[number] = self.topic.put(key, number), key
        for name, fate in zip(RECEIVERS, fates, strict=True):
            self.fates[name, number] = fate

    @precondition(lambda self: self.notes)
    @rule(at=st.integers(0, 100))
    def put_again(self, at: int) -> None:
        """A relay has repeated a message."""
        number = at % len(self.notes)
        event_id, key = self.notes[number]
        self.topic.put(key, number, event_id=event_id)

    # The consumers.

    @rule(group=st.sampled_from(GROUPS), at=st.integers(0, 1), size=st.integers(1, 5))
    def consume(self, group: str, at: int, size: int) -> None:
        """One member goes one step on."""
        self._set_batch_size(size)
        if not self.members[group]:
            self.join(group)
        self._step(group, self.members[group][at % len(self.members[group])])

    def _step(self, group: str, member: Consumer) -> int:
        try:
            return member.step(timeout=0)
        except Killed:
            # Nothing of it is left; another process starts in its place.
            self.members[group].remove(member)
            member.close()
            self.join(group)
            return 1

    @rule(group=st.sampled_from(GROUPS))
    def join(self, group: str) -> None:
        """A second member takes over a partition, unannounced."""
        if len(self.members[group]) < 2:
            self.members[group].append(Consumer(group, broker=self.broker))

    @rule(group=st.sampled_from(GROUPS), forgotten=st.booleans())
    def restart(self, group: str, forgotten: bool) -> None:
        """All members end; the broker may not have heard of their last commits."""
        self._end(group)
        if forgotten:
            for group_and_place in list(self.broker._committed):
                if group_and_place[0] == group:
                    del self.broker._committed[group_and_place]

    # The retries, and the people who look after them.

    @rule(limit=st.integers(1, 5))
    def retry_pass(self, limit: int) -> None:
        """What is due runs, chain after chain."""
        with suppress(Killed):
            retry_due(limit=limit)

    @rule()
    def time_passes(self) -> None:
        """Leases and pauses of breakers end."""
        past = timezone.now() - timedelta(seconds=1)
        Delivery.objects.filter(state="retrying").update(next_attempt_at=past)
        ReceiverState.objects.filter(probe_at__isnull=False).update(probe_at=past)

    @rule(name=st.sampled_from(tuple(RECEIVERS)))
    def mend(self, name: str) -> None:
        """A receiver's trouble is over."""
        for name_and_number in self.fates:
            if name_and_number[0] == name:
                self.fates[name_and_number] = "fine"

    @precondition(lambda self: Delivery.objects.filter(state="dead").exists())
    @rule(at=st.integers(0, 5))
    def retry_a_dead_letter(self, at: int) -> None:
        """With or without its cause gone."""
        found = list(Delivery.objects.filter(state="dead").order_by("id"))
        deliveries.retry([found[at % len(found)].pk])

    @precondition(lambda self: Delivery.objects.filter(state__in=Delivery.OPEN).exists())
    @rule(at=st.integers(0, 5))
    def discard(self, at: int) -> None:
        """Somebody gives a delivery up."""
        found = list(Delivery.objects.filter(state__in=Delivery.OPEN).order_by("id"))
        delivery = found[at % len(found)]
        by_id = {event_id: number for number, (event_id, _key) in self.notes.items()}
        self.discarded[delivery.receiver].add(by_id[delivery.event_id])
        deliveries.discard([delivery.pk], reason="given up")

    def everything_settles(self) -> None:
        """When no receiver fails any more, each has had every event that was not given up."""
        self.fates.clear()
        self._set_batch_size(4)
        for group in GROUPS:
            self._end(group)
            self.join(group)
        for _ in range(40):
            moved = sum(self._step(group, self.members[group][0]) for group in GROUPS)
            dead = Delivery.objects.filter(state="dead").values_list("pk", flat=True)
            deliveries.retry(list(dead))
            self.time_passes()
            moved += retry_due(limit=1000).resolved
            is_open = Delivery.objects.filter(state__in=Delivery.OPEN).exists()
            if not moved and not is_open:
                break
        assert not moved, "it does not come to rest"
        assert not is_open, "something is left"
        self.each_receiver_sees_each_event_once_and_in_order()
        for name in RECEIVERS:
            assert set(self.notes) == self.done[name] | self.discarded[name], f"{name} missed some"

    @invariant()
    def each_receiver_sees_each_event_once_and_in_order(self) -> None:
        """Of each key, or partition, a prefix of what stands there, but for what was given up."""
        assert not self.again
        rows = Effect.objects.order_by("id").values_list("receiver", "note")
        effects: dict[str, list[int]] = defaultdict(list)
        for name, note in rows:
            effects[name].append(int(note))
        for name, numbers in effects.items():
            assert len(numbers) == len(set(numbers)), f"{name} had an event twice"
            self.done[name] = set(numbers)
            for lane in self._lanes(name):
                gone = self.discarded[name] - set(numbers)
                expected = [number for number in lane if number not in gone]
                seen = [number for number in numbers if number in lane]
                assert seen == expected[: len(seen)], f"{name} was overtaken"

    def _lanes(self, name: str) -> list[list[int]]:
        """The numbers within which a receiver is promised an order."""
        if name == "loose":
            return []
        lanes: dict[object, list[int]] = defaultdict(list)
        ids = {event_id: number for number, (event_id, _key) in self.notes.items()}
        for record in self.broker.records(WIRE):
            if record.key is None:
                continue  # a repetition may stand in another partition
            lane = record.partition if name == "strict" else record.key
            number = ids[self._id_of(record.value)]
            if number not in lanes[lane]:
                lanes[lane].append(number)
        return list(lanes.values())

    @staticmethod
    def _id_of(value: bytes | None) -> uuid.UUID:
        return uuid.UUID(json.loads(value or b"")["id"])


@pytest.fixture
def machine(folio_events: Callable[..., None]) -> type[DeliveryMachine]:
    # Small limits, so that they are met.
    folio_events(GROUP="notes", MAX_HELD=3, MAX_WAITING=4, POLL_FAILURE_SLEEP=0)
    return DeliveryMachine


def test_each_receiver_has_each_event_once_and_in_order(
    machine: type[DeliveryMachine], holds: Callable[..., None]
) -> None:
    """Whatever fails, restarts, is repeated, retried or given up."""
    holds(machine)


def _let_followers_go(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Standing, "waiting", lambda _self, _receiver, _record: None)


def _forget_failures(patch: pytest.MonkeyPatch) -> None:
    def nothing(*_arguments: Any, **_options: Any) -> None:
        """Keep no delivery."""

    patch.setattr(deliveries, "record_failure", nothing)


def _forget_effects(patch: pytest.MonkeyPatch) -> None:
    def all_are_new(effects: Collection[Any], *, using: str) -> set[Any]:
        return set(effects)

    patch.setattr(inbox, "record", all_are_new)
    patch.setattr(inbox, "seen", lambda _effect, *, using: False)


@pytest.mark.once
@pytest.mark.parametrize(
    "defect",
    [
        _let_followers_go,
        _forget_failures,
        _forget_effects,
    ],
)
def test_the_model_sees_a_planted_defect(
    defect: Callable[[pytest.MonkeyPatch], None],
    machine: type[DeliveryMachine],
    is_broken: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each rule of deliveries and inbox is one that the model holds them to."""
    defect(monkeypatch)
    is_broken(machine)
