"""Schemas: what differs from one, what a declaration derives, what a receiver may name."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from django.db import models
from django.test.utils import isolate_apps
from django.utils import timezone
from rest_framework import serializers

from folio_events import Event, ModelEvents, receiver, schemas
from folio_events.checks.schema import check_schemas_of_receivers
from folio_events.exceptions import ConfigurationError
from folio_events.receivers import Receiver, registry
from folio_events.schemas import Difference, derive, differences, faults
from tests.testapp.models import Book, Condition, Specimen

DRAFT_04 = "http://json-schema.org/draft-04/schema#"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkaWt1In0.c2lnbmF0dXJl"
ITEM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "status": {"enum": ["open", "closed"]},
        "due": {"type": ["string", "null"], "format": "date"},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 3},
        "code": {"type": "string", "pattern": "^[A-Z]+$"},
        "owner": {"anyOf": [{"type": "null"}, {"type": "object", "required": ["name"]}]},
    },
    "required": ["id"],
    "additionalProperties": False,
}
ID = {"id": "00000000-0000-0000-0000-000000000001"}


def handle(event: Event) -> None: ...


def told(content: object, schema: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    return [(one.path, one.reason) for one in differences(content, schema, **options)]


def event(payload: dict[str, Any], **values: Any) -> Event:
    given = {"id": uuid.uuid4(), "topic": "others.item", "type": "UPDATE", "key": None}
    return Event(
        **{**given, "tenant": None, "occurred_at": timezone.now(), "payload": payload, **values}
    )


def receiver_with(schema: Any) -> Receiver:
    receiver("others.item", name="tests.item", schema=schema)(handle)
    found = registry.get("tests.item")
    assert found is not None
    return found


# Differences


@pytest.mark.parametrize(
    ("content", "path", "reason"),
    [
        ({}, "/id", "missing"),
        ({**ID, "extra": 1}, "/extra", "not expected"),
        ({**ID, "a/b~c": 1}, "/a~1b~0c", "not expected"),
        ({"id": 5}, "/id", "wrong type: expected string, found integer"),
        ({**ID, "due": True}, "/due", "wrong type: expected string or null, found boolean"),
        ({**ID, "tags": ["a", {}]}, "/tags/1", "wrong type: expected string, found object"),
        ({"id": "7"}, "/id", "wrong form: no uuid"),
        ({**ID, "due": "20260102"}, "/due", "wrong form: no date"),
        ({**ID, "code": "a"}, "/code", 'wrong form: does not keep pattern "^[A-Z]+$"'),
        ({**ID, "tags": list("abcd")}, "/tags", "wrong form: does not keep maxItems 3"),
        ({**ID, "tags": ["a", "a"]}, "/tags", "wrong form: does not keep uniqueItems true"),
        ({**ID, "status": "lost"}, "/status", 'wrong value: expected ["open", "closed"]'),
        ({**ID, "owner": {}}, "/owner/name", "missing"),
        ([], "", "wrong type: expected object, found array"),
    ],
)
def test_a_difference_says_where_and_what(content: object, path: str, reason: str) -> None:
    """By a JSON pointer and one line."""
    assert told(content, ITEM) == [(path, reason)]


def test_what_fits_has_no_difference() -> None:
    """Nor has what the schema says nothing about."""
    assert (
        told({**ID, "due": None, "tags": ["a", "b"], "status": "open", "owner": None}, ITEM) == []
    )
    assert told({"anything": [1, {"a": None}]}, {}) == []


def test_no_value_is_told() -> None:
    """Whatever is wrong with it; what the schema says may be told."""
    secret = "hunter2"
    content = {
        "id": secret,
        "status": secret,
        "due": secret,
        "code": secret,
        "tags": secret,
        "owner": secret,
    }
    found = told(content, ITEM)
    assert [path for path, _reason in found] == [f"/{name}" for name in ITEM["properties"]]
    assert secret not in str(found)


def test_what_is_private_is_told_of_no_further_than_its_name() -> None:
    """Neither types nor names within it; that it is there or missing is seen anyway."""
    inner = {"type": "object", "properties": {"pin": {"type": "string"}}, "required": ["pin"]}
    schema = {
        "properties": {"new": {"properties": {"card": inner}, "required": ["card"]}},
        "additionalProperties": False,
    }
    private = "does not fit; what it holds is private"
    for card in (1, {}, {"pin": 1}):
        assert told({"new": {"card": card}}, schema, hidden={"card"}) == [("/new/card", private)]
    assert told({"new": {}, "card": 1}, schema, hidden={"card"}) == [
        ("/new/card", "missing"),
        ("/card", "not expected"),
    ]


def test_names_of_the_sender_are_cut_and_tokens_in_them_masked() -> None:
    """A name is content too."""
    (path, _), (masked, _) = told({"n" * 5000: 1, TOKEN: 1}, {"additionalProperties": False})
    assert path == f"/{'n' * 100}…"
    assert masked == "/***"


def test_a_path_is_one_line_of_what_can_be_seen() -> None:
    """Whatever a sender puts into a name: line breaks, terminal commands, halves of characters."""
    name = "a\n\x1b[31m\u202e\ud800ü"
    ((path, _),) = told({name: 1}, {"additionalProperties": False})
    assert path == r"/a\n\x1b[31m\u202e\ud800ü"


def test_no_more_differences_are_told_than_asked_for() -> None:
    """The rest is not even looked for."""
    content = {"new": {f"x{number}": number for number in range(40_000)}}
    schema = {"properties": {"new": {"additionalProperties": False}}}
    assert len(told(content, schema)) == schemas.MAX_DIFFERENCES
    assert len(told(content, schema, limit=7)) == 7


def nested(depth: int) -> object:
    content: object = 1
    for _ in range(depth):
        content = [content]
    return content


@pytest.mark.parametrize(
    ("content", "schema", "reason"),
    [
        (nested(90_000), {"items": {"$ref": "#"}}, "nested deeper than 100"),
        ([1] * 60_000, {"items": {"type": "string"}}, "more than 50,000 values"),
        ({"a": 1}, {"$ref": "#"}, "without end"),
        ({"a": 1e400}, {"properties": {"a": {"multipleOf": 0.1}}}, "number too large"),
    ],
    ids=["deep", "large", "endless", "infinite"],
)
def test_what_cannot_be_compared_in_time_is_refused(
    content: object, schema: dict[str, Any], reason: str
) -> None:
    """It is one error, whatever would have happened."""
    with pytest.raises(ValueError, match=reason):
        differences(content, schema)


@pytest.mark.parametrize(
    ("content", "schema"),
    [
        ([{"a": number} for number in range(24_000)], {"uniqueItems": True}),
        ({"text": "x" * 5_000_000}, {"properties": {"text": {"type": "integer"}}}),
        ([{"a": 1}] * 24_000, {"items": {"properties": {"a": {"type": "integer"}}}}),
    ],
    ids=["unique objects", "long text", "many objects"],
)
def test_the_largest_content_is_compared_within_seconds(
    content: object, schema: dict[str, Any]
) -> None:
    """Also where the library would compare each object with each."""
    began = perf_counter()
    differences(content, schema)
    assert perf_counter() - began < 5


# Schemas


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ([], "it is a JSON array"),
        ({"type": "objct"}, "/type: 'objct' is not valid"),
        ({"properties": {"a": {"pattern": "("}}}, "/properties/a/pattern: '(' is not a 'regex'"),
        ({"items": {"$ref": "https://example.org/item.json"}}, "https://example.org/item.json"),
        ({"items": {"$ref": "item.json"}}, "it refers to 'item.json', which is not in it"),
        ({"$ref": "#/$defs/none"}, "'#/$defs/none', which is not in it"),
    ],
)
def test_a_schema_that_cannot_be_used_says_why(schema: Any, fault: str) -> None:
    """Nothing is fetched: what it refers to has to stand in it."""
    (found,) = faults(schema)
    assert fault in found


def test_references_within_a_schema_are_followed() -> None:
    """By pointer, anchor and id; and what is only called so is no reference."""
    schema = {
        "$id": "https://example.org/item.json",
        "properties": {
            "a": {"$ref": "#/$defs/text"},
            "b": {"$ref": "#named"},
            "c": {"$ref": "other.json"},
            "$ref": {"type": "string"},
            "$id": {"type": "string"},
        },
        "$defs": {
            "text": {"type": "string", "$anchor": "named"},
            "other": {"$id": "other.json", "type": "string"},
        },
    }
    assert faults(schema) == []
    assert [path for path, _ in told({"a": 1, "b": 1, "c": 1}, schema)] == ["/a", "/b", "/c"]


def test_the_drafts_that_folios_schemas_are_written_in_are_known() -> None:
    """``$schema`` says which; in draft 4, ``exclusiveMinimum`` is a boolean."""
    schema = {
        "$schema": DRAFT_04,
        "properties": {
            "id": {"type": "string"},
            "count": {"minimum": 0, "exclusiveMinimum": True, "$ref": "#/definitions/whole"},
            "level": {"minimum": 0, "exclusiveMinimum": True},
        },
        "definitions": {"whole": {"type": "integer"}},
    }
    assert faults(schema) == []
    assert [path for path, _ in told({"count": "1", "level": 0}, schema)] == ["/count", "/level"]


# What a declaration derives


def declaration_of(model: type[models.Model], **attributes: object) -> ModelEvents:
    made = type("Declared", (ModelEvents,), {"topic": "library.declared", **attributes})
    declaration: ModelEvents = made(model)
    return declaration


def row_of(model: type[models.Model], **attributes: object) -> dict[str, Any]:
    schema = derive(declaration_of(model, **attributes), "CREATE")
    assert schema is not None
    assert faults(schema) == []
    row: dict[str, Any] = schema["$defs"]["row"]
    return row


def test_shown_fields_are_required_and_others_not_expected() -> None:
    """With their lengths and whether they may be null."""
    assert row_of(Book, fields=["title", "price"]) == {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 200},
            "price": {"type": ["string", "null"], "pattern": "^-?[0-9]+([.][0-9]+)?$"},
        },
        "required": ["title", "price"],
        "additionalProperties": False,
    }
    assert "extra" not in row_of(Book, exclude=["extra"])["properties"]


def test_a_private_field_is_its_mask() -> None:
    """Whatever its type."""
    assert row_of(Book, private=["price"])["properties"]["price"] == {"const": "***"}


def test_a_foreign_key_has_the_form_of_the_key() -> None:
    """And may be null where it may."""
    assert row_of(Specimen)["properties"]["book"] == {"type": ["integer", "null"]}


@pytest.mark.parametrize(
    ("kind", "required", "null"),
    [
        ("CREATE", ["new"], ["old"]),
        ("REINDEX", ["new"], ["old"]),
        ("UPDATE", ["old", "new"], []),
        ("DELETE", ["old"], ["new"]),
    ],
)
def test_the_type_says_which_of_old_and_new_is_there(
    kind: str, required: list[str], null: list[str]
) -> None:
    """The other may be null, as circulation has it, or left out, as inventory has it."""
    schema = derive(declaration_of(Book), kind)
    assert schema is not None
    assert schema["required"] == required
    assert [name for name, one in schema["properties"].items() if one == {"type": "null"}] == null


def test_a_type_that_is_no_change_has_no_schema() -> None:
    """What ``publish()`` sends to the topic is not the model's."""
    assert derive(declaration_of(Book), "CHECKED_OUT") is None


