"""URLs of the REST API; include them where you like."""

from __future__ import annotations

from django.urls import path

from folio_events.api.tenant import TenantView

urlpatterns = [path("_/tenant", TenantView.as_view(), name="folio_events_tenant")]
