"""Fixtures of the tests of the REST API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.test import Client

#: Where the tests' project includes the API.
ROOT = "/folio-events"


@pytest.fixture(autouse=True)
def _project(settings: Any) -> None:
    """A project that includes nothing but the API."""
    settings.ROOT_URLCONF = "folio_events.api.urls"
    cache.clear()  # what throttles have counted


class Api:
    """Calls of one user, who is logged in as a browser is.

    Args:
        user: None: nobody is logged in.
        csrf: Whether the CSRF token is asked for.
    """

    def __init__(self, user: User | None = None, *, csrf: bool = False) -> None:
        self.client = Client(enforce_csrf_checks=csrf)
        if user is not None:
            self.client.force_login(user)

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(f"{ROOT}/{path}", query)

    def post(self, path: str, **body: object) -> Any:
        return self.client.post(f"{ROOT}/{path}", json.dumps(body), "application/json")


@pytest.fixture
def api(admin_user: User) -> Api:
    """Calls of a superuser."""
    return Api(admin_user)


@pytest.fixture
def staff_with(django_user_model: type[User]) -> Callable[..., Api]:
    """Makes the calls of a member of the staff who has some permissions of folio_events."""

    def make(*codenames: str, is_staff: bool = True) -> Api:
        name = f"user{django_user_model.objects.count()}"
        user = django_user_model.objects.create_user(name, is_staff=is_staff)
        found = Permission.objects.filter(
            codename__in=codenames, content_type__app_label="folio_events"
        )
        assert {one.codename for one in found} == set(codenames)
        user.user_permissions.set(found)
        return Api(user)

    return make
