"""A sync of two other models is a field map and nothing else; each field has one owner."""

from __future__ import annotations

import dataclasses
import random

import pytest

from folio_events import RetryPolicy
from folio_events.models import Delivery
from folio_events.receivers import registry
from folio_events.testing import deliver_all
from sample_project import contracts
from sample_project.inventory.models import Item
from sample_project.orders.models import Piece
from sample_project.sync.declaration import FieldSync, check_owners, declare, withdraw
from sample_project.sync.rule import SyncedField
from tests.acceptance.conftest import recorded

pytestmark = [pytest.mark.django_db, pytest.mark.urls("sample_project.urls")]


class TestTitleSync:
    """Instance and order line, which share a title by a declaration of three lines."""

    @pytest.fixture
    def instance(self, library):
        record = {"title": "Ulysses", "source": "FOLIO", "instanceTypeId": "6312d172"}
        return library.post("/instance-storage/instances", record)["id"]

    @pytest.fixture
    def line(self, library, instance):
        record = {"titleOrPackage": "Ulysses", "instanceId": instance, "source": "User"}
        return f"/orders-storage/po-lines/{library.post('/orders-storage/po-lines', record)['id']}"

    def test_a_new_title_of_the_instance_reaches_the_order_line(self, library, instance, line):
        library.edit(f"/instance-storage/instances/{instance}", title="Ulysses, annotated")
        deliver_all()
        assert library.get(line)["titleOrPackage"] == "Ulysses, annotated"

    def test_a_new_title_of_the_order_line_reaches_the_instance(self, library, instance, line):
        library.edit(line, titleOrPackage="Ulysses, annotated")
        deliver_all()
        assert (
            library.get(f"/instance-storage/instances/{instance}")["title"] == "Ulysses, annotated"
        )
        assert recorded()["inventory.instance UPDATE"] == 1
        assert recorded()["orders.po-line UPDATE"] == 1


class TestOwners:
    @pytest.fixture
    def declared(self):
        added = []

        def add(**changes):
            given = {
                "name": "other",
                "hub": contracts.ITEM,
                "spoke": contracts.PIECE,
                "link": "itemId",
            }
            added.append(declare(FieldSync(**{**given, **changes})))

        yield add
        for sync in added:
            withdraw(sync)

    def test_the_projects_own_declarations_have_one_owner_a_field(self):
        assert check_owners() == []

    def test_a_field_with_two_owners_is_refused_by_the_check(self, declared):
        declared(fields=(SyncedField(hub="barcode", spoke="callNumber", owner=contracts.ITEM),))
        assert {error.id for error in check_owners()} == {"sample_project.E002"}
        assert any("'barcode' of 'inventory.item' has two owners" in e.msg for e in check_owners())

    def test_an_owner_that_is_no_side_is_refused_by_the_check(self, declared):
        declared(fields=(SyncedField(hub="notes", spoke="comment", owner="finance.fund"),))
        assert [error.id for error in check_owners()] == ["sample_project.E001"]


class TestFaults:
    @pytest.fixture
    def unreliable_receivers(self, monkeypatch):
        """Every receiver fails on a third of its runs, and is tried again at once."""
        rng = random.Random(1)

        def unreliable(function):
            def run(event):
                function(event)
                if rng.random() < 1 / 3:
                    raise ConnectionError("as it happens")

            return run

        patient = RetryPolicy(attempts=1000, backoff=0)
        originals = list(registry)
        for receiver in originals:
            registry.remove(receiver.name)
            registry.add(
                dataclasses.replace(
                    receiver, function=unreliable(receiver.function), own_retry=patient
                )
            )
        yield
        for receiver in originals:
            registry.remove(receiver.name)
            registry.add(receiver)

    @pytest.mark.usefixtures("unreliable_receivers")
    def test_both_sides_end_equal_though_receivers_fail(self, library):
        rng = random.Random(2)
        paths = []
        for number in range(10):
            item = library.new_item(enumeration=f"v.{number}", chronology="1913")
            paths += [item, library.new_piece(item, enumeration=f"v.{number}", chronology="1913")]
        for number in range(60):
            field = rng.choice(["enumeration", "chronology", "barcode", "copyNumber"])
            library.edit(rng.choice(paths), **{field: f"edit {number}"})
            if number % 20 == 0:
                deliver_all()
        deliver_all()
        assert Delivery.objects.exists()
        assert not Delivery.objects.exclude(state=Delivery.State.RESOLVED).exists()
        items = {row.pk: row for row in Item.all_tenants.all()}
        for piece in Piece.all_tenants.all():
            item = items[piece.item_id]
            for synced in contracts.PIECE_ITEM.fields:
                assert piece.version(synced.spoke).value == item.version(synced.hub).value
