"""Topics and tenants that something names: a misspelt one is not to be taken for an empty one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator

from django.db.models import Model, QuerySet

from folio_events import topics
from folio_events.exceptions import BrokerError
from folio_events.models import (
    Backfill,
    BrokerPartition,
    ConsumerOffset,
    Delivery,
    Orphan,
    OutboxMessage,
)
from folio_events.ownership import tenant_of
from folio_events.provisioning import known_tenants, named_topics

#: Most names that a message lists.
_LISTED = 10


def refuse_unknown(*, topic: str | None = None, tenant: str | None = None, using: str) -> None:
    """Raise unless declarations, the broker or rows know both.

    Reads whole tables: to be called where nothing was found, and only then.

    Args:
        topic: Logical topic; None: any.
        tenant: None: any.
        using: Database alias.

    Raises:
        ValueError: One is known nowhere; it names what is known, and what may be meant.
    """
    if topic is not None:
        known = {*named_topics(), *_column("topic", using, OutboxMessage)}
        known.update(part.topic for part in _parts(using))
        _refuse("topic", topic, known, using)
    if tenant is not None:
        tenants = {
            *_column("tenant", using, OutboxMessage, Delivery, Backfill),
            *(tenant_of({}, part.tenant) for part in _parts(using)),
            *_provisioned(),
        }
        _refuse("tenant", tenant, [name for name in tenants if name], using)


def _column(name: str, using: str, *tables: type[Model]) -> Iterator[str]:
    for table in tables:
        rows: QuerySet[Model] = QuerySet(table, using=using)
        yield from rows.values_list(name, flat=True).distinct()


def _parts(using: str) -> Iterator[topics.TopicParts]:
    tables = (ConsumerOffset, Delivery, Orphan, BrokerPartition)
    return map(topics.parse_wire_topic, set(_column("topic", using, *tables)))


def _provisioned() -> set[str]:
    try:
        return known_tenants()
    except BrokerError:
        return set()


def _refuse(what: str, name: str, known: Collection[str], using: str) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    listed = sorted(known)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    raise ValueError(
        f"No declaration and no row of database {using!r} names {what} {name!r}{meant} "
        f"Known: {', '.join(listed[:_LISTED]) or 'none'}{more}. Nothing was done."
    )
