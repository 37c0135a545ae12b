"""Topic names: made, taken apart, subscribed to, refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from folio_events import declare_topic
from folio_events.conf import Settings
from folio_events.exceptions import ConfigurationError
from folio_events.topics import (
    TopicParts,
    colliding,
    consumer_pattern,
    matches,
    parse_wire_topic,
    stands_for,
    subscription,
    subscriptions,
    validate_env,
    validate_tenant_collection,
    validate_topic,
    validate_topic_pattern,
    wire_topic,
)
from folio_events.topics.declared import declared_topics

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


DECLARED = {
    "DI_COMPLETED": {"NAMESPACE": "Default"},
    "DI_ERROR": {"NAMESPACE": "Default"},
    "edi-export-history.create": {"NAMESPACE": "Default"},
    "consortia.state": {"ENVIRONMENT_ONLY": True},
}
#: One for each topology: tenancy off, tenants, a collection.
TOPOLOGIES = [
    Settings(ENV="folio", TOPICS=DECLARED),
    Settings(ENV="folio", TENANCY="folio", TOPICS=DECLARED),
    Settings(ENV="folio", TENANCY="folio", TENANT_COLLECTION="ALL", TOPICS=DECLARED),
]


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("DI_COMPLETED", ["folio.Default", "folio.Default.diku", "folio.Default.ALL"]),
        ("consortia.state", ["folio", "folio", "folio"]),
        ("inventory.item", ["folio", "folio.diku", "folio.ALL"]),
    ],
)
def test_a_declared_topic_has_the_shape_that_it_is_declared_with(
    topic: str, expected: list[str]
) -> None:
    """Its namespace stands before the tenant; without a tenant it is the environment's."""
    names = [wire_topic(topic, "diku", settings) for settings in TOPOLOGIES]

    assert names == [f"{before}.{topic}" for before in expected]


def test_a_declaration_in_code_shapes_the_name_too(settings: Any) -> None:
    """As ``declare_topic`` says it in a project's events.py."""
    settings.FOLIO_EVENTS = {"TENANCY": "folio"}
    assert wire_topic("DI_COMPLETED", "diku") == "folio.diku.DI_COMPLETED"

    declare_topic("DI_COMPLETED", namespace="Default")

    assert wire_topic("DI_COMPLETED", "diku") == "folio.Default.diku.DI_COMPLETED"
    assert subscription("DI_COMPLETED") == r"^folio\.Default\.[^.]+\.DI_COMPLETED$"


SEGMENTS = st.text("abAB01_-", min_size=1, max_size=4)
LOGICAL = st.lists(SEGMENTS, min_size=1, max_size=3).map(".".join)


OPTIONS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.just({"ENVIRONMENT_ONLY": True}),
    st.fixed_dictionaries({"NAMESPACE": SEGMENTS}),
)


@given(
    topic=LOGICAL,
    options=OPTIONS,
    others=st.dictionaries(LOGICAL, OPTIONS, max_size=3),
    env=SEGMENTS,
    tenant=SEGMENTS,
    topology=st.sampled_from([(None, None), ("folio", None), ("folio", "ALL")]),
)
def test_name_parts_and_subscription_of_a_topic_agree(
    topic: str,
    options: dict[str, Any],
    others: dict[str, Any],
    env: str,
    tenant: str,
    topology: tuple[str | None, str | None],
) -> None:
    """What is published under a name is subscribed to by it and taken apart into the same again."""
    tenancy, collection = topology
    settings = Settings(
        ENV=env, TENANCY=tenancy, TENANT_COLLECTION=collection, TOPICS={**others, topic: options}
    )
    first = topic.partition(".")[0] if tenancy is None else collection or tenant
    # Only there may a name have two meanings; checks and tenant contexts refuse it.
    assume(first not in declared_topics.first_segments(settings))

    name = wire_topic(topic, tenant, settings)

    owned = tenancy is not None and "ENVIRONMENT_ONLY" not in options
    segment = (collection or tenant) if owned else None
    assert parse_wire_topic(name, settings) == TopicParts(segment, topic)
    for pattern in (topic, f"{topic[:-1]}*", ".".join("*" for _ in topic.split("."))):
        wanted = subscription(pattern, settings)
        assert re.search(wanted, name) if wanted.startswith("^") else wanted == name
    for other in (f"{env}x", f"x{env}", f"{env}-"):
        foreign = f"{other}.{name.partition('.')[2]}"
        assert parse_wire_topic(foreign, settings) == TopicParts(None, foreign)
        assert not re.search(subscription(f"{topic[:-1]}*", settings), foreign)


