"""The storage interface of inventory."""

from __future__ import annotations

from sample_project.inventory.models import Holdings, Instance, Item
from sample_project.inventory.serializers import (
    HoldingsSerializer,
    InstanceSerializer,
    ItemSerializer,
)
from sample_project.storage_api import StorageViewSet


class InstanceViewSet(StorageViewSet):
    collection = "instances"
    model = Instance
    serializer_class = InstanceSerializer


class HoldingsViewSet(StorageViewSet):
    collection = "holdingsRecords"
    model = Holdings
    serializer_class = HoldingsSerializer


class ItemViewSet(StorageViewSet):
    collection = "items"
    model = Item
    serializer_class = ItemSerializer
