"""Whose call it is: contexts, their limits, the middleware, the order of who is asked."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse
from django.test import AsyncRequestFactory, RequestFactory
from django.utils import timezone

from folio_events import Event, current_tenant, tenant_context
from folio_events.dialects import read_headers
from folio_events.exceptions import InvalidTenantError, MissingTenantError
from folio_events.tenants import (
    CallContext,
    TenantMiddleware,
    call_context,
    current_context,
    event_context,
    forwarded,
    record_headers,
    resolve_tenant,
)
from tests.unit.vectors import cases

Change = Callable[..., None]


def resolver() -> str | None:
    """The resolver that the tests name in TENANT_RESOLVER."""
    return "resolved"


def silent_resolver() -> str | None:
    return None


RESOLVER = f"{__name__}.resolver"
SILENT = f"{__name__}.silent_resolver"


# Contexts


def test_contexts_nest() -> None:
    """The tenant is that of the innermost block, and none outside of all."""
    assert current_tenant() is None
    with tenant_context("outer"):
        with tenant_context("inner"):
            assert current_tenant() == "inner"
        assert current_tenant() == "outer"
        with tenant_context(None):
            assert current_tenant() is None
    assert current_tenant() is None


def test_a_context_ends_with_an_error() -> None:
    """Whatever leaves the block, the tenant does not leak out of it."""
    with pytest.raises(ValueError, match="oops"), tenant_context("diku"):
        raise ValueError("oops")

    assert current_tenant() is None


def test_a_change_of_tenant_keeps_request_and_cause() -> None:
    """Only the tenant is another."""
    cause = uuid.uuid4()
    context = CallContext(tenant="a", headers={"x-okapi-request-id": "1"}, cause_id=cause)

    with call_context(context), tenant_context("b"):
        assert current_context() == CallContext(
            tenant="b", headers={"x-okapi-request-id": "1"}, cause_id=cause
        )


@pytest.mark.parametrize("tenant", ["b", None])
def test_a_change_of_tenant_leaves_the_token_and_user_behind(tenant: str | None) -> None:
    """They are the other tenant's, and what is left names nobody else."""
    headers = {
        "x-okapi-url": "http://okapi",
        "x-okapi-tenant": "a",
        "x-okapi-token": "of a",
        "x-okapi-user-id": "of a",
        "x-okapi-request-id": "1",
    }
    with call_context(CallContext(tenant="a", headers=headers)):
        with tenant_context("a"):
            assert current_context().headers == headers
        with tenant_context(tenant):
            kept = dict(current_context().headers)
    named = {"x-okapi-tenant": tenant} if tenant else {}
    assert kept == {"x-okapi-url": "http://okapi", "x-okapi-request-id": "1", **named}


def test_threads_have_contexts_of_their_own() -> None:
    """A thread does not see the tenant of the one that started it."""
    seen: list[str | None] = []

    with tenant_context("diku"):
        thread = threading.Thread(target=lambda: seen.append(current_tenant()))
        thread.start()
        thread.join()

    assert seen == [None]


def test_tasks_do_not_mix_their_contexts() -> None:
    """Two coroutines that take turns keep each its tenant."""

    async def ask(tenant: str) -> list[str | None]:
        seen = []
        with tenant_context(tenant):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(current_tenant())
        return seen

    async def both() -> list[list[str | None]]:
        return list(await asyncio.gather(ask("a"), ask("b")))

    assert asyncio.run(both()) == [["a"] * 3, ["b"] * 3]


def test_threads_of_sync_to_async_keep_the_context_of_their_caller() -> None:
    """And of two callers in one pool each gets its own; nothing is left in the threads."""

    async def ask(tenant: str | None) -> set[str | None]:
        with tenant_context(tenant):
            look = sync_to_async(current_tenant, thread_sensitive=False)
            return {await look() for _ in range(5)}

    async def both() -> list[set[str | None]]:
        return list(await asyncio.gather(ask("a"), ask("b"), ask(None)))

    assert asyncio.run(both()) == [{"a"}, {"b"}, {None}]


def test_a_task_that_is_started_in_a_context_stays_in_it() -> None:
    """Also after the block that started it has ended; one started elsewhere does not join it."""

    async def main() -> list[str | None]:
        go = asyncio.Event()

        async def later() -> str | None:
            await go.wait()
            return current_tenant()

        with tenant_context("a"):
            inside = asyncio.create_task(later())
        outside = asyncio.create_task(later())
        go.set()
        return [await inside, await outside, current_tenant()]

    assert asyncio.run(main()) == ["a", None, None]