@pytest.mark.parametrize("settings", TOPOLOGIES, ids=["plain", "tenants", "collection"])
def test_a_pattern_finds_topics_of_every_shape(settings: Settings) -> None:
    """A receiver of DI_* gets what is declared with a namespace, and what is not."""
    wanted = subscription("DI_*", settings)

    for topic in ("DI_COMPLETED", "DI_ERROR", "DI_UNDECLARED"):
        assert re.search(wanted, wire_topic(topic, "foo-tenant", settings))
    for name in ("folio.Default.diku.DI_OTHER", "folio.x.Default.diku.DI_COMPLETED"):
        assert not re.search(wanted, name)


def test_a_topic_of_the_environment_is_subscribed_to_by_its_name() -> None:
    """It has no tenant that could vary."""
    assert [subscription("consortia.state", settings) for settings in TOPOLOGIES] == [
        "folio.consortia.state"
    ] * 3


@pytest.mark.parametrize(
    ("tenant", "other"),
    [
        ("ALL", "the tenant collection"),
        ("Default", "the namespace of"),
        ("consortia", "the beginning of 'consortia.state'"),
        ("diku", None),
        ("TEST", None),
    ],
)
def test_a_tenant_whose_topics_would_be_taken_for_others_is_known(
    tenant: str, other: str | None
) -> None:
    """Its segment would stand for something else; capitals alone are no harm."""
    found = stands_for(tenant, TOPOLOGIES[2])

    assert found is None if other is None else other in str(found)


def test_topics_that_kafka_holds_for_the_same_are_found() -> None:
    """Kafka puts '_' in the place of '.' in its metrics, and refuses the second of two."""
    names = ["a.b_c", "a_b.c", "a.b.c", "a.bc", "a-b"]

    assert list(colliding(names)) == [("a.b.c", "a.b_c"), ("a.b.c", "a_b.c")]


def narrowed(pattern: str | None, **more: Any) -> Settings:
    return Settings(ENV="folio", CONSUMER_PATTERN=pattern, **more)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"folio\.(diku|ALL)\..*", r"^folio\.(diku|ALL)\..*$"),
        (r"(folio\.)(.*\.)inventory\.item", r"^folio\.(.*\.)inventory\.item$"),
        (r"folio.\w+.inventory.item", r"^folio\.\w+.inventory.item$"),
        (r"^folio\.(?:a|b)\.x$", r"^folio\.(a|b)\.x$"),
        (None, None),
    ],
)
def test_the_consumers_pattern_stays_in_its_environment(
    pattern: str | None, expected: str | None
) -> None:
    """It begins with the environment and a dot that stands for itself, however it was written."""
    assert consumer_pattern(narrowed(pattern)) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        r"(folio\.)?(.*\.)?inventory.item",
        r".*",
        r"other\.diku\..*",
        r"folios\..*",
        r"folio\.?diku",
        r"folio.*",
        r"folio\.a|other\.b",
        r"folio\.a|folio\.b",
        r"(folio\.|other\.)a",
    ],
)
def test_a_consumers_pattern_that_takes_other_environments_is_refused(pattern: str) -> None:
    """Among them one that a FOLIO module has by default."""
    with pytest.raises(ConfigurationError, match="other environments"):
        consumer_pattern(narrowed(pattern))


def test_a_group_subscribes_to_the_consumers_pattern_instead_of_all_tenants() -> None:
    """Names that it does not take are left out, names that it takes stay names."""
    tenants = {"TENANCY": "folio", "TOPICS": DECLARED}
    receivers = ["inventory.item", "circulation.loan", "consortia.state"]

    own = subscriptions(receivers, narrowed(None, **tenants))
    one_tenant = subscriptions(receivers, narrowed(r"folio\.diku\..*", **tenants))
    with_state = subscriptions(receivers, narrowed(r"folio\.(diku|consortia)\..*", **tenants))

    assert own == [
        r"^folio\.[^.]+\.circulation\.loan$",
        r"^folio\.[^.]+\.inventory\.item$",
        "folio.consortia.state",
    ]
    assert one_tenant == [r"^folio\.diku\..*$"]
    assert with_state == [r"^folio\.(diku|consortia)\..*$", "folio.consortia.state"]


def test_without_tenants_the_consumers_pattern_leaves_names() -> None:
    """Where nothing is left, the group reads what the pattern takes, and passes it over."""
    receivers = ["inventory.item", "circulation.loan"]

    assert subscriptions(receivers, narrowed(r"folio\.inventory\..*")) == ["folio.inventory.item"]
    assert subscriptions(receivers, narrowed(r"folio\.x")) == [r"^folio\.x$"]
