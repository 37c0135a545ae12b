"""Whose call this is: the current tenant, request id and cause, and the middleware that sets them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string

from folio_events.conf import get_settings
from folio_events.event import Event
from folio_events.exceptions import InvalidTenantError, MissingTenantError

#: The headers of a call that its events carry on, no others.
#: Source: folio-kafka-wrapper, KafkaHeaderUtils.
FORWARDED = (
    "x-okapi-url",
    "x-okapi-tenant",
    "x-okapi-token",
    "x-okapi-request-id",
    "x-okapi-user-id",
)


_TENANT = re.compile(r"[A-Za-z0-9_-]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """What events inherit from the call in which they are recorded."""

    tenant: str | None = None
    #: Forwarded headers, names in lower case; one of them is a token.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Id of the event whose receiver is running.
    cause_id: uuid.UUID | None = None


_current: ContextVar[CallContext] = ContextVar("folio_events_call", default=CallContext())  # noqa: B039 - frozen


def current_context() -> CallContext:
    """The context of the running call."""
    return _current.get()


def current_tenant() -> str | None:
    """The tenant that was set by ``tenant_context``, the middleware or the consumer."""
    return _current.get().tenant


@contextmanager
def call_context(context: CallContext) -> Iterator[None]:
    """Run a block under another context; safe in threads and async code."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def tenant_context(tenant: str | None) -> Iterator[None]:
    """Run a block as one tenant; request id and cause stay."""
    with call_context(replace(_current.get(), tenant=tenant)):
        yield


@contextmanager
def event_context(event: Event) -> Iterator[None]:
    """Run a block in the tenant and under the request of an event, which becomes the cause."""
    headers = {name: event.headers[name] for name in FORWARDED if event.headers.get(name)}
    with call_context(CallContext(tenant=event.tenant, headers=headers, cause_id=event.id)):
        yield


def resolve_tenant() -> str | None:
    """Say whose event is being recorded: context, TENANT_RESOLVER, DEFAULT_TENANT.

    Returns:
        The tenant, or None where tenancy is off.

    Raises:
        MissingTenantError: Tenancy is on and none of the three names a tenant.
        InvalidTenantError: The one that is named cannot stand in a topic.
    """
    settings = get_settings()
    if settings.TENANCY is None:
        return None
    tenant = current_tenant()
    if not tenant and settings.TENANT_RESOLVER:
        tenant = import_string(settings.TENANT_RESOLVER)()
    tenant = tenant or settings.DEFAULT_TENANT
    if not tenant:
        raise MissingTenantError(
            "No tenant for this event. Wrap the write in tenant_context('...'), add "
            "folio_events.tenants.TenantMiddleware, or set TENANT_RESOLVER or DEFAULT_TENANT "
            "in FOLIO_EVENTS."
        )
    if not _TENANT.fullmatch(tenant):
        # With a dot in it, its topics would match no subscription.
        raise InvalidTenantError(
            f"{tenant!r} is no tenant: it has to be a segment of a topic, made of at most 200 "
            "letters, digits, '_' and '-'."
        )
    return tenant


def _from_request(request: HttpRequest) -> CallContext:
    headers = {name: request.headers[name] for name in FORWARDED if request.headers.get(name)}
    return CallContext(tenant=headers.get("x-okapi-tenant"), headers=headers)


class TenantMiddleware:
    """Sets the tenant and the forwarded headers from the request; works sync and async."""

    sync_capable = True
    async_capable = True

    def __init__(
        self,
        get_response: Callable[[HttpRequest], HttpResponseBase]
        | Callable[[HttpRequest], Awaitable[HttpResponseBase]],
    ) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if iscoroutinefunction(self.get_response):
            return self._acall(request)
        with call_context(_from_request(request)):
            return self.get_response(request)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        with call_context(_from_request(request)):
            response: HttpResponseBase = await self.get_response(request)  # type: ignore[misc]  # checked in __call__
            return response
