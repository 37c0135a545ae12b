"""Rules for the names of topics."""

from __future__ import annotations

import pytest

from folio_events.conf import Settings
from folio_events.exceptions import ConfigurationError
from folio_events.topics.naming import folio_rule, naming_fault, naming_rule, openedx_rule


def no_numbers(topic: str) -> str | None:
    """A project's own rule."""
    return "it has a number" if any(char.isdigit() for char in topic) else None


@pytest.mark.parametrize(
    "topic",
    [
        "inventory.item",
        "inventory.holdings-record",
        "inventory.reindex.file-ready",
        "circulation.check-in",
        "circulation.ITEM_CHECKED_OUT",
        "edi-export-history.create",
        "DI_COMPLETED",
        "inventory.status",
        "finance.fiscal-analysis",
        "inventory.series",
        "mod2.item",
    ],
)
def test_folios_rule_takes_module_and_entity_and_event_types(topic: str) -> None:
    """Words that end in 's' in the singular too."""
    assert folio_rule(topic) is None


@pytest.mark.parametrize(
    ("topic", "named"),
    [
        ("item", "no module"),
        ("inventory.items", "not in the singular"),
        ("circulation.circulation-settings", "not in the singular"),
        ("users.users", "not in the singular"),
        ("inventory.instance_ingress", "neither lower case"),
        ("inventory.Item", "neither lower case"),
        ("Inventory.item", "'Inventory'"),
        ("mod_orders.piece", "'mod_orders'"),
        ("inventory-storage.item", "the module is 'inventory'"),
        ("inventory.-item", "neither lower case"),
        ("circulation.ITEM__OUT", "neither lower case"),
    ],
)
def test_folios_rule_says_what_is_wrong(topic: str, named: str) -> None:
    """Also of FOLIO's older topics, which break it."""
    assert named in str(folio_rule(topic))


@pytest.mark.parametrize(
    ("topic", "right"),
    [
        ("org.openedx.learning.student.registration.completed.v1", True),
        ("org.openedx.content_authoring.xblock.published.v1", True),
        ("org.openedx.learning.course.enrollment.created.v12", True),
        ("org.openedx.learning.created.v1", False),
        ("org.openedx.learning.student.completed", False),
        ("org.openedx.learning.student.completed.v0", False),
        ("org.openedx.Learning.student.completed.v1", False),
        ("com.example.learning.student.completed.v1", False),
        ("inventory.item", False),
    ],
)
def test_open_edxs_rule_wants_subdomain_subject_action_and_version(topic: str, right: bool) -> None:
    """The subject may have several segments."""
    assert (openedx_rule(topic) is None) is right


@pytest.mark.parametrize(
    ("chosen", "topic", "right"),
    [
        ("folio", "inventory.item", True),
        ("folio", "inventory.items", False),
        ("openedx", "inventory.item", False),
        ("tests.unit.test_topic_naming.no_numbers", "inventory.items", True),
        ("tests.unit.test_topic_naming.no_numbers", "inventory.item2", False),
    ],
)
def test_the_setting_chooses_the_rule(chosen: str, topic: str, right: bool) -> None:
    """FOLIO's, Open edX's, or a function of the project."""
    rule = naming_rule(Settings(TOPIC_NAMING=chosen))

    assert rule is not None
    assert (naming_fault(topic, rule) is None) is right


def test_without_the_setting_there_is_no_rule() -> None:
    """Any name that Kafka takes will do."""
    assert naming_rule(Settings()) is None


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ("wikidata", "neither 'folio' nor 'openedx'"),
        ("no.such.function", "cannot be imported"),
        ("folio_events.topics.naming._RULES", "is no function"),
        (5, "cannot be imported"),
    ],
)
def test_a_rule_that_cannot_be_had_is_refused_by_name(chosen: str, named: str) -> None:
    """Whether it is misspelt, away, or something else."""
    with pytest.raises(ConfigurationError, match=named):
        naming_rule(Settings(TOPIC_NAMING=chosen))


@pytest.mark.parametrize(
    ("pattern", "right"),
    [
        ("inventory.*", True),
        ("circulation.ITEM_*", True),
        ("*.item", True),
        ("DI_*", True),
        ("*", True),
        ("inventory.*s", False),
        ("Inventory.*", False),
    ],
)
def test_what_a_receiver_listens_to_is_right_if_a_right_topic_may_match(
    pattern: str, right: bool
) -> None:
    """A star may stand for a word, for capitals, or for a number."""
    assert (naming_fault(pattern, folio_rule) is None) is right
    assert naming_fault("org.openedx.*.*.*.v*", openedx_rule) is None
    assert naming_fault("org.openedx.*", openedx_rule) is not None
