"""Values as JSON: one documented form for each type."""

from __future__ import annotations

import base64
import datetime
import decimal
import enum
import ipaddress
import json
import uuid
from collections.abc import Mapping
from typing import Any

from django.db.models.fields.files import FieldFile
from django.utils.duration import duration_iso_string
from django.utils.functional import Promise

from folio_events.exceptions import EncodingError


def to_json(value: Any) -> Any:
    """Turn a value that JSON does not know into one it does.

    Args:
        value: Decimal (text, so that no digit is lost), date, time, datetime (ISO 8601),
            timedelta (ISO 8601 duration), UUID (text), bytes (base64), Enum (its value),
            file (its name), IP address or lazy text.

    Raises:
        TypeError: Any other type.
    """
    if isinstance(value, (uuid.UUID, decimal.Decimal, Promise)):
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return duration_iso_string(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, FieldFile):
        return value.name
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encoder = json.JSONEncoder(
    default=to_json, allow_nan=False, ensure_ascii=False, separators=(",", ":")
)


def dump(value: Any) -> bytes:
    """Encode a value as JSON in UTF-8.

    Raises:
        EncodingError: Some part of it has no JSON form, or is text that is no Unicode.
    """
    try:
        return _encoder.encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodingError(_reason(error)) from error


def _reason(error: Exception) -> str:
    # json and str.encode repeat the value in some messages; a message may hold no payload.
    if isinstance(error, UnicodeEncodeError):
        return "text with a lone surrogate is no Unicode"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, ValueError):
        return "NaN and infinity have no JSON form, nor has a structure that contains itself"
    return str(error)


def first_unencodable(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Find the first member of a mapping that cannot be encoded.

    Returns:
        Its name and the reason, or None.
    """
    for name, value in body.items():
        try:
            dump({name: value})
        except EncodingError as error:
            return name, str(error)
    return None
