"""The events of orders."""

from __future__ import annotations

from django.db.models import F

from folio_events import ModelEvents, events
from sample_project import contracts
from sample_project.orders.models import OrderLine, Piece
from sample_project.orders.serializers import OrderLineEventSerializer, PieceEventSerializer


@events.register(OrderLine)
class OrderLineEvents(ModelEvents):
    topic = contracts.ORDER_LINE
    serializer_class = OrderLineEventSerializer
    key = "id"
    tenant = F("tenant")
    owner = "orders team"


@events.register(Piece)
class PieceEvents(ModelEvents):
    topic = contracts.PIECE
    serializer_class = PieceEventSerializer
    key = "id"
    tenant = F("tenant")
    owner = "orders team"
