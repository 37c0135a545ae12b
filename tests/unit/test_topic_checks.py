"""``manage.py check`` of topics: each misconfiguration with exactly its id, and a hint."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.core.checks import CheckMessage

from folio_events import declare_topic, receiver
from folio_events.checks.topic import check_topics

Change = Callable[..., None]

#: Keys of FOLIO_EVENTS, and the ids that are found in a project with the topics ``library.book``
#: and ``library.chapter``.
SETTINGS: dict[str, tuple[dict[str, object], list[str]]] = {
    "nothing": ({}, []),
    "options": ({"TOPICS": {"library.book": {"PARTITIONS": 3, "RETENTION": 60}}}, []),
    "an option that is not known": ({"TOPICS": {"library.book": {"PARTITION": 3}}}, ["E050"]),
    "a type": ({"TOPICS": {"library.book": {"PARTITIONS": "3"}}}, ["E050"]),
    "a range": ({"TOPICS": {"library.book": {"RETENTION": 0}}}, ["E050"]),
    "no dict": ({"TOPICS": ["library.book"]}, ["E050"]),
    "a pattern": ({"CONSUMER_PATTERN": r"folio\.(a|b)\..*"}, []),
    "a pattern that is none": ({"CONSUMER_PATTERN": r"folio\.("}, ["E051"]),
    "a pattern for Java alone": ({"CONSUMER_PATTERN": r"folio\.(?!x).*"}, ["E051"]),
    "a pattern of everything": ({"CONSUMER_PATTERN": ".*"}, ["E051"]),
    "no such rule": ({"TOPIC_NAMING": "wikidata"}, ["E052"]),
    "FOLIO's rule": ({"TOPIC_NAMING": "folio"}, []),
    "Open edX's rule": ({"TOPIC_NAMING": "openedx"}, ["E055", "E055"]),
    "a long environment": ({"ENV": "e" * 240}, ["E053", "E053"]),
    "a long tenant": (
        {"TENANCY": "folio", "ENV": "e" * 200, "DEFAULT_TENANT": "t" * 40},
        ["E053", "E053"],
    ),
    "a tenant as long as can be": (
        {"TENANCY": "folio", "DEFAULT_TENANT": "t" * (249 - len("folio..library.chapter"))},
        [],
    ),
    "a tenant like a namespace": (
        {
            "TENANCY": "folio",
            "DEFAULT_TENANT": "Default",
            "TOPICS": {"DI_COMPLETED": {"NAMESPACE": "Default"}},
        },
        ["E054"],
    ),
    "a tenant like the collection": (
        {"TENANCY": "folio", "DEFAULT_TENANT": "ALL", "TENANT_COLLECTION": "ALL"},
        ["E054"],
    ),
    "unreadable settings": ({"ENVIRONMENT": "folio"}, []),
}


def ids(found: list[CheckMessage]) -> list[str]:
    for message in found:
        assert message.hint, message
    return sorted(str(message.id).removeprefix("folio_events.") for message in found)


@pytest.fixture
def few_topics(monkeypatch: pytest.MonkeyPatch, only_test_receivers: None) -> None:
    """The sample project's topics are away; those of the test's app are there."""
    from folio_events import provisioning

    class OfTheApp:
        @staticmethod
        def topics() -> list[str]:
            return ["library.book", "library.chapter"]

    monkeypatch.setattr(provisioning, "events", OfTheApp)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_fault_of_topics_is_named(name: str, folio_events: Change, few_topics: None) -> None:
    """With its own id and no other, and with a hint."""
    given, expected = SETTINGS[name]
    folio_events(**given)

    assert ids(check_topics(None)) == expected


def test_two_topics_that_differ_in_dot_and_underscore_are_named(few_topics: None) -> None:
    """Kafka refuses to create the second of them."""
    declare_topic("library_book")

    (found,) = check_topics(None)

    assert ids([found]) == ["W050"]
    assert "'library.book' and 'library_book'" in found.msg


def test_a_receivers_topic_by_another_rule_is_a_warning(
    folio_events: Change, few_topics: None
) -> None:
    """It may be somebody else's topic, whose name nobody here can mend."""

    @receiver("users.users", name="tests.foreign")
    def foreign(event: object) -> None: ...

    @receiver("Users.*", name="tests.slip", broadcast=True)
    def slip(event: object) -> None: ...

    folio_events(TOPIC_NAMING="folio")

    found = check_topics(None)

    assert ids(found) == ["W051", "W051"]
    assert [name for name in ("tests.foreign", "tests.slip") if name in str(found)] == [
        "tests.foreign",
        "tests.slip",
    ]
