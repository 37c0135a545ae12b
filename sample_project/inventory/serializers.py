"""The records of inventory as FOLIO JSON, over HTTP and in events."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework import serializers

from sample_project.inventory.models import Holdings, Instance, Item
from sample_project.storage_api import RecordSerializer
from sample_project.sync.declaration import STAMPS


class InstanceSerializer(RecordSerializer):
    class Meta:
        model = Instance
        fields: ClassVar[list[str]] = ["id", "hrid", "title", "source"]


class HoldingsSerializer(RecordSerializer):
    class Meta:
        model = Holdings
        fields: ClassVar[list[str]] = [
            "id",
            "hrid",
            "instanceId",
            "permanentLocationId",
            "callNumber",
        ]


class ItemSerializer(RecordSerializer):
    class Meta:
        model = Item
        fields: ClassVar[list[str]] = [
            "id",
            "hrid",
            "holdingsRecordId",
            "barcode",
            "enumeration",
            "chronology",
            "displaySummary",
            "copyNumber",
            "accessionNumber",
            "itemLevelCallNumber",
            "status",
            "materialTypeId",
            "permanentLoanTypeId",
        ]

    def validate_status(self, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise serializers.ValidationError('A status looks like {"name": "Available"}.')
        return value


class InstanceEventSerializer(InstanceSerializer):
    class Meta(InstanceSerializer.Meta):
        fields = [*InstanceSerializer.Meta.fields, STAMPS]


class ItemEventSerializer(ItemSerializer):
    class Meta(ItemSerializer.Meta):
        fields = [*ItemSerializer.Meta.fields, STAMPS]
