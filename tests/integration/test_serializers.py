"""What events show of a row: fields, serializers, private values, one form for each type."""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection, transaction
from django.db.models import QuerySet
from rest_framework import serializers

from folio_events import ModelEvents
from folio_events.declarations import MASK, EventsRegistry
from folio_events.exceptions import ConfigurationError, EncodingError
from tests.conftest import is_postgres
from tests.testapp.models import Book, Condition, Parcel, Specimen

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db

BERLIN = ZoneInfo("Europe/Berlin")


class Level(enum.IntEnum):
    HIGH = 3


#: Field, what is assigned, what events show.
FORMS: list[tuple[str, Any, Any]] = [
    ("title", "Zürich \u2028 \U0001f4d6", "Zürich \u2028 \U0001f4d6"),
    ("title", 'a "quoted"\nline', 'a "quoted"\nline'),
    ("condition", Condition.WORN, "worn"),
    ("level", Level.HIGH, 3),
    ("level", "7", 7),
    ("level", True, 1),
    ("kept", False, False),
    ("weight", 1.5, 1.5),
    ("weight", 2, 2.0),
    ("price", Decimal("9.5"), "9.50"),
    ("price", "10", "10.00"),
    ("price", None, None),
    ("code", uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ("code", "00000000000000000000000000000001", "00000000-0000-0000-0000-000000000001"),
    ("found_on", datetime.date(2026, 1, 2), "2026-01-02"),
    ("found_on", "2026-01-02", "2026-01-02"),
    ("found_at", datetime.time(3, 4), "03:04:00"),
    ("found_at", datetime.time(3, 4, 5, 6), "03:04:05.000006"),
    ("seen_at", datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC), "2026-01-02T03:00:00+00:00"),
    ("seen_at", datetime.datetime(2026, 7, 2, 3, tzinfo=BERLIN), "2026-07-02T01:00:00+00:00"),
    ("loan", datetime.timedelta(days=1, seconds=5), "P1DT00H00M05S"),
    ("loan", datetime.timedelta(days=-1, microseconds=1), "-P0DT23H59M59.999999S"),
    ("notes", {"a": [1, None, "b"]}, {"a": [1, None, "b"]}),
    ("notes", {1: "one"}, {"1": "one"}),
    ("print", b"\x00\xff", "AP8="),
    ("scan", "scans/1.png", "scans/1.png"),
    ("scan", "", ""),
    ("address", "10.0.0.1", "10.0.0.1"),
    ("address", "2001:DB8::0001", "2001:db8::1"),
]


@pytest.mark.parametrize("door", ["save", "bulk_create", "update", "bulk_update", "delete"])
@pytest.mark.parametrize(
    ("field", "assigned", "shown"),
    [pytest.param(*form, id=f"{form[0]} {form[1]!r}".replace("::", ":")) for form in FORMS],
)
def test_each_type_has_one_form_whatever_the_door(
    recorded, declare, field: str, assigned: Any, shown: Any, door: str
):
    """An event shows a value in its documented form, whichever call wrote it."""
    declare(Specimen)
    if door == "save":
        Specimen.objects.create(**{field: assigned})
    elif door == "bulk_create":
        Specimen.objects.bulk_create([Specimen(**{field: assigned})])
    else:
        row = Specimen.objects.create()
        if door == "update":
            Specimen.objects.update(**{field: assigned})
        elif door == "bulk_update":
            setattr(row, field, assigned)
            Specimen.objects.bulk_update([row], [field])
        else:
            Specimen.objects.update(**{field: assigned})
            Specimen.objects.all().delete()
    event = recorded()[-1]
    value = (event.new or event.old)[field]
    assert (value, type(value)) == (shown, type(shown))


def test_a_generated_field_is_shown_as_the_database_computed_it(recorded, declare):
    """Saved, inserted in bulk or updated, a generated field has the database's value."""
    declare(Specimen, fields=["level", "double"])
    Specimen.objects.create(level=1)
    Specimen.objects.bulk_create([Specimen(level=2)])
    Specimen.objects.filter(level=2).update(level=3)
    assert [event.new["double"] for event in recorded()] == [2, 4, 6]


