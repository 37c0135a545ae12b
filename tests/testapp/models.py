"""Models of the tests: one for each kind of row that capture meets."""

from __future__ import annotations

import uuid

from django.db import models


class Book(models.Model):
    """A plain model with the usual kinds of fields."""

    title = models.CharField(max_length=200)
    copies = models.IntegerField(default=1)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    published_on = models.DateField(null=True)
    catalogued_at = models.DateTimeField(null=True)
    extra = models.JSONField(default=dict)
    cover = models.BinaryField(null=True)

    def __str__(self) -> str:
        return self.title


class Chapter(models.Model):
    """Belongs to a book; its events share the book's key."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    book = models.ForeignKey(Book, on_delete=models.CASCADE, related_name="chapters")
    title = models.CharField(max_length=200)

    def __str__(self) -> str:
        return self.title


class BookProxy(Book):
    """Another face of the same rows."""

    class Meta:
        proxy = True


class Effect(models.Model):
    """What a receiver of the tests wrote."""

    receiver = models.CharField(max_length=100)
    event_id = models.UUIDField()
    key = models.CharField(max_length=100, default="")
    note = models.CharField(max_length=200, default="")

    def __str__(self) -> str:
        return f"{self.receiver} {self.event_id}"
