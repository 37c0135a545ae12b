"""Values as JSON, and the refusal of those that have no JSON form."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import json
import uuid
from typing import Any

import pytest
from django.core.files.storage import InMemoryStorage
from django.db.models import FileField
from django.db.models.fields.files import FieldFile
from django.utils.functional import lazystr

from folio_events.encoding import dump, first_unencodable
from folio_events.exceptions import EncodingError


class Color(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


class Nested(enum.Enum):
    DAY = datetime.date(2026, 3, 1)


def stored_file() -> FieldFile:
    return FieldFile(None, FileField(storage=InMemoryStorage()), "covers/1.png")  # type: ignore[arg-type]  # no instance


#: Name to a value and its JSON form.
FORMS: dict[str, tuple[Any, Any]] = {
    "None": (None, None),
    "bool": (True, True),
    "int": (12, 12),
    "float": (1.5, 1.5),
    "text": ("Zürich", "Zürich"),
    "Decimal": (decimal.Decimal("10.00"), "10.00"),
    "Decimal with exponent": (decimal.Decimal("1E+3"), "1000"),
    "small Decimal": (decimal.Decimal("1E-7"), "0.0000001"),
    "date": (datetime.date(2026, 1, 2), "2026-01-02"),
    "time": (datetime.time(3, 4, 5), "03:04:05"),
    "naive datetime": (
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001 - as with USE_TZ off
        "2026-01-02T03:04:05.000006",
    ),
    "datetime": (
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "2026-01-02T00:00:00+00:00",
    ),
    "timedelta": (datetime.timedelta(days=1, seconds=5), "P1DT00H00M05S"),
    "UUID": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "bytes": (b"\x00\xff", "AP8="),
    "bytearray": (bytearray(b"\x00\xff"), "AP8="),
    "memoryview": (memoryview(b"\x00\xff"), "AP8="),
    "Enum": (Color.RED, "red"),
    "IntEnum": (Size.LARGE, 3),
    "Enum of dates": (Nested.DAY, "2026-03-01"),
    "IPv4": (ipaddress.IPv4Address("10.0.0.1"), "10.0.0.1"),
    "IPv6": (ipaddress.IPv6Address("::1"), "::1"),
    "lazy text": (lazystr("lazy"), "lazy"),
    "file": (stored_file(), "covers/1.png"),
    "tuple": ((1, 2), [1, 2]),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_type_has_its_json_form(name: str) -> None:
    """The documented form of each type, also inside other values."""
    value, expected = FORMS[name]

    assert json.loads(dump(value)) == expected
    assert json.loads(dump({"a": [value]})) == {"a": [expected]}


def test_text_is_utf_8_and_compact() -> None:
    """No escapes and no blanks: the bytes are stored and sent as they are."""
    assert dump({"name": "Zürich", "n": [1, 2]}) == '{"name":"Zürich","n":[1,2]}'.encode()


class Opaque:
    def __repr__(self) -> str:
        return "secret"


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Opaque(), "Opaque has no JSON form"),
        ({1, 2}, "set has no JSON form"),
        (float("nan"), "NaN"),
        (float("-inf"), "infinity"),
        ("secret \ud800", "lone surrogate"),
        ({("secret", 1): 1}, "keys must be"),
        (endless(), "contains itself"),
        (deep(), "nested too deeply"),
        (1j, "complex has no JSON form"),
    ],
    ids=["object", "set", "nan", "infinity", "surrogate", "key", "endless", "deep", "complex"],
)
def test_what_has_no_json_form_is_refused_without_showing_it(value: Any, reason: str) -> None:
    """The error says why and keeps its cause, but repeats no value."""
    with pytest.raises(EncodingError, match=reason) as caught:
        dump({"field": value})

    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_range_of_postgresql_is_refused() -> None:
    """A range has no form that readers would know; the error says what it is."""
    ranges = pytest.importorskip("psycopg.types.range")
    with pytest.raises(EncodingError, match="Range has no JSON form"):
        dump({"field": ranges.Range(1, 5)})


def test_the_first_member_that_cannot_be_encoded_is_found() -> None:
    """Its name and the reason come back, or None where all can be encoded."""
    assert first_unencodable({"a": 1, "b": {1}, "c": {2}}) == ("b", "set has no JSON form")
    assert first_unencodable({"a": 1}) is None
    assert first_unencodable({}) is None
