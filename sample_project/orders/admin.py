"""Order lines and pieces in the admin."""

from __future__ import annotations

from django.contrib import admin

from sample_project.orders.models import OrderLine, Piece
from sample_project.record_admin import RecordAdmin


@admin.register(OrderLine)
class OrderLineAdmin(RecordAdmin):
    list_display = ["po_line_number", "title_or_package", "locked_for", "tenant"]
    search_fields = ["po_line_number", "title_or_package", "id"]


@admin.register(Piece)
class PieceAdmin(RecordAdmin):
    list_display = ["id", "enumeration", "chronology", "receiving_status", "item_id", "tenant"]
    search_fields = ["id", "item_id", "enumeration"]