@isolate_apps("tests.testapp")
def test_choices_are_told_where_the_table_enforces_them() -> None:
    """Django itself checks them in forms alone."""

    class Enforced(models.Model):
        state = models.CharField(max_length=10, choices=Condition, null=True)  # noqa: DJ001
        mood = models.CharField(max_length=10, choices=Condition)

        class Meta:
            app_label = "testapp"
            constraints = [
                models.CheckConstraint(condition=models.Q(state__in=Condition), name="state"),
                models.CheckConstraint(condition=~models.Q(mood__in=["bad"]), name="mood"),
            ]

        def __str__(self) -> str:
            return str(self.state)

    row = row_of(Enforced)["properties"]
    assert row["state"]["enum"] == ["good", "worn", None]
    assert "enum" not in row["mood"]
    assert (
        told({"new": {"id": 1, "state": "good", "mood": "x"}}, {"properties": {"new": row}}) == []
    )


@isolate_apps("tests.testapp")
def test_a_field_that_python_converts_may_be_anything() -> None:
    """Nobody can say what comes of it."""

    class Points(models.CharField):  # type: ignore[type-arg]  # Django's own has none
        def from_db_value(self, value: Any, *_context: object) -> object:
            return value.split()

    class Drawing(models.Model):
        points = Points(max_length=100)

        class Meta:
            app_label = "testapp"

        def __str__(self) -> str:
            return str(self.points)

    assert row_of(Drawing)["properties"]["points"] == {}


