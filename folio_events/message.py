"""Messages as they travel: bytes with a topic, a key and headers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from folio_events.encoding import dump

#: Longest key as text, so that a row of an index holds it beside receiver and topic.
MAX_KEY_BYTES = 2000
#: The last day of the year 9999; records may be stamped with any number.
_LATEST_TIMESTAMP = 253_402_214_400_000
#: Headers whose value lets the reader act as somebody else; in lower case. No page, answer or
#: log line shows it.
SECRET_HEADERS = frozenset(
    ("x-okapi-token", "x-okapi-additional-token", "authorization", "proxy-authorization", "cookie")
)
#: Pairs of name and value in the order of the wire; names may repeat.
Headers = list[tuple[str, bytes | None]]


class TopicPartition(NamedTuple):
    """One partition of one topic of the broker."""

    topic: str
    partition: int


class Message(NamedTuple):
    """What the relay hands to a broker."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size(self) -> int:
        """Bytes of key, value and headers, without the broker's own framing."""
        size = len(self.key or b"") + len(self.value or b"")
        # A loop, since the relay asks for each message: a generator takes three times as long.
        for name, value in self.headers:
            size += len(name) + len(value or b"")
        return size

    def __repr__(self) -> str:
        # Never the body or a token: tracebacks and logs show this.
        return f"<Message to {self.topic}>"


@dataclass(frozen=True, slots=True)
class Record:
    """A message where it stands in the broker's log."""

    topic: str
    partition: int
    offset: int
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: Headers = field(repr=False)
    #: When the broker or the producer stamped it; milliseconds since 1970.
    timestamp: int

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    @property
    def published_at(self) -> datetime:
        """The timestamp, brought into the years that a database takes."""
        return datetime.fromtimestamp(min(max(self.timestamp, 0), _LATEST_TIMESTAMP) / 1000, UTC)


def storable(text: str) -> str:
    """Text as PostgreSQL takes it: without NUL and lone surrogates."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode()


def key_text(key: bytes | None) -> str | None:
    """A record's key as text; what is no UTF-8 shows as replacement characters.

    A key too long for an index shows as its beginning and a digest.
    """
    if key is None:
        return None
    text = storable(key.decode("utf-8", "replace"))
    if len(text.encode()) <= MAX_KEY_BYTES:
        return text
    return f"{text[:400]}... {hashlib.sha256(key).hexdigest()}"


def encode_headers(headers: Headers) -> bytes:
    """Headers as JSON pairs; any bytes fit in, one character a byte (Latin-1)."""
    return dump(
        [(name, None if value is None else value.decode("latin-1")) for name, value in headers]
    )


def decode_headers(stored: bytes) -> Headers:
    """The inverse of ``encode_headers``."""
    pairs = json.loads(stored) if stored else []
    return [(name, None if value is None else value.encode("latin-1")) for name, value in pairs]
