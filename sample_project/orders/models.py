"""Order line and piece, with the columns that this project works on."""

from __future__ import annotations

from django.db import models

from sample_project import contracts
from sample_project.sync.models import SyncedModel


class OrderLine(SyncedModel):
    """One title of an order."""

    sync_topic = contracts.ORDER_LINE

    po_line_number = models.CharField(max_length=100, blank=True, default="")
    title_or_package = models.TextField()
    instance_id = models.UUIDField(null=True, blank=True, db_index=True)
    locked_for = models.CharField(
        max_length=200,
        blank=True,
        default="",
        help_text="Why pieces of this line must not change now, such as a fiscal year rollover.",
    )

    def __str__(self) -> str:
        return self.po_line_number or str(self.pk)


class Piece(SyncedModel):
    """One volume that is expected or was received."""

    sync_topic = contracts.PIECE

    po_line_id = models.UUIDField(db_index=True)
    item_id = models.UUIDField(null=True, blank=True, db_index=True)
    receiving_status = models.CharField(max_length=100, blank=True, default="Expected")
    enumeration = models.CharField(max_length=500, blank=True, default="")
    chronology = models.CharField(max_length=500, blank=True, default="")
    display_summary = models.CharField(max_length=500, blank=True, default="")
    copy_number = models.CharField(max_length=500, blank=True, default="")
    barcode = models.CharField(max_length=500, blank=True, default="", db_index=True)
    accession_number = models.CharField(max_length=500, blank=True, default="")
    call_number = models.CharField(max_length=500, blank=True, default="")

    def __str__(self) -> str:
        return " ".join(filter(None, (self.enumeration, self.chronology))) or str(self.pk)
