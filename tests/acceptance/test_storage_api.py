"""Records go in and out over HTTP as FOLIO JSON, and belong to the tenant of the call."""

from __future__ import annotations

import uuid

import pytest
from django.test import Client

from folio_events.testing import deliver_all
from sample_project.inventory.models import Item
from tests.acceptance.conftest import BOOK, CAN_CIRCULATE, Library, recorded

pytestmark = [pytest.mark.django_db, pytest.mark.urls("sample_project.urls")]

FOLIO_ITEM = {
    "id": "645549b1-2a73-4251-b8bb-39598f773a94",
    "hrid": "item000000000004",
    "status": {"name": "Available", "date": "2026-01-02T03:04:05.000+00:00"},
    "formerIds": [],
    "discoverySuppress": None,
    "holdingsRecordId": "0c45bb50-7c9b-48b0-86eb-178a494e25fe",
    "barcode": "A14813848587",
    "enumeration": "v.71:no.6-2",
    "chronology": "1985:July-Dec.",
    "copyNumber": "c.1",
    "notes": [
        {"itemNoteTypeId": "8d0a5eca-25de-4391-81a9-236eeefdd20b", "note": "Signed by the author"}
    ],
    "statisticalCodeIds": ["775b6ad4-9c35-4d29-bf78-8775a9b42226"],
    "purchaseOrderLineIdentifier": None,
    "materialTypeId": BOOK,
    "permanentLoanTypeId": CAN_CIRCULATE,
    "temporaryLocationId": "53cf956f-c1df-410b-8bea-27f712cca7c0",
}


class TestItems:
    def test_an_item_is_given_back_as_it_came_with_fields_nobody_knows(self, library):
        assert library.post("/item-storage/items", FOLIO_ITEM) == FOLIO_ITEM
        assert library.get(f"/item-storage/items/{FOLIO_ITEM['id']}") == FOLIO_ITEM

    def test_items_are_created_read_updated_and_deleted(self, library):
        path = library.new_item(enumeration="v.1")
        assert library.get(path)["enumeration"] == "v.1"
        library.edit(path, enumeration="v.2")
        assert library.get(path)["enumeration"] == "v.2"
        assert library.client.delete(path).status_code == 204
        assert library.client.get(path).status_code == 404
        assert recorded() == {
            "inventory.item CREATE": 1,
            "inventory.item UPDATE": 1,
            "inventory.item DELETE": 1,
        }

    def test_a_put_empties_what_it_leaves_out_and_a_patch_keeps_it(self, library):
        path = library.new_item(copyNumber="c.1", yearCaption=["1913"])
        library.client.patch(path, {"volume": "1"}, content_type="application/json")
        assert library.get(path).items() >= {"copyNumber": "c.1", "volume": "1"}.items()
        record = library.get(path)
        del record["copyNumber"], record["yearCaption"]
        library.put(path, record)
        assert library.get(path).keys().isdisjoint({"copyNumber", "yearCaption"})

    def test_an_empty_field_has_its_default(self, library):
        piece = library.new_piece(receivingStatus=None, itemId=None, enumeration=None)
        assert library.get(piece)["receivingStatus"] == "Expected"
        record = library.get(library.new_piece(receivingStatus="Received"))
        del record["receivingStatus"]
        assert (
            library.put(f"/orders-storage/pieces/{record['id']}", record)["receivingStatus"]
            == "Expected"
        )

    def test_a_collection_has_its_folio_name_and_a_total(self, library):
        for _ in range(3):
            library.new_item()
        found = library.get("/item-storage/items?limit=2")
        assert (len(found["items"]), found["totalRecords"]) == (2, 3)

    @pytest.mark.parametrize(
        ("field", "value", "word"),
        [
            ("holdingsRecordId", None, "holdingsRecordId"),
            ("holdingsRecordId", "no uuid", "UUID"),
            ("status", "Available", "status"),
            ("status", {"date": "today"}, "status"),
            ("enumeration", {"a": 1}, "enumeration"),
            ("id", "42", "UUID"),
        ],
    )
    def test_bad_input_is_refused_with_the_name_of_the_field(self, library, field, value, word):
        record = {**FOLIO_ITEM, field: value}
        response = library.client.post(
            "/item-storage/items", record, content_type="application/json"
        )
        assert response.status_code == 400
        assert word in response.content.decode()
        assert recorded() == {}

    def test_a_record_that_is_no_object_is_refused(self, library):
        response = library.client.post("/item-storage/items", [1], content_type="application/json")
        assert response.status_code == 400

    def test_an_id_can_be_neither_taken_twice_nor_changed(self, library):
        library.post("/item-storage/items", FOLIO_ITEM)
        again = library.client.post(
            "/item-storage/items", FOLIO_ITEM, content_type="application/json"
        )
        other = {**FOLIO_ITEM, "id": str(uuid.uuid4())}
        moved = library.client.put(
            f"/item-storage/items/{FOLIO_ITEM['id']}", other, content_type="application/json"
        )
        assert (again.status_code, moved.status_code) == (400, 400)

    def test_cql_is_refused_rather_than_ignored(self, library):
        response = library.client.get("/item-storage/items?query=barcode==1")
        assert response.status_code == 400


