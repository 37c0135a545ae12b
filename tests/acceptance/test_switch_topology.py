"""From topics of tenants to a collection and back, in the midst of traffic, as the page says."""

from __future__ import annotations

import re
import shlex
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connections

from folio_events import publish, tenant_context
from folio_events.brokers.base import Broker
from folio_events.conf import KAFKA_BROKER
from folio_events.models import Delivery, OutboxMessage, Publication
from tests.conftest import kafka_options
from tests.contract.conftest import IMPATIENT
from tests.pages import Command, commands, page
from tests.real_commands import RealCommand, environment
from tests.testapp.models import Effect

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(300),
]

PAGE = page("docs/howto/switch-topology.md")
TENANTS = ("diku", "college-1", "north")
KEYS = 4
#: How many events each part of the traffic has at least.
PART = 100


class Operator:
    """Types the commands of the page, and runs the consumer beside them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.relay = self._start("relay_events", None)
        self.consumer = self._start(
            "consume_events", None, "--group", settings.FOLIO_EVENTS["GROUP"]
        )

    def _start(self, name: str, collection: str | None, *arguments: str) -> RealCommand:
        env = environment(apps=["tests.ledger"], folio_events={"TENANT_COLLECTION": collection})
        return RealCommand(self._folder, name, *arguments, env=env)

    def type(self, command: Command) -> str:
        """Run one command of the page; a daemon is the new relay."""
        form = re.fullmatch(
            r"(?:KAFKA_PRODUCER_TENANT_COLLECTION=(?P<collection>\w+) )?"
            r"python manage\.py (?P<name>\w+)(?P<arguments>[^&]*?)(?P<daemon> &)?",
            command.line,
        )
        assert form is not None, command.line
        arguments = shlex.split(form["arguments"])
        running = self._start(form["name"], form["collection"], *arguments)
        if form["daemon"]:
            self.relay = running
            return ""
        assert running.wait() == 0, running.output
        return running.output

    def wait_for(self, command: Command, shown: str) -> None:
        """Run a command of the page again until it shows what is waited for."""
        deadline = time.monotonic() + 60
        while not re.search(shown, output := self.type(command)):
            assert time.monotonic() < deadline, output
            assert self.consumer.process.running, self.consumer.output

    def end_relay(self) -> None:
        self.relay.process.stop(signal.SIGTERM)
        assert self.relay.process.wait() == 0, self.relay.output

    def close(self) -> None:
        self.relay.process.kill()
        self.consumer.process.kill()


@pytest.fixture
def operator(
    kafka_broker: Broker, folio_events: Callable[..., None], tmp_path: Path
) -> Iterator[Operator]:
    """Relay and consumer run; three tenants have topics of their own."""
    folio_events(
        TENANCY="folio",
        BROKER={"BACKEND": KAFKA_BROKER, "OPTIONS": kafka_options(consumer=IMPATIENT)},
    )
    operator = Operator(tmp_path)
    yield operator
    operator.close()


@contextmanager
def traffic() -> Iterator[None]:
    """Each tenant writes in a thread of its own, and numbers the events of each key."""
    stop = threading.Event()

    def write(tenant: str) -> None:
        try:
            number = 0
            while not stop.wait(0.02):
                with tenant_context(tenant):
                    for key in range(KEYS):
                        publish("library.note", key=f"k{key}", payload={"number": number})
                number += 1
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(TENANTS)) as pool:
        writers: list[Future[None]] = [pool.submit(write, tenant) for tenant in TENANTS]
        try:
            yield
        finally:
            stop.set()
    for writer in writers:
        writer.result()


def steps(heading: str) -> list[list[Command]]:
    """The commands of steps 1, 3, 4 and 5 under a heading of the page; step 2 ends the relay."""
    part = PAGE.text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = [block for block in PAGE.blocks("console") if block.text.strip() in _dedented(part)]
    assert len(blocks) == 4
    return [commands(block) for block in blocks]


def _dedented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def published_to(segment: str) -> int:
    env = settings.FOLIO_EVENTS["ENV"]
    return Publication.objects.filter(topic__startswith=f"{env}.{segment}.").count()


def grows(operator: Operator, segment: str) -> None:
    """Wait until events go to a tenant's or collection's topics, and reach the receiver."""
    before, env = published_to(segment), settings.FOLIO_EVENTS["ENV"]
    operator.relay.wait_for(lambda: published_to(segment) >= before + PART)
    there = Effect.objects.filter(note__startswith=f"{env}.{segment}.")
    operator.consumer.wait_for(there.exists)


def switch(operator: Operator, heading: str, *, drained: bool) -> None:
    """Do what the page says, up to the start of the new relay."""
    create, wait, start, _delete = steps(heading)
    for command in create:
        operator.type(command)
    operator.end_relay()
    if drained:
        *retries, look = wait
        for command in retries:
            operator.type(command)
        operator.wait_for(look, r"(?P<all>[1-9]\d*) old topics, (?P=all) drained")
    for command in start:
        operator.type(command)


def settle(operator: Operator) -> None:
    """Wait until all that was recorded is published and has taken effect."""
    total = OutboxMessage.objects.count()
    operator.relay.wait_for(lambda: Publication.objects.count() == total)
    operator.consumer.wait_for(lambda: Effect.objects.filter(receiver="ledger").count() >= total)


def effects() -> dict[str, list[tuple[str, int]]]:
    """By tenant and key: topic and number of each event, in the order of the effects."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    rows = Effect.objects.filter(receiver="ledger").order_by("id")
    for key, note in rows.values_list("key", "note"):
        topic, number = note.split(" ")
        found[key].append((topic, int(number)))
    return found


