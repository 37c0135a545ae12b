"""FOLIO's tenant call: ``POST /_/tenant`` creates a tenant's topics, keeps them, deletes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.test import RequestFactory, override_settings
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory, force_authenticate

from folio_events.api.tenant import TenantView
from folio_events.brokers import get_broker
from folio_events.brokers.memory import MemoryBroker
from folio_events.provisioning import enable_tenant

pytestmark = pytest.mark.django_db

ENABLE = {"module_to": "mod-library-1.1.0"}
DISABLE = {"module_from": "mod-library-1.1.0"}
PURGE = {**DISABLE, "purge": True}


class AllowAll(BasePermission):
    """A permission of the project's own."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return True


@pytest.fixture(autouse=True)
def broker(folio_events: Callable[..., None]) -> MemoryBroker:
    folio_events(TENANCY="folio", BROKER={"BACKEND": "folio_events.brokers.memory.MemoryBroker"})
    found = get_broker()
    assert isinstance(found, MemoryBroker)
    return found


def call(
    body: object, *, user: Any, tenant: str | None = "diku", text: str | None = None
) -> Response:
    headers = {} if tenant is None else {"X-Okapi-Tenant": tenant}
    request = APIRequestFactory().post(
        "/_/tenant",
        text if text is not None else json.dumps(body),
        content_type="application/json",
        headers=headers,
    )
    if user is not None:
        force_authenticate(request, user)
    response = TenantView.as_view()(request)
    response.render()
    return response


def test_a_tenant_is_enabled_and_again_nothing_changes(
    broker: MemoryBroker, admin_user: User
) -> None:
    """204, as FOLIO's modules answer that have nothing left to do; no job to ask for."""
    body = {**ENABLE, "module_from": "mod-library-1.0.0", "purge": False,
            "parameters": [{"key": "loadReference", "value": "true"}]}  # fmt: skip
    first = call(body, user=admin_user)
    there = broker.list_topics("")
    second = call(body, user=admin_user)

    assert (first.status_code, second.status_code) == (204, 204)
    assert first.content == b""
    assert "folio.diku.library.book" in there
    assert broker.list_topics("") == there


def test_a_disable_keeps_topics_and_a_purge_deletes_them(
    broker: MemoryBroker, admin_user: User
) -> None:
    """Those of the tenant that is named in the header; another's stay."""
    enable_tenant("diku")
    kept = enable_tenant("college")

    assert call(DISABLE, user=admin_user).status_code == 204
    assert "folio.diku.library.book" in broker.list_topics("")
    assert call(PURGE, user=admin_user).status_code == 204

    assert "folio.diku.library.book" not in broker.list_topics("")
    assert kept <= broker.list_topics("")
    assert call(PURGE, user=admin_user).status_code == 204


def test_a_purge_under_a_collection_deletes_nothing(
    folio_events: Callable[..., None], admin_user: User
) -> None:
    """The topics are other tenants' too."""
    folio_events(TENANT_COLLECTION="ALL")
    call(ENABLE, user=admin_user)
    before = get_broker().list_topics("")

    assert call(PURGE, user=admin_user).status_code == 204

    assert get_broker().list_topics("") == before != set()


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "module_to"),
        ({"module_to": ""}, "module_to"),
        ({"module_to": None, "module_from": None}, "module_to"),
        ({**ENABLE, "purge": True}, "purge"),
        ({**DISABLE, "purge": "perhaps"}, "purge"),
        ({"module_to": ["a"]}, "module_to"),
        ({**ENABLE, "parameters": {"key": "x"}}, "parameters"),
        ({**ENABLE, "parameters": [{"value": "x"}]}, "key"),
        ([], "dictionary"),
    ],
)
def test_a_body_that_cannot_be_is_refused(
    broker: MemoryBroker, admin_user: User, body: object, word: str
) -> None:
    """400, which says what is wrong; nothing is created."""
    response = call(body, user=admin_user)

    assert response.status_code == 400
    assert word in response.content.decode()
    assert broker.list_topics("") == set()


def test_a_text_that_is_no_json_is_refused(admin_user: User) -> None:
    """400 as well."""
    assert call(None, user=admin_user, text="{").status_code == 400


def test_a_body_that_is_nested_without_end_is_refused(admin_user: User) -> None:
    """400, not a failure: whoever calls may send what he likes."""
    deep = '{"parameters": ' + "[" * 100_000 + "]" * 100_000 + "}"

    response = call(None, user=admin_user, text=deep)

    assert response.status_code == 400
    assert "nested too deeply" in response.content.decode()


def test_a_body_that_is_too_large_is_refused(admin_user: User, settings: Any) -> None:
    """413 from the size on that the project allows a request."""
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100

    assert call(ENABLE, user=admin_user).status_code == 204
    assert call({**ENABLE, "module_from": "x" * 100}, user=admin_user).status_code == 413


def test_calls_are_throttled_as_those_of_the_api_are(admin_user: User, settings: Any) -> None:
    """At the rate that the project names, since a call asks the broker."""
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"folio_events": "2/hour"}}

    answers = [call(DISABLE, user=admin_user).status_code for _ in range(3)]

    assert answers == [204, 204, 429]


@pytest.mark.parametrize("tenant", [None, "", "di.ku", "../x", "x" * 201])
def test_a_tenant_that_cannot_be_is_refused(
    broker: MemoryBroker, admin_user: User, tenant: str | None
) -> None:
    """Missing, or no segment of a topic."""
    for body in (ENABLE, DISABLE, PURGE):
        assert call(body, user=admin_user, tenant=tenant).status_code == 400
    assert broker.list_topics("") == set()


def test_only_staff_with_the_permission_may_call(
    broker: MemoryBroker, django_user_model: type[User]
) -> None:
    """A superuser has it; others are refused before anything is read."""
    staff = django_user_model.objects.create_user("staff", is_staff=True)
    member = django_user_model.objects.create_user("member")
    permission = Permission.objects.get(codename="provision_tenant")
    member.user_permissions.add(permission)
    for user in (None, AnonymousUser(), member, staff):
        assert call(ENABLE, user=user).status_code == 403
    assert broker.list_topics("") == set()

    staff.user_permissions.add(permission)
    granted = django_user_model.objects.get(pk=staff.pk)

    assert call(ENABLE, user=granted).status_code == 204


def test_a_project_may_ask_for_another_permission(folio_events: Callable[..., None]) -> None:
    """Okapi has no user in Django; what its token is worth, the project knows."""
    folio_events(TENANT_API_PERMISSION="tests.integration.api.test_tenant.AllowAll")

    assert call(ENABLE, user=None).status_code == 204
    assert call(PURGE, user=None).status_code == 204


def test_a_broker_that_is_away_is_told(broker: MemoryBroker, admin_user: User) -> None:
    """503: the caller may try again."""
    broker.available = False

    response = call(ENABLE, user=admin_user)

    assert response.status_code == 503
    assert "BrokerUnavailableError" in response.content.decode()


def test_the_urls_can_be_included() -> None:
    """Where the project likes; FOLIO calls it at the root."""
    from django.urls import resolve

    with override_settings(ROOT_URLCONF="folio_events.api.urls"):
        assert resolve("/_/tenant").func.view_class is TenantView  # type: ignore[attr-defined]  # Django's own
    assert TenantView.as_view()(RequestFactory().get("/_/tenant")).status_code in (403, 405)
