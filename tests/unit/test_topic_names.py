"""Names of topics and groups, as FOLIO's modules form them."""

from __future__ import annotations

import doctest
import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folio_events.exceptions import ConfigurationError
from folio_events.topics import (
    domain_topic,
    env_topic_name,
    event_type_from_topic,
    group_from_template,
    group_name,
    pubsub_topic_name,
    topic_name,
    unshared_group,
    validate_group_instance_id,
    validate_tenant_collection,
    validate_wire_topic,
)
from tests.pages import page
from tests.unit.vectors import cases


@pytest.mark.parametrize("case", cases("topic_name"))
def test_a_tenants_topic_is_named_as_folio_names_it(case: dict[str, Any]) -> None:
    """Environment, namespace, tenant or collection, event type."""
    assert topic_name(**case["input"]) == case["expected"]["topic"]


@pytest.mark.parametrize("case", cases("topic_name_invalid"))
def test_a_topic_of_blank_parts_is_refused_in_folios_words(case: dict[str, Any]) -> None:
    """Java's IllegalArgumentException is a ConfigurationError here."""
    given_parts = dict(case["input"])
    given_parts["event_type"] = given_parts.pop("topic")

    with pytest.raises(ConfigurationError, match=re.escape(case["expected"]["message"])):
        topic_name(**given_parts)


@pytest.mark.parametrize("blank", [None, "", " ", "\t\n"], ids=repr)
@pytest.mark.parametrize("part", ["env", "tenant", "event_type"])
def test_no_part_of_a_topic_may_be_blank(part: str, blank: str | None) -> None:
    """Not even the tenant in whose place a collection would stand."""
    parts: dict[str, Any] = {"env": "folio", "tenant": "diku", "event_type": "DI_COMPLETED"}

    for collection in (None, "ALL"):
        with pytest.raises(ConfigurationError, match="can't be blank"):
            topic_name(**{**parts, part: blank}, tenant_collection=collection)


@pytest.mark.parametrize(
    "parts",
    [
        {"tenant": "a b"},
        {"tenant": "ä"},
        {"event_type": "a/b"},
        {"event_type": "DI_COMPLETED\n"},
        {"env": "folio\n"},
        {"namespace": ""},
        {"namespace": "a.b"},
        {"tenant_collection": "all"},
        {"event_type": "x" * 240},
    ],
    ids=repr,
)
def test_a_topic_that_kafka_would_not_take_is_refused(parts: dict[str, str]) -> None:
    """Where it is named, and not where it is sent to."""
    with pytest.raises(ConfigurationError):
        topic_name(**{"env": "folio", "tenant": "diku", "event_type": "DI_COMPLETED", **parts})


def test_a_topic_of_the_longest_length_is_taken() -> None:
    """Kafka takes 249 characters, and not one more."""
    name = topic_name(env="folio", tenant="diku", event_type="x" * (249 - len("folio.diku.")))

    assert len(validate_wire_topic(name)) == 249
    with pytest.raises(ConfigurationError, match="249"):
        validate_wire_topic(name + "x")


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "ä", "a\n"], ids=repr)
def test_what_kafka_reserves_or_cannot_read_is_no_topic(name: str) -> None:
    """Kafka's own rule for names."""
    with pytest.raises(ConfigurationError, match="no topic that Kafka takes"):
        validate_wire_topic(name)


@pytest.mark.parametrize("case", cases("pubsub_topic_name"))
def test_mod_pubsubs_topic_is_the_name_of_its_group_too(case: dict[str, Any]) -> None:
    """The version of the module is in it."""
    name = pubsub_topic_name(**case["input"])

    assert name == case["expected"]["topic"] == case["expected"]["group"]


def test_mod_pubsub_writes_the_module_with_hyphens() -> None:
    """Maven's names have underscores."""
    name = pubsub_topic_name("folio", "diku", "LOAN_DUE", "mod_pubsub_server", "2.17.0")

    assert name == "folio.pub-sub.diku.LOAN_DUE.mod-pubsub-server-2.17.0"


@pytest.mark.parametrize("part", ["env", "tenant", "event_type", "module", "version"])
def test_no_part_of_mod_pubsubs_topic_may_be_blank(part: str) -> None:
    """As with the others."""
    parts = {"env": "e", "tenant": "t", "event_type": "E", "module": "m", "version": "1"}

    with pytest.raises(ConfigurationError, match="can't be blank"):
        pubsub_topic_name(**{**parts, part: " "})


@pytest.mark.parametrize("case", cases("env_topic_name"))
def test_a_topic_of_the_environment_has_no_tenant(case: dict[str, Any]) -> None:
    """It is one for all."""
    assert env_topic_name(**case["input"]) == case["expected"]["topic"]


@given(st.text(string.ascii_letters + string.digits + "-_ \nÄÉß٣", max_size=33))
def test_a_tenant_collection_is_exactly_what_the_rule_says(collection: str) -> None:
    """A capital letter, then capitals and digits, 31 in all, of ASCII, to the last character."""
    capitals = string.ascii_uppercase
    right = (
        1 <= len(collection) <= 31
        and collection[0] in capitals
        and all(char in capitals + string.digits for char in collection)
    )

    try:
        taken = validate_tenant_collection(collection) == collection
    except ConfigurationError:
        taken = False

    assert taken is right


