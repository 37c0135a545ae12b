"""Reliable domain events for Django. The public names; all else may change."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from folio_events.declarations import ModelEvents, events
    from folio_events.environment import settings_from_env
    from folio_events.event import Event
    from folio_events.exceptions import RejectEvent, RetryLater
    from folio_events.hooks import suppress_events
    from folio_events.publishing import apublish, publish
    from folio_events.receivers import receiver
    from folio_events.retry import CircuitBreaker, RetryPolicy
    from folio_events.running import claim, idempotency_key
    from folio_events.tenants import current_tenant, tenant_context
    from folio_events.topics.declared import Topic, declare_topic

__all__ = [
    "CircuitBreaker",
    "Event",
    "ModelEvents",
    "RejectEvent",
    "RetryLater",
    "RetryPolicy",
    "Topic",
    "apublish",
    "claim",
    "current_tenant",
    "declare_topic",
    "events",
    "idempotency_key",
    "publish",
    "receiver",
    "settings_from_env",
    "suppress_events",
    "tenant_context",
]

_HOMES = {
    "CircuitBreaker": "retry",
    "Event": "event",
    "ModelEvents": "declarations",
    "RejectEvent": "exceptions",
    "RetryLater": "exceptions",
    "RetryPolicy": "retry",
    "Topic": "topics.declared",
    "apublish": "publishing",
    "claim": "running",
    "current_tenant": "tenants",
    "declare_topic": "topics.declared",
    "events": "declarations",
    "idempotency_key": "running",
    "publish": "publishing",
    "receiver": "receivers",
    "settings_from_env": "environment",
    "suppress_events": "hooks",
    "tenant_context": "tenants",
}


def __getattr__(name: str) -> object:
    # Lazy: Django imports this package before its apps are ready, settings.py before that.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