def test_a_receiver_runs_in_the_tenant_and_request_of_its_event() -> None:
    """The event becomes the cause; of its headers only those of the call are carried on."""
    event = Event(
        id=uuid.uuid4(),
        topic="inventory.item",
        type="UPDATE",
        key=None,
        tenant="diku",
        occurred_at=timezone.now(),
        payload={},
        headers={
            "x-okapi-request-id": "1",
            "x-okapi-user-id": "u",
            "x-okapi-url": "",
            "ce_id": "other",
        },
    )

    with tenant_context("somebody else"), event_context(event):
        context = current_context()

    assert (context.tenant, context.cause_id) == ("diku", event.id)
    assert context.headers == {"x-okapi-request-id": "1", "x-okapi-user-id": "u"}


# Who is asked


def test_without_tenancy_nobody_is_asked(folio_events: Change) -> None:
    """A tenant that is set all the same plays no part."""
    folio_events(TENANCY=None, TENANT_RESOLVER="not.imported")

    with tenant_context("diku"):
        assert resolve_tenant() is None


@pytest.mark.parametrize(
    ("current", "keys", "expected"),
    [
        ("current", {"TENANT_RESOLVER": RESOLVER, "DEFAULT_TENANT": "default"}, "current"),
        (None, {"TENANT_RESOLVER": RESOLVER, "DEFAULT_TENANT": "default"}, "resolved"),
        ("", {"TENANT_RESOLVER": RESOLVER}, "resolved"),
        (None, {"TENANT_RESOLVER": SILENT, "DEFAULT_TENANT": "default"}, "default"),
        (None, {"DEFAULT_TENANT": "default"}, "default"),
    ],
    ids=["context", "resolver", "blank", "silent resolver", "default"],
)
def test_context_resolver_and_default_are_asked_in_turn(
    folio_events: Change, current: str | None, keys: dict[str, Any], expected: str
) -> None:
    """Whoever names a tenant first decides."""
    folio_events(TENANCY="folio", **keys)

    with tenant_context(current):
        assert resolve_tenant() == expected


@pytest.mark.parametrize("keys", [{}, {"TENANT_RESOLVER": SILENT}], ids=["nobody", "resolver"])
def test_a_missing_tenant_is_refused_with_all_ways_to_name_one(
    folio_events: Change, keys: dict[str, Any]
) -> None:
    """The error names the context, the middleware and both settings."""
    folio_events(TENANCY="folio", **keys)

    with pytest.raises(MissingTenantError) as caught:
        resolve_tenant()

    for way in ("tenant_context", "TenantMiddleware", "TENANT_RESOLVER", "DEFAULT_TENANT"):
        assert way in str(caught.value)


@pytest.mark.parametrize(
    "tenant", ["a.b", "a b", "../x", "ä", "diku\n", "a/b", "*", "a" * 201], ids=repr
)
def test_a_tenant_that_can_be_no_segment_of_a_topic_is_refused(
    folio_events: Change, tenant: str
) -> None:
    """Its topic would be another tenant's, nobody's, or none that Kafka takes."""
    folio_events(TENANCY="folio")

    with tenant_context(tenant), pytest.raises(InvalidTenantError, match="is no tenant"):
        resolve_tenant()


@pytest.mark.parametrize("tenant", ["ALL", "Default"])
def test_a_tenant_named_like_another_part_of_a_topic_is_refused(
    folio_events: Change, tenant: str
) -> None:
    """Who reads its topics would take them for all tenants', or for a namespace's."""
    folio_events(
        TENANCY="folio", TENANT_COLLECTION="ALL", TOPICS={"DI_ERROR": {"NAMESPACE": "Default"}}
    )

    with tenant_context(tenant), pytest.raises(InvalidTenantError, match="stands for the"):
        resolve_tenant()


# The middleware

HEADERS = {
    "X-Okapi-Tenant": "diku",
    "X-Okapi-Request-Id": "12/items",
    "X-Okapi-Url": "http://okapi:9130",
    "X-Okapi-User-Id": "",
    "Authorization": "secret",
}
CARRIED = {
    "x-okapi-tenant": "diku",
    "x-okapi-request-id": "12/items",
    "x-okapi-url": "http://okapi:9130",
}


def test_a_request_sets_tenant_and_headers() -> None:
    """Only the headers that FOLIO forwards are carried on, and no empty ones."""
    seen: list[CallContext] = []

    def view(_request: HttpRequest) -> HttpResponse:
        seen.append(current_context())
        return HttpResponse("done")

    response = TenantMiddleware(view)(RequestFactory().get("/", headers=HEADERS))

    assert isinstance(response, HttpResponse)
    assert response.content == b"done"
    assert seen == [CallContext(tenant="diku", headers=CARRIED)]
    assert current_context() == CallContext()


