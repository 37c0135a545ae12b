"""TOPICS for single tenants: their own size where they have their own topic, refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from folio_events.checks.topic import check_topics
from folio_events.exceptions import ConfigurationError
from folio_events.provisioning import topic_spec
from folio_events.topics.declared import topic_options

ITEM = "inventory.item"
LARGE = {"PARTITIONS": 6, "TENANTS": {"diku": {"PARTITIONS": 50, "RETENTION": 3600}}}


def ids() -> list[str | None]:
    return [message.id for message in check_topics(None) if "E05" in str(message.id)]


def test_one_tenants_topic_may_be_larger(folio_events: Callable[..., None]) -> None:
    """What is not said of the tenant is as for all others."""
    folio_events(TENANCY="folio", TOPICS={ITEM: {**LARGE, "MAX_MESSAGE_BYTES": 5000}})

    large, usual = topic_spec(ITEM, "diku"), topic_spec(ITEM, "college")

    assert (large.partitions, usual.partitions) == (50, 6)
    assert large.config == {"retention.ms": "3600000", "max.message.bytes": "5000"}
    assert usual.config == {"max.message.bytes": "5000"}
    assert ids() == []


@pytest.mark.parametrize(
    ("tenancy", "named"),
    [
        ({"TENANCY": "folio", "TENANT_COLLECTION": "ALL"}, "a tenant collection is on"),
        ({"TENANCY": None}, "TENANCY is None"),
    ],
    ids=["collection", "no tenants"],
)
def test_options_of_a_tenant_are_refused_where_its_topic_is_everybodys(
    tenancy: dict[str, Any], named: str, folio_events: Callable[..., None]
) -> None:
    """The check names topic and tenant; what is created has the options for all."""
    folio_events(**tenancy, TOPICS={ITEM: LARGE})

    [found] = [one for one in check_topics(None) if one.id == "folio_events.E056"]

    assert all(part in found.msg for part in (ITEM, "diku", named))
    assert topic_spec(ITEM, "diku").partitions == 6


def test_a_collections_own_options_are_taken(folio_events: Callable[..., None]) -> None:
    """They are said of the topic, whoever is in it."""
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL", TOPICS={ITEM: {"PARTITIONS": 50}})

    assert topic_spec(ITEM, "diku").partitions == 50
    assert ids() == []


@pytest.mark.parametrize("given", [["diku"], {"diku": 50}], ids=repr)
def test_tenants_options_that_are_no_dict_are_refused(
    given: object, folio_events: Callable[..., None]
) -> None:
    """The check names the place."""
    folio_events(TENANCY="folio", TOPICS={ITEM: {"TENANTS": given}})

    [found] = check_topics(None)

    assert found.id == "folio_events.E050"
    assert "['inventory.item']['TENANTS']" in found.msg


@pytest.mark.parametrize("option", ["NAMESPACE", "CLEANUP_POLICY", "TENANTS", "PARTITION"])
def test_what_cannot_differ_from_tenant_to_tenant_is_refused(
    option: str, folio_events: Callable[..., None]
) -> None:
    """Consumers take what a topic is to be the same for all of them."""
    folio_events(TENANCY="folio", TOPICS={ITEM: {"TENANTS": {"diku": {option: "x"}}}})

    with pytest.raises(ConfigurationError, match=rf"\['TENANTS'\]\['diku'\].*{option}"):
        topic_options(ITEM, tenant="diku")
