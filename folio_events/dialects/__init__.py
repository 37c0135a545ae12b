"""Events as bytes and headers: FOLIO's dialects of a body, and CloudEvents headers beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from folio_events.dialects import circulation, inventory, pubsub
from folio_events.dialects.contents import PAST_WORDS, Head, event_type
from folio_events.dialects.decoding import TOMBSTONE, decode, derived_id
from folio_events.dialects.headers import read_headers, repeating_headers, wire_headers
from folio_events.encoding import json_bytes
from folio_events.exceptions import ConfigurationError
from folio_events.ownership import TENANT_HEADER

__all__ = [
    "DIALECTS",
    "PAST_WORDS",
    "TENANT_HEADER",
    "TOMBSTONE",
    "Head",
    "decode",
    "derived_id",
    "encode",
    "event_type",
    "read_headers",
    "repeating_headers",
    "validate_dialect",
    "wire_headers",
]

#: What writes a body, by the name of the dialect.
DIALECTS: dict[str, Callable[[Head, Mapping[str, str]], str]] = {
    "inventory": inventory.write,
    "circulation": circulation.write,
    "pubsub": pubsub.write,
}


def validate_dialect(name: str) -> str:
    """Return the name of a dialect, or refuse it.

    Raises:
        ConfigurationError: There is no such dialect.
    """
    if name not in DIALECTS:
        raise ConfigurationError(f"{name!r} is no dialect; use one of {', '.join(DIALECTS)}.")
    return name


def encode(head: Head, members: Mapping[str, str], dialect: str) -> bytes:
    """Write an event's body.

    Args:
        head: What it says of the event itself.
        members: The payload: name to JSON text.
        dialect: One of ``DIALECTS``.

    Raises:
        EncodingError: A member has the name of metadata, text in it is no Unicode, or the
            dialect needs a tenant and there is none.
    """
    return json_bytes(DIALECTS[dialect](head, members))