def test_a_moment_without_a_zone_has_the_form_without(settings: Any) -> None:
    """As it is written with ``USE_TZ = False``."""
    settings.USE_TZ = False
    form = row_of(Book)["properties"]["catalogued_at"]
    assert told("2026-01-02T03:04:05", form) == []
    assert told("2026-01-02T03:04:05.000007", form) == []
    assert told("2026-01-02", form) != []


def test_a_function_derives_nothing() -> None:
    """What it returns is known when it runs."""
    assert derive(declaration_of(Book, serializer=lambda book: {}), "CREATE") is None


class CardSerializer(serializers.ModelSerializer[Specimen]):
    """With one field of each way to be shown."""

    shelf = serializers.SerializerMethodField()
    titles = serializers.ListField(child=serializers.CharField(), source="notes")
    pin = serializers.CharField(write_only=True)
    of = serializers.CharField(source="book.title", read_only=True)

    class Meta:
        model = Specimen
        fields = ("title", "level", "price", "kept", "seen_at", "shelf", "titles", "pin", "of")

    def get_shelf(self, _row: Specimen) -> str:
        return "a"


def test_a_serializer_derives_what_its_fields_say() -> None:
    """Any of them may be null, since REST framework leaves None as it is."""
    row = row_of(Specimen, serializer_class=CardSerializer)
    text = {"type": ["string", "null"]}
    assert row["properties"] == {
        "title": text,
        "level": {"type": ["integer", "null"]},
        "price": text,
        "kept": {"type": ["boolean", "null"]},
        "seen_at": text,
        "shelf": {},
        "titles": {"type": ["array", "null"], "items": text},
        "of": text,
    }
    assert set(row["properties"]) - set(row["required"]) == {"of"}


