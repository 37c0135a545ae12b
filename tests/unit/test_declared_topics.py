"""Topics that are declared: in code, in the settings, and both."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from folio_events import Topic, declare_topic
from folio_events.conf import get_settings
from folio_events.exceptions import ConfigurationError
from folio_events.topics.declared import declared_topics, topic_options
from tests.pages import page

Change = Callable[..., None]


def test_a_topic_that_nobody_declares_has_its_name_alone() -> None:
    """Everything else is left to the settings and the broker."""
    assert topic_options("inventory.item") == Topic("inventory.item")
    assert "inventory.item" not in declared_topics


def test_the_setting_wins_over_the_code_option_by_option(folio_events: Change) -> None:
    """What it does not name stays as it was declared; None takes an option back."""
    declare_topic("inventory.item", partitions=10, retention=3600, cleanup_policy="compact")

    folio_events(TOPICS={"inventory.item": {"PARTITIONS": 50, "CLEANUP_POLICY": None}})

    assert topic_options("inventory.item") == Topic("inventory.item", partitions=50, retention=3600)


def test_topics_of_code_and_setting_are_listed_by_name(folio_events: Change) -> None:
    """Each once, with its options merged."""
    declare_topic("b.two", partitions=2)
    folio_events(TOPICS={"c.three": {"PARTITIONS": 3}, "a.one": {}, "b.two": {"REPLICATION": 3}})

    named = [topic for topic in declared_topics if topic.name in ("a.one", "b.two", "c.three")]

    assert named == [Topic("a.one"), Topic("b.two", None, 2, 3), Topic("c.three", partitions=3)]
    assert {"b.two"} <= declared_topics.in_code()
    assert "a.one" not in declared_topics.in_code()


def test_a_declaration_after_the_first_question_counts(folio_events: Change) -> None:
    """What was merged before is forgotten, and with a removal again."""
    folio_events(TOPICS={})
    assert topic_options("a.one").partitions is None

    declare_topic("a.one", partitions=3)
    assert topic_options("a.one").partitions == 3

    declared_topics.remove("a.one")
    assert topic_options("a.one").partitions is None


def test_options_are_asked_of_any_settings(folio_events: Change) -> None:
    """One after the other, without mixing them up."""
    folio_events(TOPICS={"a.one": {"PARTITIONS": 1}})
    first = get_settings()
    folio_events(TOPICS={"a.one": {"PARTITIONS": 2}})

    found = [topic_options("a.one", one).partitions for one in (first, None, first, get_settings())]

    assert found == [1, 2, 1, 2]


def test_two_modules_may_declare_a_topic_alike_but_not_otherwise() -> None:
    """The error shows both."""
    declare_topic("a.one", partitions=3)
    declare_topic("a.one", partitions=3)

    named = "'a.one' is declared twice, as partitions=3 and as namespace='N', partitions=4"
    with pytest.raises(ConfigurationError, match=named):
        declare_topic("a.one", partitions=4, namespace="N")


def test_the_configuration_has_kafkas_names_and_units() -> None:
    """Seconds become milliseconds; what is not said is left out."""
    topic = Topic(
        "a.one",
        retention=1.5,
        cleanup_policy="compact,delete",
        delete_retention=86_400,
        max_message_bytes=2000,
    )

    assert topic.config() == {
        "retention.ms": "1500",
        "cleanup.policy": "compact,delete",
        "delete.retention.ms": "86400000",
        "max.message.bytes": "2000",
    }
    assert Topic("a.one", partitions=3, replication=3).config() == {}


@pytest.mark.parametrize("forever", [math.inf, -1, -1.0])
def test_for_ever_is_minus_one_to_kafka(forever: float) -> None:
    """Written as infinity, or in Kafka's way."""
    assert Topic("a.one", retention=forever).config() == {"retention.ms": "-1"}


IMPOSSIBLE = [
    *(("partitions", value) for value in (0, -1, 1.5, "6", True, 2**31)),
    *(("replication", value) for value in (0, -2, "3", False)),
    *(("retention", value) for value in (0, -2, "1d", math.nan, True)),
    *(("cleanup_policy", value) for value in ("", "Compact", "delete,compact", ["compact"])),
    *(("delete_retention", value) for value in (0, -1, math.inf)),
    *(("max_message_bytes", value) for value in (0, 1e6, "1MB")),
    *(("environment_only", value) for value in (None, 1, "yes")),
]


@pytest.mark.parametrize(("option", "value"), IMPOSSIBLE, ids=repr)
def test_a_value_that_cannot_be_is_refused_by_topic_and_option(
    option: str, value: object, folio_events: Change
) -> None:
    """In code when it is declared, in the settings when they are read."""
    named = re.escape(f"Topic 'a.one': {option} must be")
    with pytest.raises(ConfigurationError, match=named):
        declare_topic("a.one", **{option: value})  # type: ignore[arg-type]  # what is refused

    folio_events(TOPICS={"a.one": {option.upper(): value}})
    with pytest.raises(ConfigurationError, match=named):
        topic_options("b.two")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["a.one"], "TOPICS'] must be a dict"),
        ({"a.one": 5}, "['a.one'] must be a dict, not 5"),
        (
            {"a.one": {"PARTITION": 5}},
            "['a.one'] has unknown options: PARTITION. Known ones: NAMES",
        ),
        ({"a.one": {"partitions": 5}}, "unknown options: partitions"),
        ({"a.one": {5: 5}}, "unknown options: 5"),
        ({"a..one": {}}, "'a..one' is no topic"),
        ({5: {}}, "5 is no topic"),
        ({"a.one": {"NAMESPACE": "a.b"}}, "'a.b' is no namespace"),
        ({"a.one": {"NAMESPACE": ""}}, "'' is no namespace"),
        ({"a.one": {"NAMESPACE": "Default", "ENVIRONMENT_ONLY": True}}, "have no namespace"),
    ],
    ids=repr,
)
def test_a_setting_of_another_form_is_refused_by_name(
    given: object, named: str, folio_events: Change
) -> None:
    """Whoever asks for any topic is told."""
    folio_events(TOPICS=given)

    with pytest.raises(ConfigurationError, match=re.escape(named)):
        topic_options("b.two")


def test_the_declarations_of_the_page_are_taken(folio_events: Change) -> None:
    """In code and in the settings."""
    code, setting = page("docs/reference/topics.md").blocks("python")

    exec(code.text, {})
    given: dict[str, Any] = {}
    exec(setting.text, given)
    folio_events(**given["FOLIO_EVENTS"])

    assert topic_options("DI_COMPLETED") == Topic("DI_COMPLETED", "Default", partitions=10)
    assert topic_options("consortia.state").environment_only
    item = topic_options("inventory.item")
    assert (item.partitions, item.replication, item.cleanup_policy) == (50, 3, "compact")
