"""Writer of withheld messages: refuse and follow, release, discard, resolve."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from django.db import DEFAULT_DB_ALIAS, connections, models, transaction
from django.utils import timezone

from folio_events.audit import Actor, log_action
from folio_events.cursor import OutboxRow
from folio_events.exceptions import InvalidStateError
from folio_events.models import WithheldMessage

State = WithheldMessage.State
_ANY_OPEN = f"""
SELECT EXISTS (SELECT 1 FROM {WithheldMessage._meta.db_table} WHERE state IN (%s, %s))
"""  # noqa: S608 - fixed name
#: Topic, tenant and key: what order is kept within.
Chain = tuple[str, str, str]


def withhold(rows: Iterable[tuple[OutboxRow, str]], *, using: str) -> None:
    """Set outbox rows aside.

    Args:
        rows: Each with what the broker said, or "" for a follower of its key.
        using: Database alias.
    """
    now = timezone.now()
    WithheldMessage.objects.using(using).bulk_create(
        [
            WithheldMessage(
                outbox_message_id=row.id,
                topic=row.topic,
                tenant=row.tenant,
                key=row.key,
                state=State.REFUSED if error else State.WAITING,
                error=error,
                withheld_at=now,
            )
            for row, error in rows
        ],
        update_conflicts=True,
        unique_fields=["outbox_message"],
        update_fields=["state", "error", "withheld_at"],
    )


def any_open(*, using: str) -> bool:
    """Whether any row is set aside."""
    # Raw, since each drain asks: Django takes longer to build the statement than it takes to run.
    with connections[using].cursor() as cursor:
        cursor.execute(_ANY_OPEN, WithheldMessage.OPEN)
        return bool(cursor.fetchone()[0])


def open_chains(keys: Collection[str], *, using: str) -> set[Chain]:
    """Which chains with one of these keys have rows set aside."""
    found = WithheldMessage.objects.using(using).filter(
        state__in=WithheldMessage.OPEN, key__in=keys
    )
    chains = found.values_list("topic", "tenant", "key").distinct()
    return {(topic, tenant, key) for topic, tenant, key in chains if key is not None}


def publishable(limit: int, *, using: str) -> list[int]:
    """Outbox ids whose turn it is: released rows and, behind them, the followers of their key.

    A row's turn comes when no refused row of its key is older.
    """
    refused = WithheldMessage.objects.using(using).filter(
        state=State.REFUSED,
        topic=models.OuterRef("topic"),
        tenant=models.OuterRef("tenant"),
        key=models.OuterRef("key"),
        outbox_message__lt=models.OuterRef("outbox_message"),
    )
    rows = (
        WithheldMessage.objects.using(using)
        .filter(state=State.WAITING)
        .exclude(models.Exists(refused))
    )
    return list(rows.order_by("outbox_message").values_list("outbox_message", flat=True)[:limit])


def mark_published(ids: Sequence[int], *, using: str) -> None:
    """Note that rows set aside have been acknowledged by the broker."""
    WithheldMessage.objects.using(using).filter(outbox_message__in=ids).update(
        state=State.PUBLISHED, resolved_at=timezone.now()
    )


def release(ids: Collection[int], *, by: Actor = None, using: str = DEFAULT_DB_ALIAS) -> int:
    """Have refused messages tried again by the next drain, their followers behind them.

    Args:
        ids: Outbox ids.
        by: The user who asks; written to Django's log.
        using: Database alias.

    Returns:
        How many were released.

    Raises:
        InvalidStateError: One of them is not refused; none is released.
    """
    return _settle(ids, State.WAITING, "released", "", by=by, using=using)


def discard(
    ids: Collection[int], *, reason: str, by: Actor = None, using: str = DEFAULT_DB_ALIAS
) -> int:
    """Give refused messages up; their followers are published by the next drain.

    Args:
        ids: Outbox ids.
        reason: Kept with the message and in Django's log.
        by: The user who asks.
        using: Database alias.

    Returns:
        How many were discarded.

    Raises:
        InvalidStateError: One of them is not refused; none is discarded.
    """
    return _settle(ids, State.DISCARDED, "discarded", reason, by=by, using=using)


def _settle(
    ids: Collection[int],
    state: WithheldMessage.State,
    verb: str,
    reason: str,
    *,
    by: Actor,
    using: str,
) -> int:
    with transaction.atomic(using=using):
        found = list(
            WithheldMessage.objects.using(using)
            .select_for_update()
            .filter(outbox_message__in=ids)
            .order_by("outbox_message")
        )
        for message in found:
            if message.state != State.REFUSED:
                raise InvalidStateError(
                    f"Withheld message {message.pk} is {message.get_state_display()}; only refused ones can be {verb}."
                )
        now = timezone.now()
        for message in found:
            message.state, message.reason = state, reason
            message.resolved_at = now if state == State.DISCARDED else None
        WithheldMessage.objects.using(using).bulk_update(
            found, ["state", "reason", "resolved_at"], batch_size=500
        )
        log_action(found, f"{verb}: {reason}" if reason else verb, by=by)
    return len(found)