def test_a_serializer_with_a_representation_of_its_own_derives_nothing() -> None:
    """Of a field that has one, nothing is said."""

    class Shout(serializers.CharField):
        def to_representation(self, value: Any) -> str:
            return f"{value}!"

    class Own(serializers.Serializer[Book]):
        def to_representation(self, instance: Book) -> dict[str, Any]:
            return {}

    class OfField(serializers.Serializer[Book]):
        title = Shout()

    assert derive(declaration_of(Book, serializer_class=Own), "CREATE") is None
    assert row_of(Book, serializer_class=OfField)["properties"] == {"title": {}}


# Receivers


def test_a_receivers_own_schema_comes_first(tmp_path: Path) -> None:
    """As a dict, or in a file; it is of the payload."""
    file = tmp_path / "item.json"
    file.write_text(json.dumps(ITEM))
    for schema, origin in (
        (ITEM, "receiver tests.item"),
        (file, "receiver tests.item, item.json"),
        (str(file), "receiver tests.item, item.json"),
    ):
        expecting = receiver_with(schema)
        found = schemas.compare(event({"id": 1}, topic="library.book"), expecting)
        assert found.origin == origin
        assert found.differences == (
            Difference("/id", "wrong type: expected string, found integer"),
        )
        registry.remove("tests.item")


def test_a_path_goes_from_the_directory_of_the_receivers_module() -> None:
    """So that it holds wherever the process was started."""
    found = receiver_with("schemas/item.json").schema_file
    assert found == Path(__file__).parent / "schemas" / "item.json"


def test_without_a_schema_of_its_own_the_declared_one_counts() -> None:
    """Also of a receiver that is no more."""
    found = schemas.compare(event({}, topic="library.book"), None)
    assert found.origin == "tests.testapp.events.BookEvents"
    assert {one.path for one in found.differences} == {"/old", "/new"}


