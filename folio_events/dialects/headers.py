"""Headers: CloudEvents in binary mode, and FOLIO's tenant."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from folio_events.conf import get_settings
from folio_events.message import Headers
from folio_events.ownership import TENANT_HEADER


def repeating_headers(topic: str, kind: str, tenant: str | None) -> list[tuple[str, str]]:
    """The headers that many messages have in common; the relay parses them once."""
    settings = get_settings()
    headers = [
        ("ce_specversion", "1.0"),
        ("ce_type", f"{topic}.{kind}"),
        ("ce_source", settings.SOURCE or f"/{settings.GROUP}"),
        ("content-type", "application/json"),
    ]
    if tenant is not None:
        headers.append((TENANT_HEADER, tenant))
    return headers


def wire_headers(
    repeating: Headers,
    own: Iterable[tuple[str, bytes | None]],
    event_id: str,
    occurred_at: datetime,
    sequence: int,
) -> Headers:
    """Put a message's headers together when it is published.

    Args:
        repeating: As ``repeating_headers`` made them, encoded.
        own: Those that belong to this message alone.
        event_id: For ``ce_id``.
        occurred_at: For ``ce_time``.
        sequence: The outbox id, for ``ce_sequence``: grows with every message of one outbox.
    """
    return [
        *repeating,
        ("ce_id", event_id.encode()),
        ("ce_time", occurred_at.astimezone(UTC).isoformat().encode()),
        # CloudEvents compares sequences as text.
        ("ce_sequence", b"%019d" % sequence),
        *own,
    ]


def read_headers(headers: Headers) -> dict[str, str]:
    """Headers as text, names in lower case.

    Of a repeated name the first value that is not blank counts, as FOLIO's reader does;
    a missing value reads as empty.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        text = (value or b"").decode("utf-8", "replace")
        if not found.get(name.lower(), "").strip():
            found[name.lower()] = text
    return found
