"""Records of all tenants in the admin; each is written as its own tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from folio_events import tenant_context
from sample_project.records import FolioRecord

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin  # has no type parameter when it runs


class RecordAdmin(_ModelAdmin):
    """Edits existing records; new ones come over HTTP, where the call names the tenant."""

    list_filter = ["tenant"]
    readonly_fields = ["id", "tenant"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: FolioRecord, form: Any, change: bool) -> None:
        with tenant_context(obj.tenant):
            super().save_model(request, obj, form, change)

    def delete_model(self, request: HttpRequest, obj: FolioRecord) -> None:
        with tenant_context(obj.tenant):
            super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        # One by one: the rows may belong to several tenants.
        for record in queryset:
            self.delete_model(request, record)
