"""Instance, holdings and item, with the columns that this project works on."""

from __future__ import annotations

from django.db import models

from sample_project import contracts
from sample_project.records import FolioRecord
from sample_project.sync.models import SyncedModel


class Instance(SyncedModel):
    """A title."""

    sync_topic = contracts.INSTANCE

    hrid = models.CharField(max_length=100, blank=True, default="")
    title = models.TextField()
    source = models.CharField(max_length=100, blank=True, default="")

    def __str__(self) -> str:
        return self.title


class Holdings(FolioRecord):
    """What the library holds of a title in one place."""

    hrid = models.CharField(max_length=100, blank=True, default="")
    # No foreign keys: FOLIO's records are loaded in any order.
    instance_id = models.UUIDField(db_index=True)
    permanent_location_id = models.UUIDField(null=True, blank=True)
    call_number = models.CharField(max_length=500, blank=True, default="")

    class Meta:
        verbose_name_plural = "holdings"

    def __str__(self) -> str:
        return self.call_number or str(self.pk)


class Item(SyncedModel):
    """One volume on the shelf."""

    sync_topic = contracts.ITEM

    hrid = models.CharField(max_length=100, blank=True, default="")
    holdings_record_id = models.UUIDField(db_index=True)
    barcode = models.CharField(max_length=500, blank=True, default="", db_index=True)
    enumeration = models.CharField(max_length=500, blank=True, default="")
    chronology = models.CharField(max_length=500, blank=True, default="")
    display_summary = models.CharField(max_length=500, blank=True, default="")
    copy_number = models.CharField(max_length=500, blank=True, default="")
    accession_number = models.CharField(max_length=500, blank=True, default="")
    item_level_call_number = models.CharField(max_length=500, blank=True, default="")
    status = models.JSONField(help_text='{"name": "Available"}')
    material_type_id = models.UUIDField()
    permanent_loan_type_id = models.UUIDField()

    def __str__(self) -> str:
        return " ".join(filter(None, (self.hrid, self.enumeration, self.chronology))) or str(
            self.pk
        )
