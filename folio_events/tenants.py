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

from folio_events import topics
from folio_events.conf import get_settings
from folio_events.event import Event
from folio_events.exceptions import InvalidTenantError, MissingTenantError
from folio_events.ownership import OKAPI_TENANT, TENANT_HEADER, is_tenant

TOKEN_HEADER = "x-okapi-token"  # noqa: S105 - a name
#: The headers of a call that its events carry on, no others.
#: Source: folio-kafka-wrapper, KafkaProducerRecordBuilder.
FORWARDED = (
    "x-okapi-url",
    OKAPI_TENANT,
    TOKEN_HEADER,
    "x-okapi-request-id",
    "x-okapi-user-id",
)
#: The trace that a call belongs to. Source: W3C Trace Context.
TRACE_HEADERS = ("traceparent", "tracestate")
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACESTATE = re.compile(r"[ -~]{1,512}")
#: Of these, what another tenant knows nothing of.
_OF_TENANT = frozenset((OKAPI_TENANT, TOKEN_HEADER, "x-okapi-user-id"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """What events inherit from the call in which they are recorded."""

    tenant: str | None = None
    #: Forwarded headers, names in lower case; one of them is a token.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Id of the event whose receiver is running.
    cause_id: uuid.UUID | None = None


_current: ContextVar[CallContext] = ContextVar("folio_events_call", default=CallContext())  # noqa: B039 - frozen


#: Says the trace headers of the running span; set by ``tracing``.
_span_headers: Callable[[], Mapping[str, str]] | None = None


def current_context() -> CallContext:
    """The context of the running call."""
    context = _current.get()
    found = _span_headers() if _span_headers else None
    if not found:
        return context
    others = {name: text for name, text in context.headers.items() if name not in TRACE_HEADERS}
    return replace(context, headers={**others, **found})


def ask_for_trace(span_headers: Callable[[], Mapping[str, str]] | None) -> None:
    """Have the running span, where there is one, stand in the context of each call."""
    global _span_headers
    _span_headers = span_headers


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
    """Run a block as one tenant; request id and cause stay, another's token and user do not."""
    context = _current.get()
    headers = _as_tenant(context.headers, context.tenant, tenant)
    with call_context(replace(context, tenant=tenant, headers=headers)):
        yield


@contextmanager
def event_context(event: Event) -> Iterator[None]:
    """Run a block in the tenant and under the request of an event, which becomes the cause."""
    headers = {**dict(forwarded(event.headers)), **trace_headers(event.headers)}
    if event.tenant is not None:
        # They may be another's where a person has assigned the event.
        headers = _as_tenant(headers, headers.get(OKAPI_TENANT, event.tenant), event.tenant)
    with call_context(CallContext(tenant=event.tenant, headers=headers, cause_id=event.id)):
        yield


def _as_tenant(
    headers: Mapping[str, str], before: str | None, tenant: str | None
) -> dict[str, str]:
    if before == tenant:
        return dict(headers)
    kept = {name: value for name, value in headers.items() if name not in _OF_TENANT}
    return {**kept, OKAPI_TENANT: tenant} if tenant and OKAPI_TENANT in headers else kept


def forwarded(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Those of some headers that FOLIO carries on, in the sender's order and spelling."""
    return [(name, value) for name, value in headers.items() if value and name.lower() in FORWARDED]


def trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The trace that some headers name, names in lower case; empty where it is not well formed."""
    parent = headers.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    state = headers.get("tracestate", "")
    return {
        "traceparent": parent,
        **({"tracestate": state} if _TRACESTATE.fullmatch(state) else {}),
    }


def record_headers(
    *, tenant: str, okapi_headers: Mapping[str, str], extra: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """The headers of a message that FOLIO's modules expect.

    Args:
        tenant: Its owner.
        okapi_headers: Of the request, or all that a caller has: five of them are carried on.
        extra: Further ones, taken as they are.

    Source:
        folio-kafka-wrapper, KafkaProducerRecordBuilder.
    """
    return [(TENANT_HEADER, tenant), *forwarded(okapi_headers), *(extra or {}).items()]


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
    if not is_tenant(tenant):
        raise InvalidTenantError(
            f"{tenant!r} is no tenant: it has to be a segment of a topic, made of at most 200 "
            "letters, digits, '_' and '-'."
        )
    if other := topics.stands_for(tenant, settings):
        raise InvalidTenantError(f"{tenant!r} is no tenant: in topics it stands for {other}.")
    return tenant


def _from_request(request: HttpRequest) -> CallContext:
    headers = {name: request.headers[name] for name in FORWARDED if request.headers.get(name)}
    headers |= trace_headers(request.headers)
    return CallContext(tenant=headers.get(OKAPI_TENANT), headers=headers)


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
