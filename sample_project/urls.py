"""FOLIO's storage paths, and the admin."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("", include("sample_project.inventory.urls")),
    path("", include("sample_project.orders.urls")),
]
