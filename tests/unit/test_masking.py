"""Tokens, secret headers and private members are replaced, and nothing else is changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folio_events.declarations import MASK
from folio_events.masking import without_private, without_secrets, without_tokens

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkaWt1In0.c2lnbmF0dXJl"
NAMES = st.sampled_from(["secret", "other", "eventPayload", 'se"cret', "", "new"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


def masked(value: Any) -> Any:
    """What is expected, by another way: through Python's own values."""
    if isinstance(value, list):
        return [masked(inner) for inner in value]
    if isinstance(value, dict):
        return {
            name: MASK if name in ("secret", 'se"cret', "eventPayload") else masked(inner)
            for name, inner in value.items()
        }
    return value


@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_private_members_are_replaced_at_any_depth(
    value: Any, indent: int | None, ascii_only: bool
) -> None:
    """However the JSON is laid out; what is JSON stays JSON."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    shown = without_private(text, {"secret", 'se"cret'})
    assert json.loads(shown) == masked(value)


@given(VALUES, st.integers(min_value=0, max_value=300))
def test_a_text_that_was_cut_shows_no_more_than_the_whole(value: Any, length: int) -> None:
    """A page masks what it shows of a large body, and that may end anywhere."""
    text = json.dumps({"secret": "needle-1", "list": [value, {"secret": ["needle-2"]}]})
    assert "needle" not in without_private(text[:length], {"secret"})


def test_without_private_names_nothing_is_changed() -> None:
    """Not even where the text is no JSON."""
    assert without_private('{"eventPayload" : ', ()) == '{"eventPayload" : '


def test_a_name_is_known_however_it_is_escaped() -> None:
    """JSON has several forms of one name."""
    assert "needle" not in without_private(r'{"s\u0065cret": "needle"}', {"secret"})


@pytest.mark.parametrize("depth", [10_000, 200_000])
def test_depth_is_no_trouble(depth: int) -> None:
    """There is no recursion that could end."""
    text = '{"secret":' + "[" * depth + "]" * depth + ',"a":1}'
    assert without_private(text, {"secret"}) == f'{{"secret":"{MASK}","a":1}}'


def test_secret_headers_and_tokens_in_others_are_replaced() -> None:
    """Names and other values stay, bytes that are no text among them."""
    headers = [
        ("X-Okapi-Token", b"opaque"),
        ("note", f"with {TOKEN} in it".encode()),
        ("raw", b"\xff\x00"),
        ("none", None),
    ]
    assert without_secrets(headers) == [
        ("X-Okapi-Token", MASK.encode()),
        ("note", f"with {MASK} in it".encode()),
        ("raw", b"\xff\x00"),
        ("none", None),
    ]


def test_a_token_is_replaced_in_a_text() -> None:
    """What stands around it is kept."""
    assert without_tokens(f"401: {TOKEN} expired") == f"401: {MASK} expired"