def test_a_foreign_key_is_shown_as_the_key_of_its_row(recorded, declare):
    """Under the field's name stands the primary key that it holds."""
    declare(Specimen, fields=["book"])
    book = Book.objects.create(title="Emma")
    Specimen.objects.create(book=book)
    assert recorded()[-1].new == {"book": book.pk}


@pytest.mark.postgres
def test_arrays_are_lists_of_the_forms_of_their_elements(recorded, declare):
    """An array is a list, and its elements have the forms of their own type."""
    from tests.triggerapp.models import SignalItem

    moment = datetime.datetime(2026, 7, 2, 3, tzinfo=BERLIN)
    values: dict[str, Any] = {"tags": ("a", "b"), "prices": ["1.5", None], "seen_at": [moment]}
    declare(SignalItem, fields=list(values))
    SignalItem(**values).save()
    rows: QuerySet[SignalItem] = QuerySet(SignalItem)
    rows.bulk_create([SignalItem(**values)])
    rows.filter(pk=rows.order_by("pk")[0].pk).update(title="Emma")
    expected = {
        "tags": ["a", "b"],
        "prices": ["1.50", None],
        "seen_at": ["2026-07-02T01:00:00+00:00"],
    }
    assert [event.new for event in recorded()] == [expected] * 3


# Refusal


def inf_by_update(parcel: Parcel) -> None:
    Parcel.objects.filter(pk=parcel.pk).update(weight=float("inf"))


def inf_by_bulk_create(parcel: Parcel) -> None:
    Parcel.objects.bulk_create([Parcel(weight=1.0), Parcel(weight=float("inf"))])


def inf_by_bulk_update(parcel: Parcel) -> None:
    parcel.weight = float("inf")
    Parcel.objects.bulk_update([parcel], ["weight"])


def inf_by_save(parcel: Parcel) -> None:
    parcel.weight = float("inf")
    parcel.save()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("within", [nullcontext, transaction.atomic], ids=["alone", "within"])
@pytest.mark.parametrize(
    "write", [inf_by_save, inf_by_update, inf_by_bulk_create, inf_by_bulk_update]
)
def test_a_value_without_form_refuses_every_write(
    recorded, declare, write: Callable[[Parcel], None], within: Callable[[], Any]
):
    """Neither row nor event stays, though the error be caught; it names model and field."""
    declare(Parcel)
    parcel = Parcel.objects.create(weight=2.5)
    before = list(Parcel.objects.values())
    refused = pytest.raises(EncodingError, match=r"testapp\.Parcel is refused: field 'weight'")
    with within(), refused:
        write(Parcel(pk=parcel.pk))
    assert list(Parcel.objects.values()) == before
    assert len(recorded()) == 1


@pytest.mark.django_db(transaction=True)
def test_a_row_that_cannot_be_shown_cannot_be_deleted_either(recorded, declare):
    """A row that was written unseen and has no form is not deleted without its event."""
    declare(Parcel)
    parcel = Parcel.objects.create()
    with connection.cursor() as cursor:
        infinity = "'infinity'" if is_postgres() else "9e999"
        cursor.execute(f"UPDATE testapp_parcel SET weight = {infinity}")
    for delete in (parcel.delete, Parcel.objects.all().delete):
        with pytest.raises(EncodingError, match=r"testapp\.Parcel is refused: field 'weight'"):
            delete()
    assert Parcel.objects.count() == 1
    assert len(recorded()) == 1


# Serializers


def as_card(book: Book) -> dict[str, Any]:
    """A function as a user writes it."""
    return {"title": book.title.upper(), "price": book.price}


class BookSerializer(serializers.ModelSerializer[Book]):
    class Meta:
        model = Book
        fields = ["id", "title"]


@pytest.mark.parametrize(
    "function", [as_card, staticmethod(as_card)], ids=["function", "staticmethod"]
)
def test_a_function_makes_old_and_new(recorded, declare, function):
    """With serializer, old and new are what a plain function makes of the rows, by every door."""
    declare(Book, serializer=function)
    book = Book.objects.create(title="Emma", price=Decimal("1.5"))
    Book.objects.update(title="Persuasion")
    Book.objects.filter(pk=book.pk).delete()
    emma, persuasion = ({"title": name, "price": "1.50"} for name in ("EMMA", "PERSUASION"))
    assert [(event.old, event.new) for event in recorded()] == [
        (None, emma),
        (emma, persuasion),
        (persuasion, None),
    ]


