"""``publish()`` and ``apublish()``: the doors for events that are no model change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import Model, QuerySet

from folio_events import dialects, outbox, topics
from folio_events.declarations import events
from folio_events.dialects import TOMBSTONE, event_type
from folio_events.encoding import first_unencodable
from folio_events.event import Event
from folio_events.exceptions import EncodingError
from folio_events.message import SECRET_HEADERS, storable
from folio_events.ownership import TENANT_HEADER
from folio_events.tenants import FORWARDED, TRACE_HEADERS
from folio_events.topics.declared import is_compacted

#: What the column holds.
_MAX_TYPE = 100
#: Bytes of the headers that one message is given.
MAX_HEADER_BYTES = 8192
_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: Headers that say whose an event is, who called and what the message is: not the caller's word.
_RESERVED = frozenset(
    (TENANT_HEADER.lower(), "content-type", *SECRET_HEADERS, *FORWARDED, *TRACE_HEADERS)
)


def publish(
    topic: str,
    *,
    key: object,
    payload: Mapping[str, Any] | None,
    headers: Mapping[str, str] | None = None,
    type: str | None = None,  # noqa: A002 - the field's own word
    dialect: str = "circulation",
    ordered: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> Event:
    """Record an event in the current transaction; the relay sends it after the commit.

    Args:
        topic: Logical topic, such as ``circulation.ITEM_CHECKED_OUT``.
        key: What orders the event, made text; events of one topic and key reach receivers
            in commit order. None: no order.
        payload: A dict of JSON values; dates, decimals, UUIDs and bytes are taken too. None
            is a tombstone, by which a compacted topic forgets the key.
        headers: Further headers of this message, as text: name to value. FOLIO's modules want
            some, such as ``jobExecutionId``.
        type: Event type; defaults to the last segment of the topic. A tombstone has none.
        dialect: Wire form of the body: "circulation", "inventory" or "pubsub".
        ordered: False skips the lock that gives the key its commit order.
        using: Database alias of the transaction.

    Returns:
        The event that was recorded.

    Raises:
        ConfigurationError: The topic or dialect cannot be.
        EncodingError: The payload is no dict, or has a value without JSON form; or type or
            key is text that cannot be stored; or a header is reserved, no text or too long; or the topic is compacted and there is no key,
            or a tombstone is meant for one that is not.
        MissingTenantError: Tenancy is on and nobody names a tenant.
    """
    topics.validate_topic(topic)
    dialects.validate_dialect(dialect)
    if payload is None:
        _check_tombstone(topic, key, type)
    elif not isinstance(payload, Mapping):
        raise EncodingError(
            f"The payload of {topic} must be a dict, not {payload.__class__.__name__}."
        )
    own_headers = _checked_headers(topic, headers or {})
    kind = _default_type(topic, payload) if type is None else type
    if (
        kind != str(kind)
        or not 0 < len(kind.strip()) <= len(kind) <= _MAX_TYPE
        or storable(kind) != kind
    ):
        raise EncodingError(f"The type of {topic} must be text of 1 to {_MAX_TYPE} characters.")
    event = outbox.new_event(topic, event_type(kind), None if key is None else str(key), payload)
    try:
        row = outbox.make_row(event, dialect, own_headers)
    except EncodingError as error:
        found = first_unencodable(event.payload)
        reason = f"{found[0]!r}: {found[1]}" if found else str(error)
        raise EncodingError(f"The event of {topic} is refused: {reason}.") from error
    with transaction.atomic(using=using, savepoint=False):
        if ordered and event.key is not None:
            _lock_row(topic, event.key, using)
            outbox.lock_keys([(topic, event.tenant, event.key)], using=using)
        outbox.append([row], using=using)
    return event


def _checked_headers(topic: str, headers: Mapping[Any, Any]) -> Sequence[tuple[str, str]]:
    """Headers as they are stored.

    Raises:
        EncodingError: One cannot be; the message has its name, never its value.
    """
    names = set()
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise EncodingError(
                f"{str(name)[:100]!r} is no name of a header of {topic}: use at most 100 letters, "
                "digits, '.', '_' and '-'."
            )
        lower = name.lower()
        if lower in _RESERVED or lower.startswith("ce_"):
            raise EncodingError(
                f"Header {name!r} of {topic} is written by folio_events itself, from the tenant and "
                "the call: see docs/howto/tenants.md."
            )
        if lower in names:
            raise EncodingError(f"Header {name!r} of {topic} is given twice; case does not count.")
        if not isinstance(value, str) or storable(value) != value:
            raise EncodingError(
                f"Header {name!r} of {topic} must be text without NUL and lone surrogates."
            )
        names.add(lower)
    size = sum(len(name) + len(value.encode()) for name, value in headers.items())
    if size > MAX_HEADER_BYTES:
        raise EncodingError(
            f"The headers of {topic} have {size} bytes; at most {MAX_HEADER_BYTES} are taken."
        )
    return list(headers.items())


def _default_type(topic: str, payload: Mapping[str, Any] | None) -> str:
    return TOMBSTONE if payload is None else topic.rpartition(".")[2]


def _check_tombstone(topic: str, key: object, kind: str | None) -> None:
    if not is_compacted(topic):
        raise EncodingError(
            f"A tombstone (payload=None) of {topic} is refused: the topic is not compacted, so it "
            'would forget nothing. Declare it with declare_topic(..., cleanup_policy="compact").'
        )
    if key is None or kind is not None:
        raise EncodingError(
            f"A tombstone (payload=None) of {topic} is a key and nothing else: give a key, and no type."
        )


async def apublish(
    topic: str,
    *,
    key: object,
    payload: Mapping[str, Any] | None,
    headers: Mapping[str, str] | None = None,
    type: str | None = None,  # noqa: A002 - as publish() has it
    dialect: str = "circulation",
    ordered: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> Event:
    """``publish()`` for asynchronous code, in the thread of the ORM's asynchronous calls.

    Django has no asynchronous transactions: what has to be one transaction with the event
    belongs into one synchronous function, with ``publish()``.
    """
    return await sync_to_async(publish)(
        topic,
        key=key,
        payload=payload,
        headers=headers,
        type=type,
        dialect=dialect,
        ordered=ordered,
        using=using,
    )


def _lock_row(topic: str, key: str, using: str) -> None:
    # Where a model's rows are the keys of the topic, their saves take no lock but the row's.
    for declaration in events:
        if declaration.topic != topic or not declaration.key_is_primary_key:
            continue
        try:
            pk = declaration.key_field.to_python(key)
        except ValidationError:
            continue
        rows: QuerySet[Model] = QuerySet(declaration.model, using=using)
        rows.select_for_update(no_key=True).filter(pk=pk).order_by("pk").values_list("pk").first()
