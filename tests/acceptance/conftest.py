"""A library with tenants: what the acceptance tests have in common."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import Client

import sample_project.receiving.receivers  # noqa: F401 - registers, wherever it is installed
from folio_events import tenant_context
from folio_events.models import OutboxMessage

TENANT = "diku"
BOOK = "1a54b431-2e4f-452d-9cae-9cee66c9a892"
CAN_CIRCULATE = "2b94c631-fca9-4892-a730-03ee529ffe27"


@pytest.fixture
def tenancy(folio_events: Callable[..., None]) -> None:
    """Tenancy is on, and nobody is taken for a tenant by default."""
    folio_events(TENANCY="folio", DEFAULT_TENANT=None)


@pytest.fixture
def diku(db: None, tenancy: None) -> Iterator[None]:
    """The block runs as tenant diku."""
    with tenant_context(TENANT):
        yield


class Library:
    """FOLIO's HTTP interface, as one tenant."""

    def __init__(self, tenant: str) -> None:
        self.client = Client(headers={"X-Okapi-Tenant": tenant})

    def post(self, path: str, record: dict[str, Any]) -> Any:
        response = self.client.post(path, record, content_type="application/json")
        assert response.status_code == 201, response.content
        return response.json()

    def get(self, path: str) -> Any:
        response = self.client.get(path)
        assert response.status_code == 200, response.content
        return response.json()

    def put(self, path: str, record: dict[str, Any]) -> Any:
        response = self.client.put(path, record, content_type="application/json")
        assert response.status_code == 200, response.content
        return response.json()

    def edit(self, path: str, **changes: Any) -> Any:
        return self.put(path, {**self.get(path), **changes})

    def new_item(self, **fields: Any) -> str:
        """Create an item; returns its path."""
        item = {
            "holdingsRecordId": str(uuid.uuid4()),
            "materialTypeId": BOOK,
            "permanentLoanTypeId": CAN_CIRCULATE,
            "status": {"name": "Available"},
            **fields,
        }
        return f"/item-storage/items/{self.post('/item-storage/items', item)['id']}"

    def new_piece(self, item: str | None = None, **fields: Any) -> str:
        """Create a piece of the item at a path; returns its path."""
        piece = {"poLineId": str(uuid.uuid4()), "format": "Physical", **fields}
        if item is not None:
            piece["itemId"] = item.rpartition("/")[2]
        return f"/orders-storage/pieces/{self.post('/orders-storage/pieces', piece)['id']}"


@pytest.fixture
def library(db: None, tenancy: None) -> Library:
    return Library(TENANT)


@pytest.fixture(params=["database", "memory"])
def any_broker(request: pytest.FixtureRequest) -> str:
    """Once on each broker that needs no service."""
    if request.param == "memory":
        request.getfixturevalue("memory_broker")
    name: str = request.param
    return name


def recorded() -> dict[str, int]:
    """How many events of each topic and type were recorded."""
    rows = OutboxMessage.objects.order_by("topic", "event_type").values_list("topic", "event_type")
    return {f"{t} {kind}": len(list(same)) for (t, kind), same in itertools.groupby(rows)}
