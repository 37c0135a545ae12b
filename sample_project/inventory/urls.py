"""FOLIO's paths of inventory storage."""

from __future__ import annotations

from rest_framework.routers import SimpleRouter

from sample_project.inventory.views import HoldingsViewSet, InstanceViewSet, ItemViewSet

router = SimpleRouter(trailing_slash=False)
router.register("instance-storage/instances", InstanceViewSet, basename="instance")
router.register("holdings-storage/holdings", HoldingsViewSet, basename="holdings")
router.register("item-storage/items", ItemViewSet, basename="item")

urlpatterns = router.urls
