"""Writer of orphans: keep, assign, discard, erase."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from django.db import DEFAULT_DB_ALIAS, transaction
from django.utils import timezone

from folio_events import deliveries, signals
from folio_events.audit import Actor, log_action
from folio_events.conf import get_settings
from folio_events.dialects import decode, read_headers
from folio_events.exceptions import (
    DecodingError,
    InvalidStateError,
    InvalidTenantError,
    OrphanError,
)
from folio_events.logs import log_message, refer_to_record
from folio_events.message import (
    Record,
    TopicPartition,
    decode_headers,
    encode_headers,
    key_text,
    storable,
)
from folio_events.models import Orphan
from folio_events.ownership import claims, is_tenant
from folio_events.receivers import registry
from folio_events.topics import parse_wire_topic

logger = logging.getLogger("folio_events.orphans")

State = Orphan.State
#: Characters of a body that a log line shows where ORPHAN_LOG_BODY is on.
_MAX_LOGGED = 1000


def keep(
    found: Sequence[tuple[Record, OrphanError]],
    topic_ids: Mapping[TopicPartition, str],
    *,
    using: str,
) -> None:
    """Keep messages without an owner, in the transaction that moves the offset past them.

    One that is kept already, by another group or lane or before a crash, is passed over.

    Args:
        found: Each with why it has none.
        topic_ids: Of the partitions they stand in.
        using: Database alias.
    """
    now = timezone.now()
    rows = [
        Orphan(
            topic=record.topic,
            topic_id=topic_ids.get(record.topic_partition, ""),
            partition=record.partition,
            offset=record.offset,
            fault=error.fault,
            error=storable(str(error)),
            key=key_text(record.key),
            raw_key=record.key,
            headers=encode_headers(record.headers),
            payload=record.value,
            published_at=record.published_at,
            found_at=now,
        )
        for record, error in found
    ]
    Orphan.objects.using(using).bulk_create(rows, ignore_conflicts=True)
    kept = Orphan.objects.using(using).filter(
        topic__in={record.topic for record, _ in found},
        offset__in={record.offset for record, _ in found},
        found_at=now,
    )
    new = set(kept.values_list("topic", "partition", "offset"))
    for record, error in found:
        if (*record.topic_partition, record.offset) not in new:
            continue
        body = ""
        if get_settings().ORPHAN_LOG_BODY and record.value is not None:
            body = f"body={record.value[:_MAX_LOGGED].decode('utf-8', 'replace')!r}"
        message = refer_to_record(record)
        log_message(logger, logging.ERROR, "orphan", message, body, fault=error.fault)
        signals.orphan_kept.tell(using=using, message=message, fault=error.fault)


def assign(
    ids: Collection[int], *, tenant: str, by: Actor = None, using: str = DEFAULT_DB_ALIAS
) -> int:
    """Give open orphans a tenant and hand them to their receivers as deliveries.

    They run at the next retry pass; what receivers have handled of their key in the
    meantime stays ahead of them.

    Args:
        ids: Of open orphans.
        tenant: Whose they are from now on, whatever the message says.
        by: The user who asks; written to Django's log.
        using: Database alias.

    Returns:
        How many were assigned.

    Raises:
        InvalidTenantError: The name cannot be a tenant's.
        InvalidStateError: One of them is settled, cannot be read, or no receiver that keeps
            its state in this database takes it. None is touched.
    """
    if not is_tenant(tenant):
        raise InvalidTenantError(
            f"{tenant!r} is no tenant: use at most 200 letters, digits, '_' and '-'."
        )
    with transaction.atomic(using=using):
        found = _lock_open(ids, "assigned", using)
        for orphan in found:
            _hand_on(orphan, tenant, using)
        _settle(found, State.ASSIGNED, using, tenant=tenant)
        log_action(found, f"assigned to tenant {tenant}", by=by)
    return len(found)


def discard(
    ids: Collection[int], *, reason: str, by: Actor = None, using: str = DEFAULT_DB_ALIAS
) -> int:
    """Close open orphans: no receiver ever gets them.

    Args:
        ids: Of open orphans.
        reason: Kept with the orphan and in Django's log.
        by: The user who asks.
        using: Database alias.

    Returns:
        How many were discarded.

    Raises:
        InvalidStateError: One of them is settled; none is touched.
    """
    with transaction.atomic(using=using):
        found = _lock_open(ids, "discarded", using)
        _settle(found, State.DISCARDED, using, reason=reason)
        log_action(found, f"discarded: {reason}", by=by)
    return len(found)


class Erased(NamedTuple):
    """What an erasure did to orphans."""

    blanked: int
    #: Of these, open ones, which were discarded.
    discarded: int


def erase(ids: Collection[int], *, reason: str, discard_open: bool, using: str) -> Erased:
    """Blank what orphans hold of their messages, in one transaction.

    The rows stay: without them a message that is read again would be kept again.

    Args:
        ids: In whatever state.
        reason: Kept with each orphan.
        discard_open: Whether open ones are discarded and blanked, or left as they are.
        using: Database alias.
    """
    with transaction.atomic(using=using):
        rows = Orphan.objects.using(using).filter(pk__in=ids)
        still_open = list(rows.filter(state=State.OPEN).select_for_update().order_by("pk"))
        if discard_open:
            _settle(still_open, State.DISCARDED, using)
        else:
            rows = rows.exclude(pk__in=[orphan.pk for orphan in still_open])
        blanked = rows.update(
            key=None, raw_key=None, payload=None, headers=b"", error="", reason=reason
        )
    return Erased(blanked, len(still_open) if discard_open else 0)


def names_tenant(orphan: Orphan, tenant: str) -> bool:
    """Whether an orphan was assigned to a tenant, or says somewhere that it is the tenant's."""
    record = record_of(orphan)
    try:
        body = json.loads(record.value or b"")
    except (ValueError, RecursionError):
        body = None
    said = claims(
        headers=read_headers(record.headers),
        body=body if isinstance(body, dict) else {},
        segment=parse_wire_topic(orphan.topic).tenant,
    )
    return tenant in (orphan.tenant, *said.values())


