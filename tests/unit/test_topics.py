"""Topic names: made, taken apart, subscribed to, refused."""

from __future__ import annotations

import re

import pytest

from folio_events.conf import Settings
from folio_events.exceptions import ConfigurationError
from folio_events.topics import (
    TopicParts,
    matches,
    parse_wire_topic,
    subscription,
    validate_env,
    validate_tenant_collection,
    validate_topic,
    validate_topic_pattern,
    wire_topic,
)

PLAIN = Settings(ENV="folio")
TENANTS = Settings(ENV="folio", TENANCY="folio")
COLLECTION = Settings(ENV="folio", TENANCY="folio", TENANT_COLLECTION="ALL")

TOPICS = [
    "inventory.item",
    "inventory.holdings-record",
    "a",
    "circulation.ITEM_CHECKED_OUT",
    "a.b.c",
]


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_of_segments_is_taken(topic: str) -> None:
    """Letters, digits, ``_`` and ``-``, joined by single dots."""
    assert validate_topic(topic) == topic


IMPOSSIBLE = [
    "",
    ".",
    ".item",
    "item.",
    "inventory..item",
    "inventory item",
    "inventory/item",
    "inventory.item\n",
    "inventär.item",
    "^inventory",
    "item$",
    "a+b",
    None,
    5,
    b"inventory.item",
]


@pytest.mark.parametrize("topic", [*IMPOSSIBLE, "inventory.*", "a" * 250], ids=repr)
def test_a_topic_that_kafka_would_not_take_is_refused(topic: object) -> None:
    """The error names it."""
    with pytest.raises(ConfigurationError, match=re.escape(repr(topic)[:20])):
        validate_topic(topic)  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize("pattern", [*TOPICS, "*", "inventory.*", "*.item", "in*ry.i*m", "a.*.c"])
def test_a_pattern_of_segments_with_stars_is_taken(pattern: str) -> None:
    """A star stands for any characters of one segment."""
    assert validate_topic_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", [*IMPOSSIBLE, "inventory.[a-z]*", "inventory.#"], ids=repr)
def test_a_pattern_that_no_topic_can_match_is_refused(pattern: object) -> None:
    """A receiver with it would wait for ever."""
    with pytest.raises(ConfigurationError, match="No topic can match"):
        validate_topic_pattern(pattern)  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize("env", ["folio", "FOLIO_2", "ibf-3", "a"])
def test_an_env_of_one_segment_is_taken(env: str) -> None:
    """FOLIO's own rule for ENV."""
    assert validate_env(env) == env


@pytest.mark.parametrize("env", ["", "a.b", "a b", "ä", "folio\n", "^folio", "folio/"], ids=repr)
def test_another_env_is_refused(env: str) -> None:
    """A dot in it would shift the tenant."""
    with pytest.raises(ConfigurationError, match="ENV"):
        validate_env(env)


@pytest.mark.parametrize("collection", ["ALL", "A", "Z9", "A" * 31])
def test_a_tenant_collection_by_folios_rule_is_taken(collection: str) -> None:
    """A capital letter, then capitals and digits, 31 in all."""
    assert validate_tenant_collection(collection) == collection


@pytest.mark.parametrize(
    "collection", ["", "all", "9A", "A-B", "A_B", "A" * 32, "ALL ", "ALL\n", "ÄLL"], ids=repr
)
def test_another_tenant_collection_is_refused(collection: str) -> None:
    """The error names FOLIO's variable."""
    with pytest.raises(ConfigurationError, match="KAFKA_PRODUCER_TENANT_COLLECTION"):
        validate_tenant_collection(collection)


