"""Instances, holdings and items in the admin."""

from __future__ import annotations

from django.contrib import admin

from sample_project.inventory.models import Holdings, Instance, Item
from sample_project.record_admin import RecordAdmin


@admin.register(Instance)
class InstanceAdmin(RecordAdmin):
    list_display = ["title", "tenant"]
    search_fields = ["title", "id"]


@admin.register(Holdings)
class HoldingsAdmin(RecordAdmin):
    list_display = ["id", "call_number", "instance_id", "tenant"]
    search_fields = ["id", "call_number", "instance_id"]


@admin.register(Item)
class ItemAdmin(RecordAdmin):
    list_display = ["id", "barcode", "enumeration", "chronology", "tenant"]
    search_fields = ["id", "barcode", "enumeration", "holdings_record_id"]
