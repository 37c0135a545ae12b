"""Three libraries in one system, on one topic: each sees its own, and only its own."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections

from folio_events import tenant_context
from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.conf import get_settings
from folio_events.consumer import Consumer
from folio_events.message import Message
from folio_events.models import Delivery, Orphan, OutboxMessage, Publication
from folio_events.relay import drain
from folio_events.testing import deliver_all
from sample_project.inventory.models import Item
from sample_project.orders.models import Piece
from tests.acceptance.conftest import Library

pytestmark = pytest.mark.urls("sample_project.urls")

TENANTS = ("college", "diku", "uni-north")


@pytest.fixture
def libraries(db: None, tenancy: None, folio_events: Callable[..., None]) -> dict[str, Library]:
    """They share every topic."""
    folio_events(TENANT_COLLECTION="ALL")
    return {tenant: Library(tenant) for tenant in TENANTS}


def id_of(path: str) -> str:
    return path.rpartition("/")[2]


def tenants_of(model: Any, **fields: str) -> list[str]:
    found = model.all_tenants.filter(**fields).order_by("tenant")
    return list(found.values_list("tenant", flat=True))


@pytest.mark.usefixtures("any_broker")
def test_three_tenants_on_one_topic_keep_their_data_apart(libraries: dict[str, Library]) -> None:
    """What one of them writes on a piece stands on its own item and nobody else's."""
    pieces = {}
    for tenant, library in libraries.items():
        item = library.new_item(enumeration="v.1")
        pieces[tenant] = library.new_piece(item, enumeration="v.1")
    # In turns, so that the topic has them mixed.
    for number in range(2, 5):
        for tenant, library in libraries.items():
            library.edit(pieces[tenant], enumeration=f"v.{number} of {tenant}")
    deliver_all()
    topics = Publication.objects.values_list("topic", flat=True)
    assert {topic.split(".")[1] for topic in topics} == {"ALL"}
    for tenant in TENANTS:
        assert tenants_of(Item, enumeration=f"v.4 of {tenant}") == [tenant]
        with tenant_context(tenant):
            assert Item.objects.get().enumeration == f"v.4 of {tenant}"
    assert set(OutboxMessage.objects.values_list("tenant", flat=True)) == set(TENANTS)
    assert not Delivery.objects.exists()


@pytest.mark.usefixtures("any_broker")
def test_a_piece_that_names_another_tenants_item_changes_nothing_there(
    libraries: dict[str, Library],
) -> None:
    """Its receivers run as its own tenant, who has no such item; the other way round too."""
    item = libraries["diku"].new_item(enumeration="ours", status={"name": "On order"})
    libraries["diku"].new_piece(item, enumeration="ours")
    thief = libraries["college"].new_piece(item, enumeration="theirs")
    libraries["college"].edit(thief, enumeration="theirs again", receivingStatus="Received")
    deliver_all()
    assert libraries["diku"].get(item)["enumeration"] == "ours"
    assert libraries["diku"].get(item)["status"]["name"] == "On order"
    libraries["diku"].edit(item, enumeration="ours, corrected")
    deliver_all()
    assert libraries["college"].get(thief)["enumeration"] == "theirs again"
    assert tenants_of(Piece, enumeration="ours, corrected") == ["diku"]


@pytest.mark.usefixtures("any_broker")
def test_tenant_request_and_cause_are_inherited_over_two_hops(
    libraries: dict[str, Library],
) -> None:
    """Request, piece, item, the item's other piece: one request id, and a chain of causes."""
    library = libraries["diku"]
    item = library.new_item()
    first, second = library.new_piece(item), library.new_piece(item)
    deliver_all()
    before = OutboxMessage.objects.latest("id").pk
    record = library.get(first)
    library.client.put(
        first,
        {**record, "enumeration": "v.9"},
        content_type="application/json",
        headers={"X-Okapi-Request-Id": "812/orders-storage"},
    )
    deliver_all()
    assert library.get(second)["enumeration"] == "v.9"
    chain = OutboxMessage.objects.filter(pk__gt=before).order_by("id")
    assert [(row.topic, row.tenant) for row in chain] == [
        ("orders.piece", "diku"),
        ("inventory.item", "diku"),
        ("orders.piece", "diku"),
    ]
    own = [dict(json.loads(bytes(row.own_headers))) for row in chain]
    assert {headers["x-okapi-request-id"] for headers in own} == {"812/orders-storage"}
    assert [headers.get("ce_causationid") for headers in own] == [
        None,
        *(str(row.event_id) for row in list(chain)[:2]),
    ]


def test_a_forged_owner_reaches_no_tenant(
    libraries: dict[str, Library], memory_broker: Any
) -> None:
    """A header says one tenant, the body another: neither's item is touched."""
    items = {}
    for tenant in ("diku", "college"):
        items[tenant] = libraries[tenant].new_item(enumeration="untouched")
    deliver_all()
    for tenant, path in items.items():
        piece = {"id": str(uuid.uuid4()), "itemId": id_of(path), "enumeration": "forged"}
        body = {"eventId": str(uuid.uuid4()), "type": "CREATE", "tenant": tenant, "new": piece}
        other = "college" if tenant == "diku" else "diku"
        message = Message(
            "folio.ALL.orders.piece",
            b"k",
            json.dumps(body).encode(),
            [("folio.tenantId", other.encode())],
        )
        memory_broker.create_topics([TopicSpec(message.topic, 1, 1)])
        memory_broker.publish([message], timeout=1)
    deliver_all()
    for tenant, path in items.items():
        assert libraries[tenant].get(path)["enumeration"] == "untouched"
    assert set(Orphan.objects.values_list("fault", flat=True)) == {"disagreeing"}


@pytest.mark.postgres
@pytest.mark.kafka
@pytest.mark.django_db(transaction=True)
def test_tenants_at_once_on_a_real_topic_leak_nothing(
    libraries: dict[str, Library], kafka_broker: Any
) -> None:
    """Three libraries at work at the same time, on PostgreSQL and Kafka, by one consumer."""
    edits = 8

    def work(tenant: str) -> None:
        library = libraries[tenant]
        pieces = [library.new_piece(library.new_item()) for _ in range(3)]
        for number in range(1, edits + 1):
            for piece in pieces:
                library.edit(piece, enumeration=f"v.{number} of {tenant}")
        connections.close_all()

    with ThreadPoolExecutor(len(TENANTS)) as pool:
        list(pool.map(work, TENANTS))
    while drain().more:
        pass
    consumer = Consumer(get_settings().GROUP, broker=get_broker())
    stop = threading.Event()

    def arrived() -> None:
        done = Item.all_tenants.filter(enumeration__startswith=f"v.{edits} of ")
        if done.count() == 3 * len(TENANTS):
            stop.set()

    try:
        consumer.run(stop, alive=arrived)
    finally:
        consumer.close()
    for tenant in TENANTS:
        assert tenants_of(Item, enumeration=f"v.{edits} of {tenant}") == [tenant] * 3
    assert not Delivery.objects.exists()
    assert not Orphan.objects.exists()
