"""What a consumer takes on at once: a batch in hand is its load, and it waits where that is too much."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.utils import timezone

from folio_events import CircuitBreaker, Event, receiver
from folio_events.brokers.memory import MemorySubscription
from folio_events.consumer import Consumer
from folio_events.exceptions import ConfigurationError
from folio_events.models import ConsumerOffset, Delivery, ReceiverState
from folio_events.redelivery import retry_due
from tests.note_topic import Mood, NoteTopic, effects, note_receiver
from tests.unit.vectors import cases

pytestmark = pytest.mark.django_db(transaction=True)
#: FOLIO's wrapper commits by record and counts those under way; here a batch is under way, or none.
BATCH = "CONSUMER_BATCH_SIZE"


@pytest.mark.parametrize("case", cases("backpressure_gauge"))
def test_the_load_never_exceeds_what_the_gauge_allows(
    case: dict[str, Any], notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """However much waits: a batch for each group is all that is in hand."""
    said = case["input"]
    folio_events(**{BATCH: said["threshold"]})
    # Groups of one process share the global limit: so many have room in it.
    groups = [f"group-{n}" for n in range(said.get("global_limit", 0) // said["threshold"] or 1)]
    for group in groups:
        note_receiver(group, group=group)
    notes.put_all("k" * (said["threshold"] + max(said["local"], said["global"])))
    consumers = [Consumer(group, broker=notes.broker) for group in groups]

    while loads := [load for consumer in consumers if (load := consumer.step(timeout=0))]:
        assert max(loads) <= said["threshold"]
        assert sum(loads) <= said.get("global_limit", said["threshold"])

    assert all(effects(group) == effects(groups[0]) != [] for group in groups)


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in cases("consumer_backpressure")
        if "global_limit" not in case.values[0]["input"]
    ],
)
def test_nothing_is_fetched_while_a_batch_is_in_hand(
    case: dict[str, Any],
    notes: NoteTopic,
    folio_events: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The group hears that the member lives, its partitions are paused; all is done in order."""
    said, wanted = case["input"], case["expected"]
    folio_events(**{BATCH: said.get("max_poll_records", said["load_limit"])})
    monkeypatch.setattr("folio_events.consumer._KEEP_ALIVE_INTERVAL", 0.01)
    pauses, polls, done = threading.Event(), [0], threading.Event()
    poll = MemorySubscription.poll
    monkeypatch.setattr(MemorySubscription, "keep_alive", lambda _self: pauses.set())

    def counting(subscription: MemorySubscription, limit: int, timeout: float) -> Any:
        polls[0] += 1
        return poll(subscription, limit, timeout)

    monkeypatch.setattr(MemorySubscription, "poll", counting)

    def slow(event: Event) -> None:
        before = polls[0]
        assert pauses.wait(20)
        assert polls[0] == before
        if event.payload["number"] == said["records"] - 1:
            done.set()

    started = note_receiver("slow", slow)
    notes.put_all("k" * said["records"])
    consumer, stop = Consumer("events", broker=notes.broker), threading.Event()

    def serve() -> None:
        try:
            consumer.run(stop)
        finally:
            consumer.close()
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(serve)
        assert done.wait(20)
        stop.set()
        future.result(20)

    assert pauses.is_set() is bool(wanted["paused_at_least"])
    assert (effects("slow") == list(range(said["records"]))) is wanted["all_processed"]
    assert (started == sorted(started)) is wanted["in_order_same_key"]


@pytest.mark.parametrize(
    "case",
    [case for case in cases("consumer_backpressure") if "global_limit" in case.values[0]["input"]],
)
def test_a_partition_waits_while_too_much_is_open_and_goes_on_when_it_is_settled(
    case: dict[str, Any], notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """What the wrapper counts for a whole process is here what a receiver has not coped with."""
    said = case["input"]
    folio_events(MAX_WAITING=said["global_limit"], POLL_FAILURE_SLEEP=0)
    mood = Mood(*range(100), error=ConnectionError("down"))
    note_receiver("caller", mood, breaker=CircuitBreaker(failures=1, pause=60))
    open_ones, waiting = said["global_load_start"], said["records"]
    for number in range(open_ones + waiting):
        notes.put(f"key-{number}", number)

    notes.consume()
    assert Delivery.objects.filter(state="retrying").count() == open_ones
    assert ConsumerOffset.objects.get().offset == open_ones

    mood.bad.clear()
    ReceiverState.objects.update(probe_at=timezone.now() - timedelta(seconds=1))
    for _ in range(2):  # the probe, which closes the breaker, and the others
        Delivery.objects.update(next_attempt_at=timezone.now())
        retry_due()
    notes.consume()

    resumed = effects("caller")
    assert (sorted(resumed) == list(range(open_ones + waiting))) is case["expected"][
        "resumes_after_global_load_drops"
    ]


@pytest.mark.parametrize("case", cases("consumer_start"))
def test_a_consumer_that_cannot_work_does_not_start(
    case: dict[str, Any], folio_events: Callable[..., None], only_test_receivers: None
) -> None:
    """Without function, topic or room for a record, it is refused and what is wrong is named."""
    said = case["input"]
    error = case["expected"].get("error")
    function = (lambda _event: None) if said.get("handler") else None
    register = receiver(said["subscription"], name="tests.starting")
    if said["load_limit"] is not None:
        folio_events(**{BATCH: said["load_limit"]})
    if error is None:
        register(function)  # type: ignore[type-var]
    elif "loadLimit" in error:
        register(function)  # type: ignore[type-var]  # may be None
        with pytest.raises(SystemCheckError, match=f"{BATCH}'. must be a whole number above 0"):
            call_command("consume_events", "--once", skip_checks=False)
    else:
        named = "No topic can match" if "subscription" in error else "is for a function, not None"
        with pytest.raises(ConfigurationError, match=named):
            register(function)  # type: ignore[type-var]


def test_what_is_no_function_is_refused() -> None:
    """By name, when it is registered."""
    with pytest.raises(ConfigurationError, match="is for a function, not None"):
        receiver("inventory.item")(None)  # type: ignore[type-var]