def test_a_request_without_tenant_has_none() -> None:
    """It does not inherit what the worker's thread was left with."""
    seen: list[str | None] = []

    def view(_request: HttpRequest) -> HttpResponse:
        seen.append(current_tenant())
        return HttpResponse()

    with tenant_context("left over"):
        TenantMiddleware(view)(RequestFactory().get("/"))

    assert seen == [None]


def test_a_request_that_fails_leaves_nothing_behind() -> None:
    """The next request in the thread starts clean."""

    def view(_request: HttpRequest) -> HttpResponse:
        raise ValueError("oops")

    with pytest.raises(ValueError, match="oops"):
        TenantMiddleware(view)(RequestFactory().get("/", headers=HEADERS))

    assert current_context() == CallContext()


def test_an_async_request_sets_tenant_and_headers() -> None:
    """The middleware is asynchronous where its neighbour is, and keeps requests apart."""
    seen: dict[str, list[str | None]] = {}

    async def view(request: HttpRequest) -> HttpResponse:
        for _ in range(3):
            await asyncio.sleep(0)
            seen.setdefault(request.path, []).append(current_tenant())
        return HttpResponse(current_context().headers["x-okapi-request-id"])

    middleware = TenantMiddleware(view)
    assert iscoroutinefunction(middleware)

    async def ask(tenant: str) -> HttpResponse:
        headers = {**HEADERS, "X-Okapi-Tenant": tenant}
        request = AsyncRequestFactory().get(f"/{tenant}", headers=headers)
        answer: Any = middleware(request)
        response: HttpResponse = await answer
        return response

    async def both() -> list[HttpResponse]:
        return list(await asyncio.gather(ask("a"), ask("b")))

    responses = asyncio.run(both())

    assert seen == {"/a": ["a"] * 3, "/b": ["b"] * 3}
    assert [response.content for response in responses] == [b"12/items"] * 2
    assert current_context() == CallContext()


def test_the_middleware_is_synchronous_where_its_neighbour_is() -> None:
    """Django asks to know whether it has to switch."""
    assert not iscoroutinefunction(TenantMiddleware(lambda _request: HttpResponse()))


# Headers


@pytest.mark.parametrize("case", cases("record_headers"))
def test_a_message_has_the_headers_that_folios_builder_writes(case: dict[str, Any]) -> None:
    """The tenant first, then those of the request that are carried on, then what is added."""
    given, expected = case["input"], case["expected"]
    built = record_headers(
        tenant=given["tenant"],
        okapi_headers=given.get("okapi_headers") or {},
        extra=given.get("extra"),
    )
    names = [name for name, _ in built]
    assert names == expected.get("header_names_in_order", names)
    assert len(built) == expected.get("count", len(built))
    assert dict(built) == expected.get("headers", dict(built))
    assert expected.get("headers_include", {}).items() <= dict(built).items()
    assert not {name.lower() for name in expected.get("headers_exclude", [])} & set(names)


def test_five_headers_of_a_request_are_carried_on_and_no_other() -> None:
    """Whatever the letter case of their names."""
    request = {
        "X-Okapi-Url": "u",
        "x-okapi-TENANT": "diku",
        "X-Okapi-Token": "t",
        "X-Okapi-Request-Id": "1",
        "X-Okapi-User-Id": "ann",
        "X-Okapi-Permissions": "[]",
        "X-Okapi-Module-Id": "mod-x",
        "Authorization": "secret",
    }
    assert forwarded(request) == list(request.items())[:5]


@pytest.mark.parametrize("case", cases("headers_to_map"))
def test_headers_read_as_folio_reads_them(case: dict[str, Any]) -> None:
    """Whatever their case; of duplicates the first that is not blank, and no value as ""."""
    given, expected = case["input"], case["expected"]
    found = read_headers(
        [(name, None if value is None else value.encode()) for name, value in given["headers"]]
    )
    if "override_tenant" in given:
        context = CallContext(tenant=found["x-okapi-tenant"], headers=found)
        with call_context(context), tenant_context(given["override_tenant"]):
            found = dict(current_context().headers)
    for name, value in {**expected.get("map", {}), **expected.get("lookup", {})}.items():
        assert found[name.lower()] == value
    assert len(found) == expected.get("distinct_count", len(found))


def test_a_repeated_header_reads_as_its_first_value_that_is_not_blank() -> None:
    """Across spellings, too; what is blank everywhere reads as blank."""
    found = read_headers([("A", None), ("a", b" "), ("A", b"first"), ("a", b"second"), ("b", None)])
    assert found == {"a": "first", "b": ""}
