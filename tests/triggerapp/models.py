"""Two models alike, of which one is captured by signals and one by a trigger, and their kin."""

from __future__ import annotations

import uuid

from django.contrib.postgres.fields import ArrayField
from django.db import models


class _Item(models.Model):
    """Has a field of each kind that both forms can show."""

    title = models.CharField(max_length=200)
    note = models.TextField(default="")
    copies = models.IntegerField(default=1)
    weight = models.FloatField(null=True)
    price = models.DecimalField(max_digits=10, decimal_places=2, null=True)
    lent = models.BooleanField(default=False)
    shelf = models.UUIDField(default=uuid.uuid4)
    published_on = models.DateField(null=True)
    opens_at = models.TimeField(null=True)
    catalogued_at = models.DateTimeField(null=True)
    loan_period = models.DurationField(null=True)
    cover = models.BinaryField(null=True)
    scan = models.FileField(default="", blank=True)
    address = models.GenericIPAddressField(null=True)
    extra = models.JSONField(default=dict)
    tags = ArrayField(models.CharField(max_length=50), default=list)
    prices = ArrayField(models.DecimalField(max_digits=8, decimal_places=2), null=True)
    seen_at = ArrayField(models.DateTimeField(), null=True)
    twice = models.GeneratedField(
        expression=models.F("copies") * 2, output_field=models.IntegerField(), db_persist=True
    )
    library = models.CharField(max_length=50, default="main")

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.title


class SignalItem(_Item):
    """Its writes are recorded by this process."""


class TriggerItem(_Item):
    """Its writes are recorded by the database."""


class _Part(models.Model):
    """Belongs to an item; its events share the item's key."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    title = models.CharField(max_length=200)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.title


class SignalPart(_Part):
    item = models.ForeignKey(SignalItem, models.CASCADE, null=True)


class TriggerPart(_Part):
    item = models.ForeignKey(TriggerItem, models.CASCADE, null=True)