def test_where_nobody_says_it_the_reason_says_how_to() -> None:
    """Whether the topic is of others, of a function, or the type no change."""
    receiver("others.item", name="tests.plain")(handle)
    plain = registry.get("tests.plain")
    for about, why in (
        (event({}), "This project declares no events of topic 'others.item'"),
        (event({}, topic="inventory.item"), "Python makes the rows of"),
        (event({}, topic="library.book", type="SOLD"), "Type 'SOLD' is no change"),
    ):
        found = schemas.compare(about, plain)
        assert found.obstacle.startswith(why)
        assert "'tests.plain' names no schema" in found.obstacle
        assert "schema=" in found.obstacle


def test_of_several_models_of_a_topic_the_one_that_differs_least_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An event does not say of which model it is."""
    both = [declaration_of(Book, fields=["title"]), declaration_of(Specimen, fields=["level"])]
    monkeypatch.setattr(schemas, "events", both)
    row = {"level": "high"}
    found = schemas.compare(event({"new": row}, topic="library.declared", type="CREATE"), None)
    assert [one.path for one in found.differences] == ["/new/level"]


def test_a_tombstone_is_not_compared() -> None:
    """It has no payload."""
    found = schemas.compare(event({}, is_tombstone=True), receiver_with(ITEM))
    assert (found.fits, found.differences) == (False, ())


@pytest.mark.parametrize("schema", [5, ["a"], True])
def test_what_can_be_no_schema_is_refused_at_once(schema: Any) -> None:
    """The error names the receiver's function."""
    with pytest.raises(ConfigurationError, match=r"test_schemas\.handle: schema must be"):
        receiver_with(schema)


def test_a_broadcast_receiver_has_no_deliveries_to_compare() -> None:
    """A schema would say nothing."""
    with pytest.raises(ConfigurationError, match="schema mean"):
        receiver("others.item", broadcast=True, schema={})(handle)


# Checks


def write_nothing(_file: Path) -> None: ...


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        (write_nothing, "cannot be read: No such file"),
        (lambda file: file.write_text("{"), "cannot be read: it is no JSON"),
        (lambda file: file.write_text("[]"), "cannot be used: it is a JSON array, not an object"),
        (lambda file: file.write_text('{"type": "objct"}'), "cannot be used: /type"),
        (lambda file: file.write_text('{"$ref": "x.json"}'), "it refers to 'x.json'"),
    ],
)
def test_a_bad_file_is_an_error_that_names_receiver_and_file(
    tmp_path: Path, write: Callable[[Path], object], fault: str
) -> None:
    """And a page that would show differences says the same."""
    file = tmp_path / "item.json"
    write(file)
    expecting = receiver_with(file)
    (found,) = check_schemas_of_receivers(None)
    assert found.id == "folio_events.E071"
    assert "'tests.item'" in found.msg
    assert str(file) in found.msg
    assert fault in found.msg
    assert fault in schemas.compare(event({}), expecting).obstacle


def test_a_good_schema_is_no_error() -> None:
    """Nor is a receiver without one."""
    receiver_with(ITEM)
    assert check_schemas_of_receivers(None) == []


@pytest.fixture
def without_jsonschema(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra ``schemas`` is not installed."""
    monkeypatch.setitem(sys.modules, "jsonschema", None)


@pytest.mark.usefixtures("without_jsonschema")
def test_without_the_extra_the_reason_is_how_to_install_it() -> None:
    """Of the declared schema as of a receiver's own."""
    for about, expecting in (
        (event({}, topic="library.book"), None),
        (event({}), receiver_with(ITEM)),
    ):
        assert 'pip install "folio-events[schemas]"' in schemas.compare(about, expecting).obstacle


@pytest.mark.usefixtures("without_jsonschema", "only_test_receivers")
def test_without_the_extra_a_receivers_schema_is_an_error() -> None:
    """By name; without one nobody needs it."""
    assert check_schemas_of_receivers(None) == []
    receiver_with(ITEM)
    (found,) = check_schemas_of_receivers(None)
    assert (found.id, found.hint) == (
        "folio_events.E070",
        "pip install 'folio-events[schemas]'",
    )
    assert "'tests.item'" in found.msg


def test_consumer_and_relay_load_no_validator() -> None:
    """What is compared is compared when a person looks."""
    show = (
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings';"
        "import django, sys; django.setup();"
        "import folio_events.relay, folio_events.consumer, folio_events.redelivery;"
        "print({'jsonschema', 'referencing'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", show], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "set()\n"
