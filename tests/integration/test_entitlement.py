"""The tenant filter in the consumer: what is skipped, and what waits."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from folio_events.brokers.memory import MemoryBroker
from folio_events.models import ConsumerOffset, Delivery
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)

#: What ``entitled`` answers.
tenants: set[str] = set()


def entitled() -> set[str]:
    return tenants


@pytest.fixture
def collection(
    memory_broker: MemoryBroker,
    only_test_receivers: None,
    folio_events: Callable[..., None],
) -> NoteTopic:
    """A topic of all tenants; the filter asks ``entitled`` each time."""
    tenants.clear()
    folio_events(
        TENANCY="folio",
        TENANT_COLLECTION="ALL",
        TENANT_FILTER={"ENTITLED": f"{__name__}.entitled", "REFRESH": 0},
    )
    return NoteTopic(memory_broker, wire="folio.ALL.library.note")


def put(notes: NoteTopic, *owners: str) -> None:
    """Put one note for each owner, numbered from 0."""
    for number, tenant in enumerate(owners):
        body = json.dumps({"number": number}).encode()
        notes.put_raw(body, tenant.encode(), [("folio.tenantId", tenant.encode())])


def test_events_of_tenants_that_are_not_entitled_are_passed_over(collection: NoteTopic) -> None:
    """They leave nothing behind, and do not come back when their tenant is."""
    note_receiver("notes")
    tenants.add("a")
    put(collection, "a", "b", "a")
    assert collection.consume() == 3
    tenants.add("b")
    collection.restart()
    collection.consume()
    assert effects("notes") == [0, 2]
    assert not Delivery.objects.exists()


def test_a_failing_filter_leaves_the_offset_until_the_tenant_is_entitled(
    collection: NoteTopic, folio_events: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """What came before takes effect, and a clear word says what is waited for."""
    folio_events(
        TENANT_FILTER={
            "ENTITLED": f"{__name__}.entitled",
            "REFRESH": 0,
            "TENANT_DISABLED": "FAIL",
        },
        POLL_FAILURE_SLEEP=0.0,
    )
    note_receiver("notes")
    tenants.add("a")
    put(collection, "a", "b", "a")
    assert collection.consume() == 0
    assert effects("notes") == [0]
    assert ConsumerOffset.objects.get().offset == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said == ["waiting: Tenant 'b' is not entitled to this module (TENANT_FILTER)."]
    tenants.add("b")
    collection.consume()
    assert effects("notes") == [0, 1, 2]
    assert not Delivery.objects.exists()


def test_where_no_tenant_is_entitled_everything_waits(
    collection: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """By default: it is more likely that entitlement is not known yet."""
    folio_events(POLL_FAILURE_SLEEP=0.0)
    note_receiver("notes")
    put(collection, "a")
    collection.consume()
    assert ConsumerOffset.objects.get().offset == 0
    tenants.add("a")
    collection.consume()
    assert effects("notes") == [0]


def test_a_skipped_event_holds_nobody_and_is_no_failure(collection: NoteTopic) -> None:
    """Where the batch goes one by one, too."""
    note_receiver("notes", Mood(0))
    tenants.add("a")
    put(collection, "a", "b", "a")
    collection.consume()
    assert [delivery.offset for delivery in Delivery.objects.order_by("offset")] == [0, 2]
    assert ConsumerOffset.objects.get().offset == 3
