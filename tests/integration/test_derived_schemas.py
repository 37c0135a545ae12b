"""Derived schemas against what is really recorded: models of all kinds of fields, in both forms."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps
from django.db.models import Model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework import serializers

from folio_events import Event, events
from folio_events.models import OutboxMessage
from folio_events.schemas import derive, differences
from folio_events.testing import captured_events
from tests.testapp.models import Book, Chapter, Copy, DisplayShelf, Label, Parcel, Shelf, Specimen

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)
DAY = datetime.timedelta(days=1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
#: Twice as much fits into the column of a generated field.
WHOLE = st.integers(-(2**30), 2**30 - 1)
#: Values of a field by its kind.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "CharField": TEXT,
    "TextField": TEXT,
    "FileField": st.sampled_from(["", "scans/1.png"]),
    "IntegerField": WHOLE,
    "BooleanField": st.booleans(),
    "FloatField": st.floats(allow_nan=False, allow_infinity=False),
    "DecimalField": st.decimals(-99_999, 99_999, places=2),
    "UUIDField": st.uuids(),
    "DateField": st.dates(),
    "TimeField": st.times(),
    "DateTimeField": st.datetimes(timezones=st.just(datetime.UTC)),
    "DurationField": st.timedeltas(-10_000 * DAY, 10_000 * DAY),
    "JSONField": JSON,
    "BinaryField": st.binary(max_size=20),
    "GenericIPAddressField": st.ip_addresses().map(str),
}


def values_of(field: Any) -> st.SearchStrategy[Any]:
    kind = field.get_internal_type()
    if kind == "ArrayField":
        element = VALUES[field.base_field.get_internal_type()]
        found: st.SearchStrategy[Any] = st.lists(st.none() | element, max_size=3)
    else:
        found = VALUES[kind]
    # None of a JSON field is stored as NULL.
    return st.none() | found if field.null else found.filter(lambda value: value is not None)


def rows_of(model: type[Model]) -> st.SearchStrategy[dict[str, Any]]:
    """Values for the columns of a model that take any."""
    fields = [
        field
        for field in model._meta.local_concrete_fields
        if not (field.primary_key or field.is_relation or field.generated)
    ]
    return st.fixed_dictionaries({}, optional={field.name: values_of(field) for field in fields})


def schema_of(event: Event) -> dict[str, Any]:
    (found,) = [d for d in events if d.topic == event.topic]
    schema = derive(found, event.type)
    assert schema is not None
    return schema


def misfits(recorded: Iterator[Event] | Any) -> list[Any]:
    return [
        (event.type, one)
        for event in recorded
        for one in differences(event.payload, schema_of(event))
    ]


def written(model: type[Any], first: dict[str, Any], second: dict[str, Any]) -> list[Event]:
    """The events of a row that is created, updated, written in bulk and deleted."""
    OutboxMessage.objects.all().delete()
    with captured_events() as recorded:
        row = model._base_manager.create(**first)
        rows = model._base_manager.filter(pk=row.pk)
        if second:
            rows.update(**second)
        model._base_manager.bulk_create([model(**second)])
        rows.delete()
    assert {event.type for event in recorded} >= {"CREATE", "DELETE"}
    return list(recorded)


def holds(model: type[Any]) -> None:
    row = rows_of(model)

    @settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(first=row, second=row)
    def each(first: dict[str, Any], second: dict[str, Any]) -> None:
        assert misfits(written(model, first, second)) == []

    each()


def test_whatever_is_recorded_fits(declare: Callable[..., None]) -> None:
    """A field of each kind, with values of all sorts, by the calls that write."""
    declare(Specimen)
    holds(Specimen)


@pytest.mark.parametrize("dialect", ["inventory", "circulation"])
def test_the_dialect_does_not_matter(declare: Callable[..., None], dialect: str) -> None:
    """Receivers get one payload, whether a null is written or left out."""
    declare(Book, dialect=dialect)
    row = {"title": "Emma", "price": Decimal("1.5"), "extra": {"a": [1, None]}, "cover": b"\xff"}
    recorded = written(Book, row, {"title": "Sanditon", "price": None})
    assert [event.type for event in recorded] == ["CREATE", "UPDATE", "CREATE", "DELETE"]
    assert misfits(recorded) == []


@pytest.mark.postgres
@pytest.mark.parametrize("name", ["SignalItem", "TriggerItem", "SignalPart", "TriggerPart"])
def test_whatever_either_form_of_capture_records_fits(name: str) -> None:
    """A trigger writes the values in SQL, arrays among them."""
    holds(apps.get_model("triggerapp", name))


def test_rows_of_other_kinds_fit(declare: Callable[..., None]) -> None:
    """Foreign keys, keys of programs, two tables, defaults of the database, generated fields."""
    for model in (Chapter, Copy, Label, Parcel, Shelf, DisplayShelf):
        declare(model)
    book = Book.objects.create(title="Emma")
    with captured_events() as recorded:
        Chapter.objects.create(book=book, title="I").delete()
        Copy.objects.create(barcode="1")
        Copy.objects.update(loans=3)
        Label.objects.create(code="a")
        Parcel.objects.create(weight=1)
        DisplayShelf.objects.create(label="new", theme="sea").delete()
    assert len(recorded) >= 9
    assert misfits(recorded) == []


class CardSerializer(serializers.ModelSerializer[Specimen]):
    """Shows all that the model has, and what it has not."""

    shouted = serializers.SerializerMethodField()
    of = serializers.CharField(source="book.title", read_only=True)
    shelf = serializers.SerializerMethodField()

    class Meta:
        model = Specimen
        exclude = ("print",)

    def get_shouted(self, row: Specimen) -> str:
        return row.title.upper()

    def get_shelf(self, _row: Specimen) -> dict[str, object]:
        return {"place": 1}


def test_what_a_serializer_shows_fits(declare: Callable[..., None]) -> None:
    """Of REST framework, with every kind of field that a model brings about."""
    declare(Specimen, serializer_class=CardSerializer)
    holds(Specimen)


def test_private_values_fit(declare: Callable[..., None]) -> None:
    """As the mask that stands for them."""
    declare(Book, private=["price", "extra"])
    recorded = written(Book, {"title": "Emma"}, {"title": "Sanditon"})
    assert misfits(recorded) == []


def test_a_change_of_a_model_shows_in_older_events(declare: Callable[..., None]) -> None:
    """What was recorded before a field came, went or was made to show something else."""
    declare(Book, fields=["id", "title", "copies"])
    (event,) = [e for e in written(Book, {"title": "Emma"}, {}) if e.type == "DELETE"]
    declare(Book, fields=["id", "copies", "price"], private=["copies"])
    found = [(one.path, one.reason) for one in differences(event.payload, schema_of(event))]
    assert sorted(found) == [
        ("/old/copies", 'wrong value: expected ["***"]'),
        ("/old/price", "missing"),
        ("/old/title", "not expected"),
    ]


def test_each_member_that_is_changed_is_told(declare: Callable[..., None]) -> None:
    """Taken away, of another type, or another one beside it."""
    declare(Specimen)
    (event,) = [e for e in written(Specimen, {"title": "a"}, {}) if e.type == "DELETE"]
    schema = schema_of(event)
    for name in event.payload["old"]:
        payload = json.loads(json.dumps(event.payload))
        del payload["old"][name]
        assert [one.path for one in differences(payload, schema)] == [f"/old/{name}"]
        payload["old"] |= {name: {"of": "another type"}, f"{name}_too": 1}
        paths = {one.path for one in differences(payload, schema)}
        # JSON fields hold anything.
        assert paths == {f"/old/{name}_too"} | ({f"/old/{name}"} if name != "notes" else set())
