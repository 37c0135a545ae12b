"""Edit the message of a delivery: what may be changed, and the way back."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from django.db import DEFAULT_DB_ALIAS, transaction
from django.utils import timezone

from folio_events import deliveries, schemas
from folio_events.audit import Actor, log_action
from folio_events.dialects import decode
from folio_events.event import Event
from folio_events.exceptions import DecodingError, InvalidStateError
from folio_events.message import Headers, Record, decode_headers
from folio_events.models import Delivery
from folio_events.receivers import registry

#: How bytes are written as text: as they are, in hexadecimal digits, or not there at all.
Form = Literal["text", "hex", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a person may change of a message."""

    key: bytes | None
    headers: Headers
    payload: bytes | None

    def changed(self, other: Content) -> list[str]:
        """Names of the parts that differ."""
        return [
            name
            for name in ("key", "headers", "payload")
            if getattr(self, name) != getattr(other, name)
        ]


def content_of(delivery: Delivery) -> Content:
    """The message as it runs now."""
    record = deliveries.record_of(delivery)
    return Content(key=record.key, headers=record.headers, payload=record.value)


def original_of(delivery: Delivery) -> Content:
    """The message as it was read from the broker."""
    if delivery.edited_at is None:
        return content_of(delivery)
    return Content(
        key=None if delivery.original_raw_key is None else bytes(delivery.original_raw_key),
        headers=decode_headers(bytes(delivery.original_headers or b"")),
        payload=None if delivery.original_payload is None else bytes(delivery.original_payload),
    )


def version_of(delivery: Delivery) -> str:
    """Another with each change of the message, so that nobody overwrites what he has not seen."""
    content = content_of(delivery)
    return hashlib.sha256(
        repr((content.key, content.headers, content.payload)).encode()
    ).hexdigest()


def edit(
    pk: int,
    content: Content,
    *,
    reason: str,
    seen: str | None = None,
    retry: bool = False,
    by: Actor = None,
    using: str = DEFAULT_DB_ALIAS,
) -> list[str]:
    """Give an open delivery another message; the first one is kept, once and for good.

    The receiver gets the new bytes from the next run on. The event stays the same one: its id
    and tenant cannot be changed, so it takes effect once as ever. With another key it leaves
    those that wait behind it, and takes its place by age among the open ones of the new key.

    Args:
        pk: Id of a delivery that is dead or retrying.
        content: The whole message; a value equal to the one there is no change.
        reason: Kept in Django's log.
        seen: ``version_of()`` what the change was made on; None: whatever is there.
        retry: Whether it runs at the next retry pass.
        by: The user who asks.
        using: Database alias.

    Returns:
        Names of the parts that changed: "key", "headers", "payload".

    Raises:
        ValueError: There is no reason.
        DecodingError: The new message is no event. Nothing is changed.
        InvalidStateError: It is settled, or somebody has changed it in the meantime; or the new
            message is another event, or one that the receiver does not take. Nothing is changed.
    """
    _require(reason)
    with transaction.atomic(using=using):
        delivery = deliveries.lock(pk, "edited", using=using)
        if seen is not None and seen != version_of(delivery):
            raise InvalidStateError(
                f"Delivery {pk} was edited by somebody else in the meantime. Look at it anew."
            )
        parts = content.changed(content_of(delivery))
        if parts:
            event = _check(delivery, content)
            _overwrite(delivery, content, event)
            log_action([delivery], f"edited {', '.join(parts)}: {reason}", by=by)
        if retry:
            deliveries.retry([pk], reason=reason, by=by, using=using)
    return parts


def restore(pk: int, *, reason: str, by: Actor = None, using: str = DEFAULT_DB_ALIAS) -> None:
    """Give an open delivery the message back with which it was read.

    Args:
        pk: Id of a delivery that was edited.
        reason: Kept in Django's log.
        by: The user who asks.
        using: Database alias.

    Raises:
        ValueError: There is no reason.
        InvalidStateError: It is settled, or nobody has edited it.
    """
    _require(reason)
    with transaction.atomic(using=using):
        delivery = deliveries.lock(pk, "restored", using=using)
        if delivery.edited_at is None:
            raise InvalidStateError(f"Delivery {pk} has its original message.")
        original = original_of(delivery)
        _overwrite(delivery, original, _read(delivery, original), edited=False)
        log_action([delivery], f"restored the original message: {reason}", by=by)


def check(delivery: Delivery, content: Content) -> None:
    """Say whether a delivery could have a message, as ``edit()`` does, and change nothing."""
    _check(delivery, content)


def compare(
    delivery: Delivery, content: Content | None = None, *, hidden: Collection[str] = ()
) -> schemas.Comparison | None:
    """Hold a message of an open delivery against the schema that its receiver expects.

    Args:
        delivery: What failed.
        content: What it could be given; None: what it has.
        hidden: As ``schemas.compare()`` takes it.

    Returns:
        None of a settled one.
    """
    if delivery.state not in Delivery.OPEN:
        return None
    try:
        event = _decode(delivery, content_of(delivery) if content is None else content)
    except DecodingError as error:
        return schemas.Comparison(obstacle=f"It is no event: {error}.")
    return schemas.compare(event, registry.get(delivery.receiver), hidden=hidden)


def _require(reason: str) -> None:
    if not reason.strip():
        raise ValueError("Say why: the reason is kept in Django's log.")


def _check(delivery: Delivery, content: Content) -> Event:
    event = _decode(delivery, content)
    known = _read(delivery, original_of(delivery))
    if known is not None and event.id != known.id:
        raise InvalidStateError(
            f"Delivery {delivery.pk} is event {known.id}; the new message says it is {event.id}. "
            "The id cannot be changed: publish another event instead."
        )
    receiver = registry.get(delivery.receiver)
    if receiver is not None and not receiver.wants(event):
        raise InvalidStateError(
            f"Receiver {receiver.name!r} does not take type {event.type!r}: it would never run."
        )
    return event


def _read(delivery: Delivery, content: Content) -> Event | None:
    try:
        return _decode(delivery, content)
    except DecodingError:
        return None


def _decode(delivery: Delivery, content: Content) -> Event:
    # As the retry pass does: what could not be read says itself whose it is.
    tenant = delivery.tenant if delivery.event_type else None
    return decode(_record(delivery, content), tenant=tenant or None)


def _record(delivery: Delivery, content: Content) -> Record:
    record = deliveries.record_of(delivery)
    return replace(record, key=content.key, headers=content.headers, value=content.payload)


def _overwrite(
    delivery: Delivery, content: Content, event: Event | None, *, edited: bool = True
) -> None:
    deliveries.overwrite(
        delivery,
        _record(delivery, content),
        tenant="" if event is None else event.tenant or "",
        event_type="" if event is None else event.type,
        edited_at=timezone.now() if edited else None,
    )


def as_text(data: bytes | None) -> tuple[Form, str]:
    """Bytes as a form of a page can hold them, and bring them back unchanged."""
    if data is None:
        return "none", ""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "hex", data.hex(" ")
    # Browsers send line breaks of their own, and drop what cannot be shown.
    if any(ord(letter) < 32 and letter not in "\t\n" for letter in text):
        return "hex", data.hex(" ")
    return "text", text


def from_text(form: Form, text: str) -> bytes | None:
    """The inverse of ``as_text()``.

    Raises:
        ValueError: They are no hexadecimal digits in pairs, or letters that UTF-8 has not.
    """
    if form == "none":
        return None
    if form == "hex":
        return bytes.fromhex(text)
    return text.replace("\r\n", "\n").encode()