@pytest.mark.parametrize("case", cases("event_type_from_topic"))
def test_the_last_segment_of_a_topic_is_its_event_type(case: dict[str, Any]) -> None:
    """What has no dot is refused in FOLIO's words."""
    if "error" in case["expected"]:
        with pytest.raises(ConfigurationError, match=re.escape(case["expected"]["error"])):
            event_type_from_topic(**case["input"])
    else:
        assert event_type_from_topic(**case["input"]) == case["expected"]["event_type"]


@pytest.mark.parametrize(
    ("topic", "expected"),
    [("DI_COMPLETED", None), ("   ", None), (" . ", " "), ("folio.diku.", ""), (".x", "x")],
)
def test_an_event_type_is_whatever_follows_the_last_dot(topic: str, expected: str | None) -> None:
    """As upstream: only a blank name, and one without a dot, have none."""
    if expected is None:
        with pytest.raises(ConfigurationError, match="expected env"):
            event_type_from_topic(topic)
    else:
        assert event_type_from_topic(topic) == expected


@pytest.mark.parametrize("case", cases("domain_topic_from_topic"))
def test_a_domain_topic_is_what_follows_environment_and_tenant(case: dict[str, Any]) -> None:
    """Dots of its own stay."""
    assert domain_topic(**case["input"]) == case["expected"]["domain_topic"]


@pytest.mark.parametrize("topic", ["", "item", "inventory.item"])
def test_a_topic_without_environment_and_tenant_is_a_domain_topic_whole(topic: str) -> None:
    """As in mod-audit."""
    assert domain_topic(topic) == topic


@pytest.mark.parametrize("case", cases("group_name"))
def test_a_group_is_named_as_folio_names_it(case: dict[str, Any]) -> None:
    """By the wrapper's formula, by a Spring template, or for one process alone."""
    parts, expected = dict(case["input"]), case["expected"]
    if "template" in parts:
        assert group_from_template(**parts) == expected["group"]
    elif parts.pop("shared_group", True):
        assert group_name(**parts) == expected["group"]
    else:
        assert unshared_group(**parts).startswith(expected["group_startswith"])


def test_the_version_of_the_module_may_be_in_the_group() -> None:
    """Upstream it is, and an upgrade reads all anew; without it the group goes on."""
    assert group_name("inventory.item", "mod-x", "1.2.3") == "inventory.item.mod-x-1.2.3"
    assert group_name("inventory.item", "mod-x") == "inventory.item.mod-x"


def test_no_two_processes_have_the_same_unshared_group() -> None:
    """A host may run several of them."""
    assert unshared_group("g") != unshared_group("g")


@pytest.mark.parametrize(
    ("template", "env", "expected"),
    [
        ("${ENV:folio}-mod-x-group", "", "folio-mod-x-group"),
        ("${ENV:folio}-mod-x-group", "nolana", "nolana-mod-x-group"),
        ("${folio.environment}-mod-search-events-group", "folio", "folio-mod-search-events-group"),
        ("${ENV}.${ENV}", "a", "a.a"),
        ("plain", "folio", "plain"),
    ],
)
def test_a_spring_template_is_filled_in(template: str, env: str, expected: str) -> None:
    """The environment, or the default that the template names."""
    assert group_from_template(template, env) == expected


@pytest.mark.parametrize("template", ["${HOSTNAME}-group", "${ENV}", ""])
def test_a_template_that_names_no_group_is_refused(template: str) -> None:
    """Another variable, or nothing at all."""
    with pytest.raises(ConfigurationError):
        group_from_template(template, "")


@pytest.mark.parametrize("part", ["event_type", "module"])
def test_no_part_of_a_group_may_be_blank(part: str) -> None:
    """As with topics."""
    with pytest.raises(ConfigurationError, match="can't be blank"):
        group_name(**{"event_type": "inventory.item", "module": "mod-x", part: " "})


@pytest.mark.parametrize("case", cases("group_instance_id"))
def test_a_static_member_has_a_name(case: dict[str, Any]) -> None:
    """A blank one is refused in FOLIO's words; none is no static member."""
    if case["expected"]["valid"]:
        assert validate_group_instance_id(**case["input"]) == case["input"]["group_instance_id"]
    else:
        with pytest.raises(ConfigurationError, match=re.escape(case["expected"]["error"])):
            validate_group_instance_id(**case["input"])
    assert validate_group_instance_id(None) is None


def test_the_examples_of_the_page_are_right() -> None:
    """Each is run, and gives what stands there."""
    (block,) = page("docs/reference/topics.md").blocks("pycon")
    examples = doctest.DocTestParser().get_doctest(block.text, {}, "topics.md", None, 0)

    found = doctest.DocTestRunner().run(examples)

    assert (found.failed, found.attempted) == (0, 4)
