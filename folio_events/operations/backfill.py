"""Backfill: the rows that a model has already, as events, in chunks that can be resumed."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from django.core.exceptions import FieldError, ValidationError
from django.db import DEFAULT_DB_ALIAS, IntegrityError, OperationalError, connections, transaction
from django.db.models import Model, QuerySet
from django.utils import timezone

from folio_events import outbox
from folio_events.audit import Actor, log_action
from folio_events.capture import Change, record_changes
from folio_events.conf import get_settings
from folio_events.declarations import ModelEvents, events
from folio_events.exceptions import ConfigurationError, InvalidStateError, OutboxFullError
from folio_events.models import Backfill
from folio_events.retry import is_transient
from folio_events.rows import Row, locked_rows
from folio_events.tenants import call_context, current_context, resolve_tenant, tenant_context
from folio_events.topics.declared import is_compacted

logger = logging.getLogger("folio_events.backfill")

State = Backfill.State
#: Event types of a back-fill. Source: mod-inventory-storage, DomainEventType.
TYPES = ("REINDEX", "ITERATE", "CREATE")
#: Header of every event of a back-fill: the job's id.
HEADER = "ce_backfill"
#: The same under FOLIO's names. Source: mod-inventory-storage, ReindexJobRunner, IterationJobRunner.
_FOLIO_HEADERS = {"REINDEX": "reindex-job-id", "ITERATE": "iteration-job-id"}
#: Most rows of one transaction; their writers wait for its end.
_CHUNK = 500
#: The same where keys are locked one by one: from 100 keys on their topic is locked as a whole.
_CHUNK_OF_KEYS = 50
#: Most messages that may wait in the outbox: live events queue up behind them.
_MOST_WAITING = 10_000
#: Below PostgreSQL's deadlock_timeout: of two that wait for each other, the back-fill gives way.
_LOCK_TIMEOUT = "200ms"
#: Seconds between two looks at an outbox that is too long, or two tries at a lock.
_PAUSE = 0.5
#: Seconds of trouble without a chunk in between after which a run ends.
_PATIENCE = 60.0
#: Estimates below this are counted.
_LEAST_ESTIMATE = 10_000


def start(
    declaration: ModelEvents,
    *,
    kind: str = "REINDEX",
    filters: Mapping[str, str] | None = None,
    since: object = None,
    every_row: bool = False,
    keys_only: bool = False,
    using: str = DEFAULT_DB_ALIAS,
    by: Actor = None,
) -> Backfill:
    """Begin a back-fill of the current tenant; ``run()`` does the work.

    Args:
        declaration: Of the model whose rows become events.
        kind: Event type, one of ``TYPES``.
        filters: Field lookups and values as text, such as ``{"title__startswith": "A"}``.
        since: Primary key behind which to begin; None: at the first row.
        every_row: Whether all rows are the current tenant's, where rows do not say whose they are.
        keys_only: Whether events have neither ``old`` nor ``new``, so that receivers have to ask.
        using: Database alias.
        by: Who starts it.

    Raises:
        InvalidStateError: A back-fill of this model and tenant is running.
        ConfigurationError: The type, a filter or the key cannot be; or the rows do not say
            whose they are.
    """
    if kind not in TYPES:
        raise ConfigurationError(
            f"A back-fill cannot be of {kind!r}: use one of {', '.join(TYPES)}."
        )
    if keys_only and is_compacted(declaration.topic):
        raise ConfigurationError(
            f"Topic {declaration.topic} is compacted: events without 'new' would take the place of "
            "those that have it. Leave out keys_only."
        )
    tenant, meant = scope(declaration, filters or {}, every_row=every_row)
    rows = matching_rows(declaration, meant, using=using)
    all_rows = matching_rows(declaration, {}, using=using)
    last = all_rows.order_by("-pk").values_list("pk", flat=True).first()
    now = timezone.now()
    job = Backfill(
        id=uuid.uuid4(),
        model=declaration.model._meta.label,
        event_type=kind,
        tenant=tenant or "",
        filters=dict(meant),
        keys_only=keys_only,
        state=State.DONE if last is None else State.RUNNING,
        worker=uuid.uuid4(),
        position=None if since is None else str(_key(declaration, since)),
        last=None if last is None else str(last),
        total=count_rows(_between(rows, _key(declaration, since), None), exact=False),
        created_at=now,
        updated_at=now,
    )
    try:
        with transaction.atomic(using=using):
            job.save(using=using, force_insert=True)
    except IntegrityError as error:
        raise InvalidStateError(_already(job, using)) from error
    log_action([job], f"Started a back-fill of {job.model} as {kind}.", by=by)
    return job


def resume(job_id: uuid.UUID, *, using: str = DEFAULT_DB_ALIAS, by: Actor = None) -> Backfill:
    """Take a back-fill over that was cancelled, or whose process has ended.

    Should that process still live, its next chunk fails.

    Raises:
        InvalidStateError: There is no such back-fill, it is done, or another of its model is
            running.
    """
    job = find(job_id, using=using)
    changed = Backfill.objects.using(using).filter(pk=job_id).exclude(state=State.DONE)
    try:
        with transaction.atomic(using=using):
            taken = changed.update(
                state=State.RUNNING, worker=uuid.uuid4(), updated_at=timezone.now()
            )
    except IntegrityError as error:
        raise InvalidStateError(_already(job, using)) from error
    if not taken:
        raise InvalidStateError(f"Back-fill {job_id} is done; start another.")
    job.refresh_from_db(using=using)
    log_action([job], "Resumed a back-fill.", by=by)
    return job


def cancel(job_id: uuid.UUID, *, using: str = DEFAULT_DB_ALIAS, by: Actor = None) -> bool:
    """Stop a back-fill after the chunk in hand; what it has recorded is published.

    Returns:
        Whether it was running.

    Raises:
        InvalidStateError: There is no such back-fill.
    """
    job = find(job_id, using=using)
    running = Backfill.objects.using(using).filter(pk=job_id, state=State.RUNNING)
    if not running.update(state=State.CANCELLED, updated_at=timezone.now()):
        return False
    log_action([job], "Cancelled a back-fill.", by=by)
    return True


def erase(tenant: str, *, using: str = DEFAULT_DB_ALIAS) -> int:
    """Delete the jobs of a tenant, whose filters may name people; one at work ends.

    Returns:
        How many there were.
    """
    deleted, _ = Backfill.objects.using(using).filter(tenant=tenant).delete()
    return deleted


def find(job_id: uuid.UUID, *, using: str = DEFAULT_DB_ALIAS) -> Backfill:
    """Find a back-fill by its id.

    Raises:
        InvalidStateError: There is none.
    """
    job = Backfill.objects.using(using).filter(pk=job_id).first()
    if job is None:
        raise InvalidStateError(f"There is no back-fill {job_id}.")
    return job


def run(
    job: Backfill,
    *,
    rate: float | None = None,
    stop: threading.Event | None = None,
    told: Callable[[int], object] = lambda _rows: None,
    held_up: Callable[[str], object] = lambda _reason: None,
    using: str = DEFAULT_DB_ALIAS,
) -> Backfill:
    """Work on a back-fill until it is done, cancelled or told to stop.

    Waits while the outbox is long, so that live events do not wait behind a back-fill.

    Args:
        job: As ``start()`` or ``resume()`` returned it.
        rate: Most events a second; None: as many as go.
        stop: Looked at between chunks.
        told: Told how many rows each chunk passed.
        held_up: Told once for each time that something else is waited for.
        using: Database alias.

    Returns:
        The job as it stands; still "running" where it was told to stop.

    Raises:
        InvalidStateError: Another process has taken the job over.
        OperationalError: The database refuses chunk after chunk.
    """
    stop = stop or threading.Event()
    size = most = _chunk_size(job, rate)
    trouble_since: float | None = None
    is_held_up = False
    while job.state == State.RUNNING and not stop.is_set():
        began = time.monotonic()
        connections[using].close_if_unusable_or_obsolete()
        try:
            reason = outbox_reason(using)
            passed = 0 if reason else step(job, limit=size, using=using)
        except OutboxFullError as error:
            reason = str(error)
        except OperationalError as error:
            trouble_since = trouble_since or began
            if not is_transient(error) or began - trouble_since > _PATIENCE:
                raise
            # Whoever holds one row shall not make others wait for the rest of the chunk.
            size = max(size // 10, 1)
            reason = f"rows are locked: {str(error).partition(chr(10))[0]}"
        if reason:
            if not is_held_up:
                held_up(reason)
            is_held_up = True
            stop.wait(_PAUSE)
            job.refresh_from_db(using=using, fields=["state"])
            continue
        trouble_since, is_held_up, size = None, False, min(size * 2, most)
        told(passed)
        if rate:
            stop.wait(max(passed / rate - (time.monotonic() - began), 0))
    return job


def outbox_reason(using: str) -> str:
    """Why nothing more should be recorded for now; empty where there is room."""
    settings = get_settings()
    soft, hard = settings.OUTBOX_SOFT_LIMIT, settings.OUTBOX_HARD_LIMIT
    limits = [limit for limit in (soft, hard and hard // 2, _MOST_WAITING) if limit is not None]
    waiting = outbox.backlog(using=using, limits=[min(limits)])
    if waiting < min(limits):
        return ""
    return f"at least {waiting} messages wait in the outbox; does a relay run?"


def step(job: Backfill, *, limit: int = _CHUNK, using: str = DEFAULT_DB_ALIAS) -> int:
    """Record the events of the next rows and move the job past them, in one transaction.

    The rows are locked while their events are written: an event says what its row is, and
    stands before the event of any later write.

    Args:
        job: Brought up to date.
        limit: Most rows.
        using: Database alias.

    Returns:
        How many rows were passed; 0 where the job has ended.

    Raises:
        InvalidStateError: Another process has taken the job over.
    """
    declaration = declared(job.model)
    with transaction.atomic(using=using, durable=True):
        _give_way(using)
        stored = Backfill.objects.using(using).select_for_update().filter(pk=job.pk).first()
        if stored is None:
            raise InvalidStateError(f"Back-fill {job.pk} was erased with its tenant.")
        if stored.worker != job.worker:
            raise InvalidStateError(f"Another process has taken back-fill {job.pk} over.")
        pks: list[Any] = []
        if stored.state == State.RUNNING:
            rows = matching_rows(declaration, stored.filters, using=using)
            span = _between(
                rows, _key(declaration, stored.position), _key(declaration, stored.last)
            )
            pks = list(span.order_by("pk").values_list("pk", flat=True)[:limit])
            if pks:
                stored.position = str(pks[-1])
                stored.passed += len(pks)
                stored.events += _record(declaration, rows, pks, stored, using)
            else:
                stored.state, stored.finished_at = State.DONE, timezone.now()
            stored.updated_at = timezone.now()
            stored.save(using=using)
    for name in ("state", "position", "passed", "events", "updated_at", "finished_at"):
        setattr(job, name, getattr(stored, name))
    return len(pks)


def republish(
    declaration: ModelEvents, pks: Collection[Any], *, kind: str, using: str = DEFAULT_DB_ALIAS
) -> int:
    """Record events of some rows of the current tenant, as a back-fill does.

    Args:
        declaration: Of their model.
        pks: Primary keys; those without a row are left out.
        kind: Event type.
        using: Database alias.

    Returns:
        How many events were recorded.
    """
    job = Backfill(id=uuid.uuid4(), event_type=kind, tenant=resolve_tenant() or "")
    rows = matching_rows(declaration, {}, using=using)
    recorded, ordered = 0, sorted(pks)
    for first in range(0, len(ordered), _CHUNK_OF_KEYS):
        with transaction.atomic(using=using):
            part = ordered[first : first + _CHUNK_OF_KEYS]
            recorded += _record(declaration, rows, part, job, using)
    return recorded


def count(
    declaration: ModelEvents,
    *,
    filters: Mapping[str, str] | None = None,
    since: object = None,
    every_row: bool = False,
    exact: bool = False,
    using: str = DEFAULT_DB_ALIAS,
) -> int:
    """Count the rows that a back-fill of these arguments would pass.

    Of a large table the planner's estimate, unless it is to be ``exact``.

    Raises:
        ConfigurationError: As of ``start()``.
    """
    _tenant, meant = scope(declaration, filters or {}, every_row=every_row)
    rows = matching_rows(declaration, meant, using=using)
    return count_rows(_between(rows, _key(declaration, since), None), exact=exact)


def as_dict(job: Backfill) -> dict[str, Any]:
    """A back-fill as JSON values."""
    return {
        "id": str(job.pk),
        "model": job.model,
        "type": job.event_type,
        "tenant": job.tenant or None,
        "state": str(job.state),
        "total": job.total,
        "passed": job.passed,
        "events": job.events,
        "created_at": job.created_at.isoformat(),
        "finished_at": job.finished_at and job.finished_at.isoformat(),
    }


def declared(label: str) -> ModelEvents:
    """The declaration of a model by its label.

    Raises:
        ConfigurationError: It has none.
    """
    for declaration in events:
        if declaration.model._meta.label_lower == label.lower():
            return declaration
    known = ", ".join(sorted(d.model._meta.label for d in events)) or "none"
    raise ConfigurationError(f"{label!r} is no model with events. Registered are: {known}.")


def scope(
    declaration: ModelEvents, filters: Mapping[str, str], *, every_row: bool
) -> tuple[str | None, dict[str, str]]:
    """Say whose rows are meant, and by which filters.

    Returns:
        The tenant, None where tenancy is off, and the filters with the tenant's own.

    Raises:
        ConfigurationError: The rows do not say whose they are.
        MissingTenantError: Tenancy is on and nobody names a tenant.
    """
    tenant = resolve_tenant()
    if tenant is None:
        return None, dict(filters)
    column = declaration.tenant_field
    if column is not None:
        return tenant, {**filters, column.name: tenant}
    if not (filters or every_row or declaration.tenant == tenant):
        raise ConfigurationError(
            f"The rows of {declaration.model._meta.label} do not say whose they are, so those of "
            f"other tenants would be published as {tenant}'s. Declare tenant = F('column') in "
            f"{declaration}, give a filter, or say that every row is {tenant}'s (--every-row)."
        )
    return tenant, dict(filters)


def matching_rows(
    declaration: ModelEvents, filters: Mapping[str, Any], *, using: str
) -> QuerySet[Model]:
    """The rows of a model that filters mean, past its managers: they may hide some.

    Raises:
        ConfigurationError: A filter cannot be.
    """
    rows: QuerySet[Model] = QuerySet(declaration.model, using=using)
    try:
        return rows.filter(**filters).order_by()
    except (FieldError, ValidationError, ValueError, TypeError) as error:
        raise ConfigurationError(f"The filter {dict(filters)} cannot be: {error}") from error


def count_rows(rows: QuerySet[Any], *, exact: bool) -> int:
    """Count rows; unless it is to be exact, those of a large table by the planner's estimate."""
    if not exact and connections[rows.db].vendor == "postgresql":
        plan = json.loads(rows.explain(format="json"))
        about = int(plan[0]["Plan"]["Plan Rows"])
        if about >= _LEAST_ESTIMATE:
            return about
    return rows.count()