def record_of(orphan: Orphan) -> Record:
    """The record as it was read."""
    return Record(
        topic=orphan.topic,
        partition=orphan.partition,
        offset=orphan.offset,
        key=None if orphan.raw_key is None else bytes(orphan.raw_key),
        value=None if orphan.payload is None else bytes(orphan.payload),
        headers=decode_headers(bytes(orphan.headers)),
        timestamp=int(orphan.published_at.timestamp() * 1000),
    )


def _hand_on(orphan: Orphan, tenant: str, using: str) -> None:
    record = record_of(orphan)
    try:
        event = decode(record, tenant=tenant)
    except DecodingError as error:
        raise InvalidStateError(f"Orphan {orphan.pk} cannot be read: {error}.") from error
    takers = [r for r in registry if r.using == using and r.wants(event)]
    if not takers:
        raise InvalidStateError(
            f"Orphan {orphan.pk} is a {event.type!r} of topic {event.topic!r}, which no receiver "
            f"with database {using!r} takes: discard it."
        )
    for receiver in takers:
        deliveries.record_held(receiver, record, event, using=using)


def _lock_open(ids: Collection[int], verb: str, using: str) -> list[Orphan]:
    found = list(Orphan.objects.using(using).select_for_update().filter(pk__in=ids).order_by("pk"))
    for orphan in found:
        if orphan.state != State.OPEN:
            raise InvalidStateError(
                f"Orphan {orphan.pk} is {orphan.get_state_display()}; only open ones can be {verb}."
            )
    return found


def _settle(found: Sequence[Orphan], state: Orphan.State, using: str, **said: str) -> None:
    rows = Orphan.objects.using(using).filter(pk__in=[orphan.pk for orphan in found])
    rows.update(state=state, resolved_at=timezone.now(), **said)