def test_a_serializer_class_serves_bulk_writes(recorded, declare):
    """A REST framework serializer shows rows of bulk writes as it shows saved ones."""
    declare(Book, serializer_class=BookSerializer)
    first, second = Book.objects.bulk_create([Book(title="Emma"), Book(title="Sanditon")])
    assert [event.new for event in recorded()] == [
        {"id": first.pk, "title": "Emma"},
        {"id": second.pk, "title": "Sanditon"},
    ]


def test_a_function_that_returns_no_dict_refuses_the_write(recorded, declare):
    """The error names model and declaration, and what came instead."""
    declare(Book, serializer=lambda book: [book.title])
    with (
        pytest.raises(EncodingError, match=r"testapp\.Book is refused: the serializer .* not list"),
        transaction.atomic(),
    ):
        Book.objects.create(title="Emma")
    assert recorded() == []


def test_a_functions_value_without_form_is_named(declare):
    """What a function puts under a name that JSON cannot hold is told by that name."""
    declare(Book, serializer=lambda book: {"title": book.title, "shelf": object()})
    with pytest.raises(EncodingError, match=r"field 'shelf'"), transaction.atomic():
        Book.objects.create(title="Emma")


@pytest.mark.parametrize(
    "attributes",
    [
        {"serializer": as_card, "serializer_class": BookSerializer},
        {"serializer": as_card, "fields": ["title"]},
        {"serializer": as_card, "exclude": ["title"]},
        {"serializer": as_card, "private": ["title"]},
        {"serializer_class": BookSerializer, "private": ["title"]},
    ],
    ids=lambda attributes: " and ".join(attributes),
)
def test_two_ways_at_once_are_refused(attributes: dict[str, Any]):
    """A declaration says in one way what events show."""
    declaration = type("BookEvents", (ModelEvents,), {"topic": "library.book", **attributes})
    with pytest.raises(ConfigurationError, match="not two"):
        EventsRegistry().register(Book)(declaration)


# Private fields


def test_private_values_are_masked(recorded, declare):
    """A private field is in the event, but what it holds is not, by any door; nor is null told."""
    declare(Book, fields=["id", "title", "price"], private=["title", "price"])
    book = Book.objects.create(title="hunter2", price=Decimal("1.5"))
    Book.objects.bulk_create([Book(title="hunter2")])
    Book.objects.filter(pk=book.pk).update(title="hunter3", price=None)
    Book.objects.filter(pk=book.pk).delete()
    masked = {"id": book.pk, "title": MASK, "price": MASK}
    events = [event for event in recorded() if event.key == str(book.pk)]
    assert [(event.old, event.new) for event in events] == [
        (None, masked),
        (masked, masked),
        (masked, None),
    ]
    assert "hunter" not in str(recorded())


def test_a_change_of_a_private_value_alone_is_an_event(recorded, declare):
    """skip_unchanged goes by what the database holds, not by what the event shows of it."""
    declare(Book, fields=["id", "title"], private=["title"], skip_unchanged=True)
    book = Book.objects.create(title="hunter2")
    book.save()
    assert len(recorded()) == 1
    book.title = "hunter3"
    book.save()
    assert recorded()[-1].type == "UPDATE"
    assert recorded()[-1].old == recorded()[-1].new


def test_a_private_value_needs_no_form(recorded, declare):
    """What is not shown cannot refuse the write."""
    declare(Parcel, private=["weight"])
    Parcel.objects.create(weight=float("inf"))
    assert recorded()[-1].new["weight"] == MASK


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"private": ["tite"]}, "no such field"),
        ({"fields": ["id"], "private": ["title"]}, "events do not show"),
        ({"exclude": ["title"], "private": ["title"]}, "events do not show"),
        ({"key": "title", "private": ["title"]}, "which is the key"),
    ],
)
def test_a_private_field_that_cannot_be_is_refused(attributes: dict[str, Any], reason: str):
    """A private field is one that events show, and not their key, which everybody sees."""
    declaration = type("BookEvents", (ModelEvents,), {"topic": "library.book", **attributes})
    with pytest.raises(ConfigurationError, match=reason):
        EventsRegistry().register(Book)(declaration)
