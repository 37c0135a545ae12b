"""The events of inventory."""

from __future__ import annotations

from django.db.models import F

from folio_events import ModelEvents, events
from sample_project import contracts
from sample_project.inventory.models import Holdings, Instance, Item
from sample_project.inventory.serializers import (
    HoldingsSerializer,
    InstanceEventSerializer,
    ItemEventSerializer,
)


@events.register(Instance)
class InstanceEvents(ModelEvents):
    topic = contracts.INSTANCE
    serializer_class = InstanceEventSerializer
    key = "id"
    tenant = F("tenant")
    owner = "inventory team"


@events.register(Holdings)
class HoldingsEvents(ModelEvents):
    topic = contracts.HOLDINGS
    serializer_class = HoldingsSerializer
    key = "id"
    tenant = F("tenant")
    owner = "inventory team"


@events.register(Item)
class ItemEvents(ModelEvents):
    topic = contracts.ITEM
    serializer_class = ItemEventSerializer
    key = "id"
    tenant = F("tenant")
    owner = "inventory team"