def _record(
    declaration: ModelEvents, rows: QuerySet[Any], pks: Sequence[Any], job: Backfill, using: str
) -> int:
    """Record the events of rows that still exist and are still meant."""
    names = [HEADER, *filter(None, [_FOLIO_HEADERS.get(job.event_type)])]
    with tenant_context(job.tenant or None):
        context = current_context()
        marks = dict.fromkeys(names, str(job.pk))
        with call_context(replace(context, headers={**context.headers, **marks})):
            found = locked_rows(declaration, pks, using=using)
            # Locked now: of a row that has just been changed it can be told whether it is meant.
            meant = set(rows.filter(pk__in=found).values_list("pk", flat=True))
            kept = [row for pk, row in found.items() if pk in meant]
            if job.keys_only:
                _record_keys(declaration, kept, job.event_type, using)
            else:
                changes = [Change(declaration, job.event_type, None, row) for row in kept]
                record_changes(changes, using=using)
    return len(kept)


def _record_keys(declaration: ModelEvents, rows: Sequence[Row], kind: str, using: str) -> None:
    values = [row[declaration.key_position] for row in rows]
    keys = [None if value is None else str(value) for value in values]
    made = [outbox.new_event(declaration.topic, kind, key, {}) for key in keys]
    if made and declaration.ordered and events.shares_keys(declaration):
        named = [(event.topic, event.tenant, event.key) for event in made if event.key is not None]
        outbox.lock_keys(named, using=using)
    if made:
        outbox.append([outbox.make_row(e, declaration.dialect) for e in made], using=using)


