"""Log lines about a message: what finds it again, in the text and as fields, and never its payload."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

from django.utils.crypto import salted_hmac

from folio_events.conf import get_settings
from folio_events.dialects import read_headers
from folio_events.event import Event
from folio_events.message import Record, key_text
from folio_events.ownership import OKAPI_TENANT, TENANT_HEADER

#: The attribute of a log record that has the fields, a dict.
FIELDS = "folio_events"
_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRef:
    """Which message is meant: where it stands and whose it is, never what is in it."""

    #: On the broker; the logical topic of one that is not there.
    topic: str
    #: None before it was published.
    partition: int | None = None
    offset: int | None = None
    key: str | None = None
    #: None where it cannot be read.
    event_id: UUID | str | None = None
    tenant: str = ""
    request_id: str = ""


def refer_to_event(event: Event) -> MessageRef:
    """Name the message of an event."""
    return MessageRef(
        topic=event.wire_topic or event.topic,
        partition=event.partition,
        offset=event.offset,
        key=event.key,
        event_id=event.id,
        tenant=event.tenant or "",
        request_id=event.request_id or "",
    )


def refer_to_record(
    record: Record, *, event_id: UUID | None = None, tenant: str | None = None
) -> MessageRef:
    """Name the message of a record, by its headers where nobody knows better.

    Args:
        record: As it was read.
        event_id: Of its event, where it could be read.
        tenant: Its owner, where that is settled.
    """
    headers = read_headers(record.headers)
    if tenant is None:
        tenant = headers.get(TENANT_HEADER.lower()) or headers.get(OKAPI_TENANT)
    return MessageRef(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=key_text(record.key),
        event_id=event_id or headers.get("ce_id"),
        tenant=tenant or "",
        request_id=headers.get("x-okapi-request-id", ""),
    )


def log_message(
    logger: logging.Logger,
    level: int,
    what: str,
    message: MessageRef,
    detail: object = "",
    **more: object,
) -> None:
    """Write one line about one message.

    Args:
        logger: Where to.
        level: Of ``logging``.
        what: What happened to it, in one or two words.
        message: Which it is.
        detail: Ends the line; without anything that was in a payload.
        more: Further fields, such as ``receiver``.
    """
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, Any] = {**asdict(_without_key(message)), **more}
    if message.event_id is not None:
        fields["event_id"] = str(message.event_id)
    text = " ".join(
        f"{name.removesuffix('_id')}={value}"
        for name, value in fields.items()
        if value != "" and (value is not None or name == "key")
    )
    logger.log(
        level, "%s %s%s%s", what, text, ": " if detail else "", detail,
        extra={FIELDS: fields}, stacklevel=2,
    )  # fmt: skip


def _without_key(message: MessageRef) -> MessageRef:
    if message.key is None or get_settings().LOG_KEYS:
        return message
    # With the project's secret: a digest alone of a barcode is soon guessed.
    digest = salted_hmac("folio_events.logs", message.key, algorithm="sha256").hexdigest()
    return replace(message, key=digest[:_DIGITS])