@pytest.mark.parametrize(
    ("settings", "tenant", "expected"),
    [
        (PLAIN, None, "folio.inventory.item"),
        (PLAIN, "diku", "folio.inventory.item"),
        (TENANTS, "diku", "folio.diku.inventory.item"),
        (TENANTS, "foo-tenant", "folio.foo-tenant.inventory.item"),
        (COLLECTION, "diku", "folio.ALL.inventory.item"),
    ],
)
def test_the_name_on_the_broker(settings: Settings, tenant: str | None, expected: str) -> None:
    """ENV, the tenant or its collection where tenancy is on, and the logical topic."""
    assert wire_topic("inventory.item", tenant, settings) == expected


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize(
    ("settings", "tenant", "segment"),
    [(PLAIN, None, None), (TENANTS, "foo-tenant", "foo-tenant"), (COLLECTION, "diku", "ALL")],
    ids=["plain", "tenants", "collection"],
)
def test_a_name_on_the_broker_is_taken_apart_again(
    topic: str, settings: Settings, tenant: str | None, segment: str | None
) -> None:
    """Tenant segment and logical topic come back, dots of the topic included."""
    name = wire_topic(topic, tenant, settings)

    assert parse_wire_topic(name, settings) == TopicParts(segment, topic)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("other.diku.inventory.item", TENANTS),
        ("folios.diku.inventory.item", TENANTS),
        ("folio.item", TENANTS),
        ("foreign", PLAIN),
    ],
)
def test_a_name_of_another_form_is_a_topic_whole(name: str, settings: Settings) -> None:
    """Topics of foreign systems can be listened to as well."""
    assert parse_wire_topic(name, settings) == TopicParts(None, name)


def test_without_tenants_a_subscription_is_a_name() -> None:
    """Only a name is refused when its topic is missing."""
    assert subscription("inventory.item", PLAIN) == "folio.inventory.item"


def test_with_tenants_a_subscription_is_an_anchored_pattern() -> None:
    """librdkafka takes what has no ``^`` for a name, and without ``$`` takes longer names."""
    assert subscription("inventory.item", TENANTS) == r"^folio\.[^.]+\.inventory\.item$"
    assert subscription("circulation.*", PLAIN) == r"^folio\.circulation\.[^.]*$"


@pytest.mark.parametrize("settings", [TENANTS, COLLECTION], ids=["tenants", "collection"])
@pytest.mark.parametrize("topic", TOPICS)
def test_a_subscription_takes_tenant_and_collection_topics(topic: str, settings: Settings) -> None:
    """One consumer reads both kinds, also of tenants with a hyphen, during a switch."""
    pattern = re.compile(subscription(topic, settings))

    for tenant in ("diku", "foo-tenant", "fs_0001"):
        assert pattern.search(wire_topic(topic, tenant, TENANTS))
    assert pattern.search(wire_topic(topic, "diku", COLLECTION))


@pytest.mark.parametrize(
    "name",
    [
        "folio.diku.inventory.items",
        "folio.diku.inventory.item-extra",
        "folio.diku.inventory.item.more",
        "folio.diku.inventory-item",
        "folio.Default.diku.inventory.item",
        "folio.inventory.item",
        "folio2.diku.inventory.item",
        "xfolio.diku.inventory.item",
        "folioxdiku.inventory.item",
    ],
)
def test_a_subscription_takes_no_other_topic(name: str) -> None:
    """Neither longer names nor other environments."""
    assert not re.search(subscription("inventory.item", TENANTS), name)


def test_environments_that_begin_alike_are_kept_apart() -> None:
    """A hyphen in ENV stands for itself."""
    pattern = subscription("inventory.*", Settings(ENV="folio-2", TENANCY="folio"))

    assert re.search(pattern, "folio-2.diku.inventory.item")
    assert not re.search(pattern, "folio.diku.inventory.item")
    assert not re.search(pattern, "folio-23.diku.inventory.item")


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("inventory.item", "inventory.item", True),
        ("inventory.item", "inventory.items", False),
        ("inventory.item", "inventoryxitem", False),
        ("inventory.*", "inventory.item", True),
        ("inventory.*", "inventory.reindex.file-ready", False),
        ("inventory.*.*", "inventory.reindex.file-ready", True),
        ("*.item", "inventory.item", True),
        ("*", "item", True),
        ("*", "inventory.item", False),
        ("i*m", "item", True),
        ("circulation.ITEM_*", "circulation.ITEM_CHECKED_OUT", True),
        ("circulation.ITEM_*", "circulation.LOAN_CLOSED", False),
    ],
)
def test_which_topics_fall_under_a_pattern(pattern: str, topic: str, expected: bool) -> None:
    """A star stays within its segment; dispatch and subscription agree."""
    assert matches(pattern, topic) is expected
    wire = wire_topic(topic, "diku", TENANTS)
    assert (re.search(subscription(pattern, TENANTS), wire) is not None) is expected
