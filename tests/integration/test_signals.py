"""What happens is told by Django signals: after the commit, and without harm to the delivery."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections, transaction
from django.utils import timezone

from folio_events import CircuitBreaker, RetryPolicy, deliveries, publish, signals
from folio_events.broadcast import Broadcast
from folio_events.brokers import get_broker
from folio_events.consumer import Consumer
from folio_events.logs import MessageRef
from folio_events.models import ConsumerOffset, Delivery, ReceiverState
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from folio_events.relay_daemon import serve
from folio_events.signals import Happening
from tests.faulty_broker import FaultyBroker
from tests.note_topic import LOGICAL, WIRE, Mood, NoteTopic, effects, note_receiver
from tests.pages import page

pytestmark = pytest.mark.django_db(transaction=True)

ALL = {name: one for name, one in vars(signals).items() if isinstance(one, Happening)}
Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def told() -> Iterator[Told]:
    """Every signal that is sent, with its facts."""
    found: Told = []

    def listener(name: str) -> Callable[..., None]:
        def hear(signal: object, sender: object, **facts: Any) -> None:
            assert sender is None
            # It hears of nothing that may still be rolled back.
            assert not connections[facts["using"]].in_atomic_block
            assert facts.keys() == {"using", *ALL[name].facts}
            found.append((name, facts))

        return hear

    for name, signal in ALL.items():
        signal.connect(listener(name), weak=False, dispatch_uid="tests")
    yield found
    for signal in ALL.values():
        signal.disconnect(dispatch_uid="tests")


def of(told: Told, name: str) -> list[dict[str, Any]]:
    return [facts for one, facts in told if one == name]


def names(told: Told) -> list[str]:
    return [name for name, _ in told]


class RefusalError(Exception):
    """What a handler of a test raises."""


def test_what_is_published_is_told_with_its_place_and_times(
    told: Told, faulty_broker: FaultyBroker
) -> None:
    """One signal a batch; each event in it names its row, its place and when it was where."""
    one = publish(LOGICAL, key="a", payload={"number": 1})
    two = publish(LOGICAL, key="b", payload={"number": 2})
    drain()
    (facts,) = of(told, "events_published")
    batch = list(facts["batch"])
    assert len(facts["batch"]) == 2
    assert [found.row.event_id for found in batch] == [str(one.id), str(two.id)]
    assert {found.topic for found in batch} == {WIRE}
    for found in batch:
        assert found.row.occurred_at.timestamp() <= found.handed_at <= found.acknowledged_at


def test_each_event_of_a_batch_has_the_times_of_its_own_round(
    told: Told, faulty_broker: FaultyBroker
) -> None:
    """Where a refusal made the relay send again, what came through later was acknowledged later."""
    ids = [publish(LOGICAL, key=key, payload={}).id for key in "abc"]
    faulty_broker.refuses = lambda message: message.key == b"b"
    faulty_broker.refuses_whole_batches = True
    drain()
    (facts,) = of(told, "events_published")
    first, last = facts["batch"]
    assert [first.row.event_id, last.row.event_id] == [str(ids[0]), str(ids[2])]
    assert first.acknowledged_at <= last.handed_at


def test_recorded_events_are_told_when_they_are_committed(told: Told) -> None:
    """None of a transaction that is rolled back."""
    with transaction.atomic():
        publish(LOGICAL, key="a", payload={})
        assert names(told) == []
        transaction.set_rollback(True)
    assert names(told) == []
    event = publish(LOGICAL, key="a", payload={})
    (facts,) = of(told, "events_recorded")
    assert [row.event_id for row in facts["rows"]] == [event.id]


def test_withheld_messages_are_told_with_the_reason(
    told: Told, faulty_broker: FaultyBroker
) -> None:
    """The refused one with what the broker said, its follower without."""
    one = publish(LOGICAL, key="a", payload={})
    two = publish(LOGICAL, key="a", payload={})
    faulty_broker.refuses = lambda _message: True
    drain()
    found = [(facts["message"].event_id, facts["reason"]) for facts in of(told, "message_withheld")]
    assert found == [(str(one.id), "PublishError: it is refused"), (str(two.id), "")]


def test_what_took_effect_is_told_once_for_each_batch_and_receiver(
    told: Told, notes: NoteTopic
) -> None:
    """With the events, when they were published, and how long each run took."""
    note_receiver("one")
    note_receiver("two")
    ids = notes.put_all(["a", "b"])
    notes.consume()
    found = of(told, "events_handled")
    assert [facts["receiver"] for facts in found] == ["one", "two"]
    for facts in found:
        assert [one.event.id for one in facts["handled"]] == ids
        assert all(one.published_at and one.seconds >= 0 for one in facts["handled"])
        assert not facts["retried"]


def test_a_delivery_is_told_when_it_fails_dies_and_takes_effect(
    told: Told, notes: NoteTopic
) -> None:
    """In the order of its life, each with the message, the receiver and the attempt."""
    mood = Mood(1)
    note_receiver("my.receiver", mood, retry=RetryPolicy(attempts=2, backoff=0))
    event_id = notes.put("a", 1)
    notes.consume()
    retry_due()
    mood.bad.clear()
    deliveries.retry([Delivery.objects.get().pk])
    retry_due()
    relevant = [(name, facts) for name, facts in told if name.startswith(("delivery", "events"))]
    assert [name for name, _ in relevant] == [
        "delivery_failed",
        "delivery_failed",
        "delivery_dead",
        "delivery_resolved",
        "events_handled",
    ]
    place = MessageRef(topic=WIRE, partition=0, offset=0, key="a", event_id=event_id)
    for name, facts in relevant[:-1]:
        assert (facts["message"], facts["receiver"]) == (place, "my.receiver"), name
    first, second = of(told, "delivery_failed")
    assert (first["attempt"], first["error_class"]) == (1, "builtins.ValueError")
    assert first["retry_at"] is not None
    assert (second["attempt"], second["retry_at"]) == (2, None)
    assert relevant[-1][1]["retried"]


def test_discarded_deliveries_are_told_with_the_reason(told: Told, notes: NoteTopic) -> None:
    """All of one call together."""
    note_receiver("one", Mood(1, 2), retry=RetryPolicy(attempts=1))
    notes.put("a", 1)
    notes.put("b", 2)
    notes.consume()
    ids = list(Delivery.objects.order_by("pk").values_list("pk", flat=True))
    deliveries.discard(ids, reason="test data")
    (facts,) = of(told, "deliveries_discarded")
    assert (facts["delivery_ids"], facts["reason"]) == (ids, "test data")


def test_a_breaker_is_told_when_it_opens_and_closes(told: Told, notes: NoteTopic) -> None:
    """Once each."""
    mood = Mood(1, 2, 3)
    note_receiver(
        "one",
        mood,
        retry=RetryPolicy(attempts=5, backoff=0),
        breaker=CircuitBreaker(failures=2, pause=60),
    )
    notes.put("a", 1)
    notes.put("b", 2)
    notes.consume()
    mood.bad.clear()
    ReceiverState.objects.update(probe_at=timezone.now())
    retry_due()
    (opened,) = of(told, "breaker_opened")
    assert (opened["receiver"], opened["failures"]) == ("one", 2)
    (closed,) = of(told, "breaker_closed")
    assert closed["receiver"] == "one"


def test_an_orphan_is_told_with_what_is_wrong(
    told: Told, memory_broker: Any, folio_events: Callable[..., None]
) -> None:
    """As it is kept."""
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")
    topic = NoteTopic(memory_broker, wire="folio.ALL.library.note")
    note_receiver("one")
    topic.put_raw(b'{"number": 1}', b"k")
    topic.consume()
    (facts,) = of(told, "orphan_kept")
    assert (facts["fault"], facts["message"].topic) == ("missing", "folio.ALL.library.note")


def test_a_failing_broadcast_receiver_is_told(told: Told, notes: NoteTopic) -> None:
    """It has no delivery that would say so."""
    note_receiver("cache", Mood(1), broadcast=True)
    listener = Broadcast("latest")
    listener.start()
    event_id = notes.put("a", 1)
    notes.put("a", 2)
    while listener.step(timeout=0):
        pass
    listener.close()
    (facts,) = of(told, "broadcast_failed")
    assert (facts["message"].event_id, facts["error_class"]) == (event_id, "ValueError")
    (handled,) = of(told, "events_handled")
    assert (handled["receiver"], len(handled["handled"])) == ("cache", 1)


def test_a_partition_that_is_not_read_on_is_told(told: Told, notes: NoteTopic) -> None:
    """With the group, the place and why."""
    note_receiver("one")
    notes.put_all(["a", "b"])
    notes.consume()
    notes.restart()
    ConsumerOffset.objects.update(offset=99)
    consumer = Consumer("events", broker=notes.broker)
    consumer.start()
    consumer.step(timeout=0)
    consumer.close()
    (facts,) = of(told, "partition_stopped")
    assert (facts["group"], facts["topic"], facts["partition"], facts["offset"]) == (
        "events",
        WIRE,
        0,
        99,
    )
    assert "the log ends at 2" in facts["reason"]


def test_a_relay_tells_once_that_the_broker_is_away_and_once_that_it_is_back(
    told: Told, faulty_broker: FaultyBroker, folio_events: Callable[..., None]
) -> None:
    """However often it tries in between."""
    folio_events(
        POLL_FAILURE_SLEEP=0.01,
        RELAY_POLL_INTERVAL=0.01,
        RELAY_DEADLINE=0.01,
    )
    broker = get_broker()
    assert isinstance(broker, FaultyBroker)
    broker.acknowledges = lambda _message: False
    publish(LOGICAL, key="a", payload={})
    stop, back = threading.Event(), threading.Event()
    signals.relay_resumed.connect(lambda **_: back.set(), weak=False, dispatch_uid="back")

    def run() -> None:
        try:
            serve(stop, using="default")
        finally:
            connections.close_all()

    try:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(run)
            seen = threading.Event()
            for _ in range(1000):
                if len(broker.batches) >= 3 or seen.wait(0.01):
                    break
            broker.acknowledges = lambda _message: True
            assert back.wait(20)
            stop.set()
            future.result(20)
    finally:
        signals.relay_resumed.disconnect(dispatch_uid="back")
    relevant = [name for name in names(told) if name.startswith(("relay", "events_published"))]
    assert relevant == ["relay_stalled", "events_published", "relay_resumed"]
    assert of(told, "relay_stalled")[0]["reason"] == "no answer"


def test_a_handler_that_fails_harms_no_delivery(
    notes: NoteTopic, faulty_broker: FaultyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Each step goes on, Django's log has the error, and other handlers hear all the same."""
    heard: list[str] = []

    def fails(**_facts: object) -> None:
        raise RefusalError

    for name, signal in ALL.items():
        signal.connect(fails, dispatch_uid="fails", weak=False)
        signal.connect(
            lambda name=name, **_facts: heard.append(name), dispatch_uid="hears", weak=False
        )
    try:
        note_receiver("one", Mood(1), retry=RetryPolicy(attempts=1))
        with caplog.at_level(logging.CRITICAL, "django.dispatch"):
            publish(LOGICAL, key="a", payload={})
            assert drain(broker=faulty_broker).published == 1
            notes.put("a", 1)
            notes.put("b", 2)
            notes.consume()
    finally:
        for signal in ALL.values():
            signal.disconnect(dispatch_uid="fails")
            signal.disconnect(dispatch_uid="hears")
    assert effects("one") == [2]
    assert Delivery.objects.get().state == "dead"
    assert set(heard) == {
        "events_recorded",
        "events_published",
        "events_handled",
        "delivery_failed",
        "delivery_dead",
    }


def test_every_signal_brings_the_facts_that_it_declares(told: Told, notes: NoteTopic) -> None:
    """What a handler may rely on is what the declaration names."""
    for name, signal in ALL.items():
        signal.tell(using="default", **dict.fromkeys(signal.facts))
        assert set(of(told, name)[0]) - {"signal"} == {"using", *signal.facts}


def test_the_page_of_signals_names_each_with_its_facts() -> None:
    """And none that is not there."""
    rows = re.findall(
        r"^\| `(\w+)` \|([^|]*)\|", page("docs/reference/signals.md").text, re.MULTILINE
    )
    listed = {name: re.findall(r"`(\w+)`", facts) for name, facts in rows}
    assert listed == {name: list(signal.facts) for name, signal in ALL.items()}
