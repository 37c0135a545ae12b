"""Celery tasks run in the tenant, and under the request and cause, of the code that sent them."""

from __future__ import annotations

import uuid
from contextlib import AbstractContextManager
from typing import Any

from celery.signals import before_task_publish, task_postrun, task_prerun

from folio_events.tenants import (
    TOKEN_HEADER,
    CallContext,
    call_context,
    current_context,
    forwarded,
    trace_headers,
)

#: The header of a task's message; it lies in Celery's queue in clear.
HEADER = "folio_events"
#: By task id, in the process that runs them.
_entered: dict[str, AbstractContextManager[None]] = {}


def install() -> None:
    """Listen to Celery; again is the same as once."""
    before_task_publish.connect(_send, dispatch_uid="folio_events.task_context")
    task_prerun.connect(_enter, dispatch_uid="folio_events.task_context")
    task_postrun.connect(_leave, dispatch_uid="folio_events.task_context")


def _send(headers: dict[str, Any] | None = None, **_kwargs: Any) -> None:
    context = current_context()
    if headers is None or context == CallContext():
        return
    headers[HEADER] = {
        "tenant": context.tenant,
        "cause": context.cause_id and str(context.cause_id),
        # A queue keeps what it is given: the token stays behind.
        "headers": {name: value for name, value in context.headers.items() if name != TOKEN_HEADER},
    }


def _enter(task_id: str, task: Any, **_kwargs: Any) -> None:
    # Tasks that run where they are called have their caller's context already.
    sent = task.request.get(HEADER)
    if task.request.is_eager or not isinstance(sent, dict):
        return
    cause, headers = sent.get("cause"), sent.get("headers") or {}
    context = CallContext(
        tenant=sent.get("tenant"),
        headers={**dict(forwarded(headers)), **trace_headers(headers)},
        cause_id=uuid.UUID(cause) if cause else None,
    )
    _entered[task_id] = call_context(context)
    _entered[task_id].__enter__()


def _leave(task_id: str, **_kwargs: Any) -> None:
    entered = _entered.pop(task_id, None)
    if entered is not None:
        entered.__exit__(None, None, None)
