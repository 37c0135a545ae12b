"""The command ``create_topics``: what models and receivers name is made, once."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from django.core.management import CommandError, call_command

from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.brokers.memory import MemoryBroker
from folio_events.exceptions import PublishError
from tests.faulty_broker import FaultyBroker
from tests.note_topic import note_receiver

pytestmark = pytest.mark.django_db
AS_DECLARED = (
    " topics checked: all are on the broker, with partitions, replication and settings as "
    "declared.\n"
)


def create(*arguments: str) -> str:
    out = io.StringIO()
    call_command("create_topics", *arguments, stdout=out)
    return out.getvalue()


def test_topics_of_models_and_receivers_are_created(memory_broker: MemoryBroker) -> None:
    """A pattern names no topic; a second run changes nothing."""
    note_receiver("plain", topic="library.note")
    note_receiver("pattern", topic="library.*")
    output = create()
    names = {"folio.library.book", "folio.library.chapter", "folio.library.note"}
    assert memory_broker.missing_topics(names) == set()
    assert "created folio.library.note\n" in output
    assert "*" not in output
    assert create().endswith("topics, 0 created\n")


def test_a_check_lists_what_is_missing_and_fails(memory_broker: MemoryBroker) -> None:
    """It creates nothing; when all is there it says what was looked at."""
    out = io.StringIO()
    with pytest.raises(CommandError, match=r"\d+ of \d+ topics are missing"):
        call_command("create_topics", "--check", stdout=out)
    assert "folio.library.book\n" in out.getvalue()
    assert memory_broker.missing_topics({"folio.library.book"})
    create()
    assert create("--check").endswith(AS_DECLARED)


def test_tenants_have_to_be_named_where_tenancy_is_on(
    folio_events: Callable[..., None],
) -> None:
    """Each gets its own topics."""
    folio_events(TENANCY="folio", BROKER={"BACKEND": "folio_events.brokers.memory.MemoryBroker"})
    with pytest.raises(CommandError, match="--tenant"):
        create()
    output = create("--tenant", "diku", "--tenant", "college")
    assert "created folio.diku.library.book\n" in output
    assert "created folio.college.library.book\n" in output


def test_a_tenant_collection_stands_for_all_tenants(folio_events: Callable[..., None]) -> None:
    """One topic, no tenant to be named."""
    folio_events(
        TENANCY="folio",
        TENANT_COLLECTION="ALL",
        BROKER={"BACKEND": "folio_events.brokers.memory.MemoryBroker"},
    )
    assert "created folio.ALL.library.book\n" in create()


def test_partitions_are_those_of_the_setting(folio_events: Callable[..., None]) -> None:
    """For topics that are new."""
    folio_events(TOPIC_PARTITIONS=3, BROKER={"BACKEND": "folio_events.brokers.memory.MemoryBroker"})
    create()
    broker = get_broker()
    assert isinstance(broker, MemoryBroker)
    assert len(broker._log["folio.library.book"]) == 3


def test_a_broker_that_refuses_is_quoted(faulty_broker: FaultyBroker) -> None:
    """As an error of the command."""
    refusal = PublishError("no right to create it", retryable=False)
    faulty_broker.uncreatable["folio.library.book"] = refusal
    with pytest.raises(CommandError, match="no right to create it"):
        create()


def test_a_broker_that_is_away_is_an_error(memory_broker: MemoryBroker) -> None:
    """Without a traceback."""
    memory_broker.available = False
    with pytest.raises(CommandError, match="Unavailable"):
        create()


@pytest.mark.kafka
def test_topics_are_created_on_apache_kafka(
    kafka_broker: Broker, folio_events: Callable[..., None], settings: object
) -> None:
    """A second run finds them."""
    assert "created" in create()
    get_broker().known_topics.clear()
    assert create().endswith("topics, 0 created\n")
    assert create("--check").endswith(AS_DECLARED)