@pytest.mark.parametrize(
    ("path", "record"),
    [
        (
            "/instance-storage/instances",
            {"title": "Ulysses", "source": "FOLIO", "languages": ["eng"]},
        ),
        (
            "/holdings-storage/holdings",
            {
                "instanceId": str(uuid.uuid4()),
                "permanentLocationId": str(uuid.uuid4()),
                "callNumber": "K1 .M44",
            },
        ),
        (
            "/orders-storage/po-lines",
            {"titleOrPackage": "Ulysses", "poLineNumber": "10000-1", "cost": {"quantity": 1}},
        ),
        (
            "/orders-storage/pieces",
            {"poLineId": str(uuid.uuid4()), "format": "Physical", "receivingStatus": "Expected"},
        ),
    ],
    ids=["instance", "holdings", "order line", "piece"],
)
def test_the_other_records_are_given_back_as_they_came(library, path, record):
    created = library.post(path, record)
    assert created.items() >= record.items()
    assert library.get(f"{path}/{created['id']}") == created


class TestTenants:
    def test_a_call_without_a_tenant_is_refused_by_the_headers_name(self, library):
        response = Client().get("/item-storage/items")
        assert response.status_code == 400
        assert "X-Okapi-Tenant" in response.content.decode()

    @pytest.mark.parametrize("tenant", ["bad tenant", "a.b", "*", "ü"])
    def test_a_tenant_that_no_topic_could_be_named_after_is_refused(self, library, tenant):
        response = Client(headers={"X-Okapi-Tenant": tenant}).get("/item-storage/items")
        assert response.status_code == 400
        assert "enant" in response.content.decode()

    def test_a_tenant_sees_and_changes_its_own_records_only(self, library):
        path = library.new_item(enumeration="v.1")
        other = Library("college")
        assert other.get("/item-storage/items")["totalRecords"] == 0
        assert other.client.get(path).status_code == 404
        assert (
            other.client.put(path, FOLIO_ITEM, content_type="application/json").status_code == 404
        )
        assert other.client.delete(path).status_code == 404
        assert library.get(path)["enumeration"] == "v.1"

    def test_rows_belong_to_the_tenant_that_made_them(self, library):
        library.new_item()
        Library("college").new_item()
        assert set(Item.all_tenants.values_list("tenant", flat=True)) == {"diku", "college"}

    def test_a_piece_of_another_tenant_does_not_touch_the_item(self, library):
        item = library.new_item(enumeration="v.1")
        Library("college").new_piece(item, enumeration="v.2")
        deliver_all()
        assert library.get(item)["enumeration"] == "v.1"
