"""What the admin shows of texts and headers: no token, wherever it stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from folio_events.admin import readable

TOKEN = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJzdWIiOiJkaWt1X2FkbWluIiwidGVuYW50IjoiZGlrdSJ9"
    ".c2lnbmF0dXJl_b2Y-dGVzdHM"
)


@pytest.mark.parametrize(
    "show",
    [
        readable.text_block,
        readable.shortened,
        readable.short_key,
        readable.code,
        lambda text: readable.payload_block(text.encode()),
        lambda text: readable.headers_block([("note", text.encode())]),
    ],
    ids=["traceback", "list", "key", "code", "payload", "another header"],
)
def test_a_token_in_a_text_is_masked(show: Callable[[str], object]) -> None:
    """An error may quote the request it made; what stands around the token is kept."""
    shown = str(show(f"401: {TOKEN} expired"))

    assert "401: [masked] expired" in shown
    assert not any(part in shown for part in TOKEN.split("."))


@pytest.mark.parametrize(
    "name", ["x-okapi-token", "X-Okapi-Token", "x-okapi-additional-token", "Authorization"]
)
def test_a_secret_header_is_masked_whatever_it_holds(name: str) -> None:
    """Also where the value is no token of the usual form."""
    shown = str(readable.headers_block([(name, b"opaque-secret"), ("x-okapi-tenant", b"diku")]))

    assert "masked" in shown
    assert "opaque" not in shown
    assert "diku" in shown


@pytest.mark.parametrize("text", ["inventory.item.UPDATE", "a.b.c", "eye.witness.report"])
def test_dotted_names_are_no_tokens(text: str) -> None:
    """They are shown as they are."""
    assert readable.visible(text) == text
