"""The records of orders as FOLIO JSON, over HTTP and in events."""

from __future__ import annotations

from typing import ClassVar

from sample_project.orders.models import OrderLine, Piece
from sample_project.storage_api import RecordSerializer
from sample_project.sync.declaration import STAMPS


class OrderLineSerializer(RecordSerializer):
    class Meta:
        model = OrderLine
        fields: ClassVar[list[str]] = [
            "id",
            "poLineNumber",
            "titleOrPackage",
            "instanceId",
            "lockedFor",
        ]


class PieceSerializer(RecordSerializer):
    class Meta:
        model = Piece
        fields: ClassVar[list[str]] = [
            "id",
            "poLineId",
            "itemId",
            "receivingStatus",
            "enumeration",
            "chronology",
            "displaySummary",
            "copyNumber",
            "barcode",
            "accessionNumber",
            "callNumber",
        ]


class OrderLineEventSerializer(OrderLineSerializer):
    class Meta(OrderLineSerializer.Meta):
        fields = [*OrderLineSerializer.Meta.fields, STAMPS]


class PieceEventSerializer(PieceSerializer):
    class Meta(PieceSerializer.Meta):
        fields = [*PieceSerializer.Meta.fields, STAMPS]
