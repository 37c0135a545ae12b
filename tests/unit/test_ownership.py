"""Whose message it is: by headers, body and topic, and when nobody can say."""

from __future__ import annotations

from typing import Any

import pytest

from folio_events.exceptions import OrphanError
from folio_events.ownership import owner


def claims(**said: Any) -> dict[str, Any]:
    return {"headers": {}, "body": {}, "segment": "ALL", **said}


@pytest.mark.parametrize(
    "said",
    [
        {"headers": {"folio.tenantid": "diku"}},
        {"headers": {"x-okapi-tenant": "diku"}},
        {"body": {"tenant": "diku"}},
        {"body": {"tenantId": "diku"}},
        {"body": {"eventMetadata": {"tenantId": "diku"}}},
        {"segment": "diku"},
        {
            "headers": {"folio.tenantid": "diku", "x-okapi-tenant": "diku"},
            "body": {"tenant": "diku"},
            "segment": "diku",
        },
        {"headers": {"folio.tenantid": " ", "x-okapi-tenant": "diku"}, "body": {"tenant": ""}},
        {"body": {"tenant": {"id": "payload"}, "tenantId": "diku"}},
        {"headers": {"folio.tenantid": "diku"}, "segment": None},
    ],
    ids=str,
)
def test_one_that_speaks_is_enough_and_all_that_speak_have_to_agree(said: dict[str, Any]) -> None:
    """What is missing, blank, or a payload's own object says nothing."""
    assert owner(**claims(**said)) == "diku"


@pytest.mark.parametrize("collection", ["ALL", "A", "COLLECTIONB", "A" * 31])
def test_a_collection_in_the_topic_is_no_owner_whatever_this_project_has_set(
    collection: str,
) -> None:
    """The producer's collection is the producer's setting."""
    with pytest.raises(OrphanError, match="nor topic name a tenant") as caught:
        owner(**claims(segment=collection))
    assert caught.value.fault == "missing"


def test_a_tenant_in_capitals_is_one_where_the_message_names_it() -> None:
    """By its form its topic could be a collection's, so the topic alone does not do."""
    said = claims(headers={"folio.tenantid": "TEST"}, segment="TEST")
    assert owner(**said) == "TEST"


@pytest.mark.parametrize(
    "said",
    [
        {"headers": {"folio.tenantid": "diku"}, "body": {"tenant": "college"}},
        {"headers": {"x-okapi-tenant": "diku"}, "body": {"tenant": "college"}},
        {"headers": {"folio.tenantid": "diku", "x-okapi-tenant": "college"}},
        {"headers": {"folio.tenantid": "diku"}, "segment": "college"},
        {"body": {"tenant": "diku"}, "segment": "college"},
        {"headers": {"folio.tenantid": "diku"}, "body": {"eventMetadata": {"tenantId": "c"}}},
        {"headers": {"folio.tenantid": "diku"}, "body": {"tenant": "DIKU"}},
    ],
    ids=str,
)
def test_any_two_that_disagree_make_an_orphan(said: dict[str, Any]) -> None:
    """The error says who says what."""
    with pytest.raises(OrphanError, match=r"several tenants: .* says ") as caught:
        owner(**claims(**said))
    assert caught.value.fault == "disagreeing"


@pytest.mark.parametrize("name", ["a.b", "two words", "*", "x" * 201, "diku\n", "ü"])
def test_a_name_that_can_be_no_tenants_makes_an_orphan(name: str) -> None:
    """It is not repeated in the error: nobody knows what it is."""
    with pytest.raises(OrphanError, match=r"^header folio\.tenantId names what is no") as caught:
        owner(**claims(headers={"folio.tenantid": name}))
    assert caught.value.fault == "invalid"
    assert name not in str(caught.value)