def assert_each_event_once() -> None:
    recorded = set(OutboxMessage.objects.values_list("event_id", flat=True))
    handled = list(Effect.objects.filter(receiver="ledger").values_list("event_id", flat=True))
    assert set(handled) == recorded, "nothing is lost"
    assert len(handled) == len(recorded), "nothing is doubled"
    assert not Delivery.objects.exists()
    found = effects()
    assert set(found) == {f"{tenant}/k{key}" for tenant in TENANTS for key in range(KEYS)}
    for chain in found.values():
        assert sorted(number for _topic, number in chain) == list(range(len(chain)))


def kinds() -> set[str]:
    """The tenant segments of the topics that events have come by."""
    return {topic.split(".")[1] for chain in effects().values() for topic, _number in chain}


def test_there_and_back_as_the_page_says_keeps_the_order_of_every_key(operator: Operator) -> None:
    """No event is lost or doubled, each key's come in the order of their commits, old topics go."""
    with traffic():
        grows(operator, "diku")
        switch(operator, "To a collection", drained=True)
        grows(operator, "ALL")
        (delete,) = steps("To a collection")[3]
        operator.wait_for(delete, "3 deleted")
        switch(operator, "Back to topics of tenants", drained=True)
        grows(operator, "diku")
    settle(operator)

    assert_each_event_once()
    assert kinds() == {*TENANTS, "ALL"}
    for key, chain in effects().items():
        assert [number for _topic, number in chain] == list(range(len(chain))), key


def test_a_switch_without_waiting_loses_and_doubles_nothing(operator: Operator) -> None:
    """Only between an old topic and a new one the order of a key is open."""
    with traffic():
        grows(operator, "diku")
        switch(operator, "To a collection", drained=False)
        grows(operator, "ALL")
        switch(operator, "Back to topics of tenants", drained=False)
        grows(operator, "diku")
    settle(operator)

    assert_each_event_once()
    assert kinds() == {*TENANTS, "ALL"}
    for chain in effects().values():
        for topic in {topic for topic, _number in chain}:
            within = [number for where, number in chain if where == topic]
            assert within == sorted(within)