def _between(rows: QuerySet[Any], after: object, last: object) -> QuerySet[Any]:
    if after is not None:
        rows = rows.filter(pk__gt=after)
    return rows if last is None else rows.filter(pk__lte=last)


def _key(declaration: ModelEvents, text: object) -> Any:
    try:
        return None if text is None else declaration.model._meta.pk.to_python(text)
    except ValidationError as error:
        label = declaration.model._meta.label
        raise ConfigurationError(f"{text!r} is no primary key of {label}.") from error


def _chunk_size(job: Backfill, rate: float | None) -> int:
    declaration = declared(job.model)
    size = _CHUNK_OF_KEYS if events.shares_keys(declaration) else _CHUNK
    return size if rate is None else max(min(size, int(rate)), 1)


def _give_way(using: str) -> None:
    if connections[using].vendor == "postgresql":
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [_LOCK_TIMEOUT])


def _already(job: Backfill, using: str) -> str:
    rows = Backfill.objects.using(using).filter(state=State.RUNNING, model=job.model)
    other = rows.filter(tenant=job.tenant).first()
    if other is None:
        return f"Another back-fill of {job.model} was running just now; try again."
    quiet = (timezone.now() - other.updated_at).total_seconds()
    return (
        f"Back-fill {other.pk} of {job.model} is running: {other.passed} rows done, the last "
        f"{quiet:.0f} s ago. Resume it if its process has ended, or cancel it."
    )
