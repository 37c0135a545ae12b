"""Messages and records: sizes, places, headers as they are stored, keys as text."""

from __future__ import annotations

import pytest
from django.utils import timezone

from folio_events.cursor import OutboxRow
from folio_events.message import (
    MAX_KEY_BYTES,
    Headers,
    Message,
    Record,
    TopicPartition,
    decode_headers,
    encode_headers,
    key_text,
    storable,
)
from folio_events.tenants import CallContext


def test_the_size_counts_key_value_and_headers() -> None:
    """In bytes; what is missing counts nothing."""
    headers: Headers = [("name", b"12345"), ("none", None)]

    assert Message("t", b"key", b"value", headers).size == 3 + 5 + 4 + 5 + 4
    assert Message("t", None, None, []).size == 0


def test_a_record_knows_its_partition() -> None:
    """Topic and number together name it."""
    record = Record("t", 3, 9, None, None, [], 0)

    assert record.topic_partition == TopicPartition("t", 3)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("a", b"1"), ("a", b"2")],
        [("empty", b""), ("missing", None)],
        [("bytes", bytes(range(256)))],
        [("Näme", "Zürich 図書館".encode())],
    ],
    ids=["none", "repeated", "empty", "any bytes", "not ASCII"],
)
def test_stored_headers_come_back_as_they_were(headers: Headers) -> None:
    """Any names and bytes survive, in their order."""
    assert decode_headers(encode_headers(headers)) == headers


def test_no_stored_headers_are_none() -> None:
    """A row without headers holds no bytes at all."""
    assert decode_headers(b"") == []


def test_storable_text_has_nothing_that_postgresql_refuses() -> None:
    """NUL and lone surrogates are replaced; everything else stays."""
    assert storable("Zürich 図") == "Zürich 図"
    assert storable("a\0b\ud800c") == "a\N{SYMBOL FOR NULL}b?c"


def test_a_key_is_shown_as_text() -> None:
    """Bytes that are no UTF-8 show as replacement characters; no key stays none."""
    assert key_text(None) is None
    assert key_text(b"") == ""
    assert key_text("Zürich".encode()) == "Zürich"
    assert key_text(b"a\xffb") == "a\N{REPLACEMENT CHARACTER}b"
    assert key_text(b"a\0b") == "a\N{SYMBOL FOR NULL}b"


def test_a_key_too_long_for_an_index_is_shortened_and_stays_another() -> None:
    """Two long keys that differ at their ends differ as text, within the limit."""
    longest = b"k" * MAX_KEY_BYTES

    assert key_text(longest) == longest.decode()
    shortened = [key_text(longest + end) or "" for end in (b"1", b"2")]
    assert shortened[0] != shortened[1]
    assert shortened[0].startswith("kkkk")
    assert all(len(text.encode()) <= MAX_KEY_BYTES for text in shortened)
    assert len((key_text(b"\xff" * MAX_KEY_BYTES) or "").encode()) <= MAX_KEY_BYTES


def test_nothing_that_travels_shows_its_body_or_its_token() -> None:
    """Tracebacks and logs show the repr of what a function was given."""
    secret = b"eyJhbGciOi.secret"
    headers: list[tuple[str, bytes | None]] = [("x-okapi-token", secret)]
    shown = [
        Message("folio.note", b"secret", secret, headers),
        Record("folio.note", 0, 7, b"secret", secret, headers, 0),
        CallContext(headers={"x-okapi-token": "secret"}),
        OutboxRow(1, "id", "note", "", "secret", secret, secret, secret, timezone.now()),
    ]
    for thing in shown:
        assert "secret" not in repr(thing)
        assert "secret" not in f"{thing}"
