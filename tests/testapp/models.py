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


class Room(models.Model):
    """Rows of other tables stand in it, until it is deleted."""

    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


def lost_and_found() -> int:
    """The room of what has lost its own."""
    return Room.objects.get_or_create(name="lost and found")[0].pk


def _clear_one_by_one(collector: Any, field: Any, rows: Any, _using: str) -> None:
    collector.add_field_update(field, None, list(rows))


class Tag(models.Model):
    """What many copies may have in common."""

    word = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.word


class AbstractCopy(models.Model):
    """What bulk writes meet: unique columns, values of the database's own, all kinds of relations."""

    barcode = models.CharField(max_length=50, unique=True, null=True)  # noqa: DJ001 - NULLs repeat
    shelf_mark = models.CharField(max_length=50, default="")
    place = models.IntegerField(null=True)
    note = models.CharField(max_length=50, default="")
    loans = models.IntegerField(default=0)
    twice = models.GeneratedField(
        expression=models.F("loans") * 2, output_field=models.IntegerField(), db_persist=True
    )
    state = models.CharField(max_length=10, db_default="new")
    room = models.ForeignKey(Room, models.SET_NULL, null=True, related_name="%(class)s_in")
    home = models.ForeignKey(
        Room, models.SET_DEFAULT, null=True, default=None, related_name="%(class)s_at_home"
    )
    origin = models.ForeignKey(
        Room, models.SET(lost_and_found), null=True, related_name="%(class)s_from"
    )
    guest_of = models.ForeignKey(
        Room, _clear_one_by_one, null=True, related_name="%(class)s_as_guest"
    )
    tags = models.ManyToManyField(Tag)

    class Meta:
        abstract = True
        unique_together = (("shelf_mark", "place"),)

    def __str__(self) -> str:
        return self.note


class Copy(AbstractCopy):
    """Is declared by tests."""


class PlainCopy(AbstractCopy):
    """Never declared: what Django does when nobody looks."""


class AbstractLabel(models.Model):
    """Its key is made by the program, and a column before the key by the database."""

    state = models.CharField(max_length=10, db_default="new")
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    code = models.CharField(max_length=50, unique=True)
    text = models.CharField(max_length=50, default="")

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.text


class Label(AbstractLabel):
    """Is declared by tests."""


class PlainLabel(AbstractLabel):
    """Never declared."""


class Condition(models.TextChoices):
    """Of a specimen."""

    GOOD = "good"
    WORN = "worn"


class Specimen(models.Model):
    """Has a field of each kind that has a JSON form of its own."""

    title = models.CharField(max_length=50, default="")
    condition = models.CharField(max_length=10, choices=Condition, default=Condition.GOOD)
    level = models.IntegerField(default=0)
    kept = models.BooleanField(default=True)
    weight = models.FloatField(default=0)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    code = models.UUIDField(null=True)
    found_on = models.DateField(null=True)
    found_at = models.TimeField(null=True)
    seen_at = models.DateTimeField(null=True)
    loan = models.DurationField(null=True)
    notes = models.JSONField(null=True)
    print = models.BinaryField(null=True)
    scan = models.FileField(default="")
    address = models.GenericIPAddressField(null=True)
    book = models.ForeignKey(Book, models.CASCADE, null=True)
    double = models.GeneratedField(
        expression=models.F("level") * 2, output_field=models.IntegerField(), db_persist=True
    )

    def __str__(self) -> str:
        return self.title
