"""FOLIO's paths of orders storage."""

from __future__ import annotations

from rest_framework.routers import SimpleRouter

from sample_project.orders.views import OrderLineViewSet, PieceViewSet

router = SimpleRouter(trailing_slash=False)
router.register("orders-storage/po-lines", OrderLineViewSet, basename="po-line")
router.register("orders-storage/pieces", PieceViewSet, basename="piece")

urlpatterns = router.urls
