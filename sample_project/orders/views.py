"""The storage interface of orders."""

from __future__ import annotations

from sample_project.orders.models import OrderLine, Piece
from sample_project.orders.serializers import OrderLineSerializer, PieceSerializer
from sample_project.storage_api import StorageViewSet


class OrderLineViewSet(StorageViewSet):
    collection = "poLines"
    model = OrderLine
    serializer_class = OrderLineSerializer


class PieceViewSet(StorageViewSet):
    collection = "pieces"
    model = Piece
    serializer_class = PieceSerializer
