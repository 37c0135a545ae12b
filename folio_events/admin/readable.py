"""Payloads, headers, keys and tracebacks as a person reads them; all of it escaped."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from folio_events.masking import is_json, without_private, without_tokens
from folio_events.message import SECRET_HEADERS, Headers
from folio_events.schemas import MAX_DIFFERENCES, Comparison

#: Characters of a payload, and bytes of one that is no text, that a page shows.
MAX_CHARACTERS, MAX_BYTES = 100_000, 16_384
#: Characters of a key or an error that a row of a list shows.
MAX_IN_LIST = 60
_PART = re.compile(r'"(?:[^"\\]|\\.)*"?|\{\s*\}|\[\s*\]|[\[\]{},:]|[^\s"\[\]{},:]+', re.DOTALL)
_MAX_INDENT = 40
#: Controls as pictures; what turns the direction of writing, and halves of characters, as
#: their number.
_VISIBLE: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **{
        code: f"\\u{code:04x}"
        for code in (
            *range(0x80, 0xA0),
            0x61C,
            0x200E,
            0x200F,
            *range(0x2028, 0x202F),
            *range(0x2066, 0x206A),
            *range(0xD800, 0xE000),
        )
    },
}


def visible(text: str) -> str:
    """Text without tokens, and without characters that a browser drops or obeys."""
    return without_tokens(text, f"[{_('masked')}]").translate(_VISIBLE)


def shortened(text: str) -> str:
    """The first line's beginning, for a list."""
    line = visible(text.strip().split("\n", 1)[0])
    return line if len(line) <= MAX_IN_LIST else f"{line[: MAX_IN_LIST - 1]}…"


def badge(word: object, tone: str) -> SafeString:
    """A word on a coloured ground; the tones are classes of ``admin.css``."""
    return format_html(
        '<span class="folio-events-badge folio-events-{}">{}</span>', tone, str(word)
    )


def code(text: str) -> SafeString:
    """An id or key, in letters of one width."""
    return format_html('<code class="folio-events-code">{}</code>', visible(text))


def stacked(*lines: object) -> SafeString:
    """What stands below each other in a cell of a list; what is None or empty is left out."""
    return format_html_join(
        "", '<div class="folio-events-line">{}</div>', ((line,) for line in lines if line)
    )


def short_key(key: str | None) -> SafeString | None:
    """A key cut to what fits into a list; whole when the pointer rests on it."""
    if key is None:
        return None
    return format_html(
        '<code class="folio-events-code" title="{}">{}</code>', visible(key), shortened(key)
    )


def on_broker(topic: str, partition: int, offset: int) -> SafeString:
    """Where a message stands on the broker."""
    return stacked(topic, note(f"{_('partition')} {partition}, {_('offset')} {offset}"))


def moment(when: datetime | None) -> SafeString | None:
    """A time to the second in the admin's zone; more of it when the pointer rests on it."""
    if when is None:
        return None
    local = timezone.localtime(when) if timezone.is_aware(when) else when
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        local.isoformat(),
        local.isoformat(" "),
        f"{local:%Y-%m-%d %H:%M:%S}",
    )


def note(text: str) -> SafeString:
    """What matters less."""
    return format_html('<span class="folio-events-note">{}</span>', text)


def text_block(text: str) -> SafeString | None:
    """Text with its line breaks, such as a traceback."""
    if not text:
        return None
    return format_html('<pre class="folio-events-text" tabindex="0">{}</pre>', visible(text))


def payload_block(payload: bytes | memoryview | None, private: Collection[str] = ()) -> SafeString:
    """A body: JSON indented, other text as it is, bytes that are no text in hex.

    Args:
        payload: Of the record; None: a tombstone.
        private: Members whose values are hidden. Where these cannot be told, all is.
    """
    if payload is None:
        return note(_("The record has no body."))
    data = bytes(payload)
    if private and not is_json(data):
        return note(
            _("%(size)s, hidden: this topic has private fields, and they cannot be told here")
            % {"size": in_bytes(data)}
        )
    text, extent = _readable(data, private)
    return format_html('<pre class="folio-events-text" tabindex="0">{}</pre>{}', text, note(extent))


def _readable(data: bytes, private: Collection[str]) -> tuple[str, str]:
    """What is shown of a body, and how much that is of what."""
    size = in_bytes(data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        if len(data) <= MAX_BYTES:
            return hex_dump(data), _("%(size)s, no UTF-8") % {"size": size}
        return hex_dump(data[:MAX_BYTES]), _(
            "%(size)s, no UTF-8; the first %(shown)s are shown"
        ) % {"size": size, "shown": f"{MAX_BYTES:,}"}
    shown = text[:MAX_CHARACTERS]
    shown = visible(indented(without_private(shown, private)) if is_json(data) else shown)
    if len(text) <= MAX_CHARACTERS:
        return shown, size
    return shown, _("%(size)s; the first %(shown)s characters are shown") % {
        "size": size,
        "shown": f"{MAX_CHARACTERS:,}",
    }


def in_bytes(data: bytes) -> str:
    """The size of a body."""
    return ngettext("%s byte", "%s bytes", len(data)) % f"{len(data):,}"


def indented(text: str) -> str:
    """JSON with a line for each value.

    Works on the text alone: repeated members, long numbers and escapes stay as they were
    sent, and it may end anywhere.
    """
    depth = 0
    parts: list[str] = []
    for part in _PART.findall(text):
        if part in ("}", "]"):
            depth -= 1
            parts += [_line(depth), part]
        elif part in ("{", "["):
            depth += 1
            parts += [part, _line(depth)]
        elif part == ",":
            parts += [part, _line(depth)]
        else:
            parts.append(": " if part == ":" else part)
    return "".join(parts)


def _line(depth: int) -> str:
    return "\n" + "  " * min(depth, _MAX_INDENT)


def hex_dump(data: bytes) -> str:
    """Sixteen bytes a line: where they stand, in hex, and what of them is ASCII."""
    lines = []
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):<47}  {letters}")
    return "\n".join(lines)


def headers_block(headers: Headers) -> SafeString | None:
    """Headers as a table; secrets are masked."""
    if not headers:
        return None
    rows = format_html_join(
        "",
        "<tr><th scope='row'>{}</th><td>{}</td></tr>",
        ((visible(name), _header_value(name, value)) for name, value in headers),
    )
    return format_html('<table class="folio-events-headers"><tbody>{}</tbody></table>', rows)


def comparison_block(comparison: Comparison) -> SafeString:
    """Where a payload does not fit a schema, or why nobody can say."""
    origin = comparison.origin and note(_("as %s says") % visible(comparison.origin))
    if comparison.obstacle:
        return stacked(visible(comparison.obstacle), origin)
    if comparison.fits:
        return stacked(_("The payload fits."), origin)
    rows = format_html_join(
        "",
        "<tr><th scope='row'>{}</th><td>{}</td></tr>",
        (
            (code(one.path) if one.path else _("the whole payload"), visible(one.reason))
            for one in comparison.differences
        ),
    )
    more = comparison.is_partial and note(
        _("Only the first %s differences are shown.") % f"{MAX_DIFFERENCES:,}"
    )
    return stacked(
        format_html('<table class="folio-events-headers"><tbody>{}</tbody></table>', rows),
        more,
        origin,
    )


def _header_value(name: str, value: bytes | None) -> str | SafeString:
    if value is None:
        return note(_("no value"))
    if name.lower() in SECRET_HEADERS:
        return note(_("masked"))
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.hex(" ")
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]}…"
    return visible(text)
