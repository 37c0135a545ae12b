"""Which topics a real Kafka hands over for a pattern."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

from folio_events.brokers.base import TopicSpec
from folio_events.conf import Settings
from folio_events.message import Message, TopicPartition
from folio_events.topics import (
    librdkafka_pattern,
    spring_pattern,
    subscription,
    tenant_argument_pattern,
    wrapper_pattern,
)
from tests.contract.stage import DEADLINE, Stage
from tests.unit.vectors import cases

pytestmark = pytest.mark.kafka


def handed_over(stage: Stage, pattern: str, topics: Sequence[str]) -> tuple[set[str], set[str]]:
    """Put a message into each topic and subscribe to a pattern, until all that it takes has come.

    Returns:
        The topics whose partitions were handed over, and those of which the message came.
    """
    stage.broker.create_topics([TopicSpec(name, 1, 1) for name in topics])
    mark = uuid.uuid4().hex
    stage.broker.publish([Message(name, None, mark.encode(), []) for name in topics], timeout=30)
    assigned: set[str] = set()

    def positions(places: Mapping[TopicPartition, Any]) -> dict[TopicPartition, int | None]:
        assigned.update(place.topic for place in places)
        return {}

    reader = stage.broker.subscribe(f"group-{mark}", [pattern], positions)
    stage.closing.callback(reader.close)
    received: set[str] = set()
    deadline = time.monotonic() + DEADLINE
    while not received or received < assigned:
        assert time.monotonic() < deadline, f"{assigned} were handed over, {received} came"
        records = reader.poll(100, 0.2)
        received |= {record.topic for record in records if record.value == mark.encode()}
    return assigned & set(topics), received


@pytest.mark.parametrize("case", cases("librdkafka_subscription"))
def test_a_pattern_takes_the_topics_that_were_measured(
    case: dict[str, Any], kafka_stage: Stage
) -> None:
    """On a real broker, with its topics found by metadata: the ends need their anchors."""
    pattern, topics = case["input"]["pattern"], case["input"]["topics"]

    assigned, received = handed_over(kafka_stage, pattern, topics)

    assert sorted(received) == case["expected"]["received_from"]
    assert assigned == received


def patterns(env: str) -> Mapping[str, tuple[str, Collection[str]]]:
    """What librdkafka is given, and what it takes of the topics below."""
    settings = Settings(
        ENV=env,
        TENANCY="folio",
        TOPICS={
            "DI_COMPLETED": {"NAMESPACE": "Default"},
            "DI_STATE": {"ENVIRONMENT_ONLY": True},
        },
    )
    di = ["Default.diku.DI_COMPLETED", "Default.ALL.DI_COMPLETED", "Default.foo-t.DI_COMPLETED"]
    items = ["diku.inventory.item", "ALL.inventory.item", "foo-t.inventory.item"]
    no_hyphen = [name for name in items if "-" not in name]
    return {
        "ours": (subscription("inventory.item", settings), items),
        "ours of a namespace": (subscription("DI_COMPLETED", settings), di),
        "ours of several shapes": (
            subscription("DI_*", settings),
            [*di, "DI_STATE", "diku.DI_ERROR"],
        ),
        "the wrapper's": (
            librdkafka_pattern(wrapper_pattern(env, "DI_COMPLETED", "Default")),
            di[:2],
        ),
        "a pattern as the tenant": (
            librdkafka_pattern(tenant_argument_pattern(env, "inventory.item")),
            no_hyphen,
        ),
        "Spring's": (librdkafka_pattern(spring_pattern(env, r"inventory\.item")), items),
        "translated": (
            librdkafka_pattern(rf"(?:{env}\.)[\w\-]+?\.inventory\.(?:item|x\d)|{env}\.DI_\w+"),
            [*items, "diku.inventory.x1", "DI_STATE"],
        ),
    }


@pytest.mark.parametrize("name", patterns("x"))
def test_our_patterns_and_translated_ones_take_what_they_are_to_take(
    name: str, kafka_stage: Stage
) -> None:
    """Tenants with a hyphen and collections too, and neither longer names nor other environments."""
    env = kafka_stage.prefix
    pattern, expected = patterns(env)[name]
    inside = [
        *("Default.diku.DI_COMPLETED", "Default.ALL.DI_COMPLETED", "Default.foo-t.DI_COMPLETED"),
        *("diku.inventory.item", "ALL.inventory.item", "foo-t.inventory.item", "DI_STATE"),
        *("diku.DI_ERROR", "diku.inventory.item-x", "diku.inventory.items", "diku.inventory.x1"),
    ]
    topics = [f"{env}.{one}" for one in inside]
    topics += [f"x{env}.diku.inventory.item", f"{env}x.diku.inventory.item"]

    assigned, received = handed_over(kafka_stage, pattern, topics)

    assert received == assigned == {f"{env}.{one}" for one in expected}
