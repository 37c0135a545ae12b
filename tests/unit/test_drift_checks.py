"""``check --deploy`` on topics that are not as declared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.core.checks import run_checks

from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.checks.drift import check_drift
from folio_events.provisioning import enable_tenant

MEMORY = {"BACKEND": "folio_events.brokers.memory.MemoryBroker"}


def broker() -> MemoryBroker:
    found = get_broker()
    assert isinstance(found, MemoryBroker)
    return found


def test_topics_as_declared_are_no_fault_and_missing_ones_neither(
    folio_events: Callable[..., None],
) -> None:
    """Nor is a project without a tenant so far."""
    folio_events(BROKER=MEMORY, TENANCY="folio", TOPIC_PARTITIONS=2)
    assert check_drift(None) == []

    enable_tenant("diku")
    broker().create_topics([TopicSpec("folio.college.library.book", 2, -1)])

    assert check_drift(None) == []


def test_each_tenants_topics_are_compared(folio_events: Callable[..., None]) -> None:
    """Of those that have topics; a few differences are named, the others counted."""
    folio_events(BROKER=MEMORY, TENANCY="folio", TOPIC_PARTITIONS=2)
    names = [f"folio.t{number}.library.book" for number in range(8)]
    broker().create_topics([TopicSpec(name, 3, -1) for name in names])

    [warning] = check_drift(None)

    assert warning.id == "folio_events.W060"
    assert warning.msg.startswith("8 topics are not as declared: folio.t0.library.book: partitions is 3, declared 2;")  # fmt: skip
    assert warning.msg.endswith("; and 3 more.")


def test_a_broker_that_is_away_is_a_warning(folio_events: Callable[..., None]) -> None:
    """The check may run where nobody can ask it, such as when an image is built."""
    folio_events(BROKER=MEMORY)
    broker().available = False

    assert [found.id for found in check_drift(None)] == ["folio_events.W061"]


def test_topics_in_a_database_are_left_to_the_command() -> None:
    """Without --database a check reads none; the test would fail if this one did."""
    assert check_drift(None) == []


@pytest.mark.parametrize("deploy", [True, False])
def test_the_broker_is_asked_with_deploy_alone(
    folio_events: Callable[..., None], deploy: bool
) -> None:
    """No start should wait for it."""
    folio_events(BROKER=MEMORY)
    broker().available = False

    found = run_checks(tags=["folio_events_topics"], include_deployment_checks=deploy)

    assert [one.id for one in found] == (["folio_events.W061"] if deploy else [])
