"""Models of the tests: one for each kind of row that capture meets."""

from __future__ import annotations

import uuid
from typing import Any

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


class Shelf(models.Model):
    """A row that a row of another table may extend."""

    label = models.CharField(max_length=50)
    places = models.IntegerField(default=10)

    def __str__(self) -> str:
        return self.label


class DisplayShelf(Shelf):
    """A row in two tables."""

    theme = models.CharField(max_length=50)


class Parcel(models.Model):
    """Has what only the database or the save itself knows, and a number that JSON may not know."""

    weight = models.FloatField(default=1.0)
    pieces = models.IntegerField(default=1)
    pairs = models.GeneratedField(
        expression=models.F("pieces") * 2, output_field=models.IntegerField(), db_persist=True
    )
    packed_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"parcel {self.pk}"


class _Shown(models.Manager["Note"]):
    def get_queryset(self) -> models.QuerySet[Note]:
        return super().get_queryset().filter(hidden=False)


class Note(models.Model):
    """Overrides save() and delete(), and has a base manager that filters."""

    text = models.CharField(max_length=200)
    slug = models.CharField(max_length=200, default="")
    hidden = models.BooleanField(default=False)

    objects = _Shown()

    class Meta:
        base_manager_name = "objects"

    def __str__(self) -> str:
        return self.text

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.slug = self.text.lower().replace(" ", "-")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        Effect.objects.create(receiver="Note.delete", event_id=uuid.uuid4(), note=self.text)
        return super().delete(*args, **kwargs)
