"""Tables alike: captured by signals, by a trigger, not at all; and one that a receiver writes to."""

from __future__ import annotations

from django.db import models


class _Item(models.Model):
    """A row with the usual kinds of fields."""

    title = models.CharField(max_length=200)
    barcode = models.CharField(max_length=40)
    copies = models.IntegerField(default=1)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    catalogued_at = models.DateTimeField()
    note = models.TextField(default="")

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.title


class CapturedItem(_Item):
    """Registered: its writes are recorded."""


class TriggeredItem(_Item):
    """Registered: its writes are recorded by the database."""


class PlainItem(_Item):
    """Not registered: the base that capture is compared with."""


class Effect(models.Model):
    """What the receiver of an event wrote."""

    event_id = models.UUIDField()
    key = models.CharField(max_length=100, default="")

    def __str__(self) -> str:
        return f"effect of {self.event_id}"
