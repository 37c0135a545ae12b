"""What no page or answer shows: tokens, secret headers, private members of bodies."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator

from folio_events.declarations import MASK, events
from folio_events.message import SECRET_HEADERS, Headers

#: A signed token (JWT), as an error's text may quote it from a header or an answer.
_TOKEN = re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*")
_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{},:]|\s+|[^\s"\[\]{},:]+', re.DOTALL)
#: Where mod-pubsub has the payload, as JSON text in JSON.
_NESTED = "eventPayload"


def without_tokens(text: str, mask: str = MASK) -> str:
    """Text in which signed tokens are replaced."""
    return _TOKEN.sub(lambda _match: mask, text)


def without_secrets(headers: Headers) -> Headers:
    """Headers whose secret values are replaced, and tokens in the others."""
    return [
        (name, None if value is None else _masked_value(name, value)) for name, value in headers
    ]


def _masked_value(name: str, value: bytes) -> bytes:
    if name.lower() in SECRET_HEADERS:
        return MASK.encode()
    return without_tokens(value.decode("latin-1")).encode("latin-1")


def private_members(topic: str) -> frozenset[str]:
    """Names of the members that declarations of a logical topic call private."""
    return frozenset(
        name
        for declaration in events
        if declaration.topic == topic
        for name, position in declaration.shown_positions
        if position in declaration.private_positions
    )


def is_json(body: bytes) -> bool:
    """Whether a body is JSON that Python reads; only there private members can be told."""
    try:
        json.loads(body.decode())
    except (ValueError, RecursionError):  # also numbers longer than Python reads
        return False
    return True


def without_private(text: str, names: Collection[str]) -> str:
    """JSON text in which the values of some members are replaced, at whatever depth.

    Works on the text alone: the rest stays as it was sent, and it may end anywhere.
    """
    if not names:
        return text
    return "".join(_masked_parts(text, {*names, _NESTED}))


def _masked_parts(text: str, names: Collection[str]) -> Iterator[str]:
    last, hidden, depth = "", False, 0
    for match in _PARTS.finditer(text):
        part = match[0]
        if part.isspace():
            if not hidden:
                yield part
            continue
        if hidden:
            depth += (part in "[{") - (part in "]}")
            if depth < 0 or (depth == 0 and part == ","):
                hidden = False  # it had no value, and this is what comes after
                yield part
            else:
                hidden = depth > 0
            continue
        yield part
        if part == ":" and _name(last) in names:
            yield f'"{MASK}"'
            hidden, depth = True, 0
        last = part


def _name(part: str) -> str:
    try:
        return str(json.loads(part))
    except ValueError:
        return part.strip('"')
