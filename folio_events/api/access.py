"""Who may call what, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.settings import api_settings
from rest_framework.throttling import UserRateThrottle
from rest_framework.views import APIView

from folio_events.audit import Actor

#: What a page asks for that tells of everything, as the admin's dashboard does.
OVERVIEW = (
    "view_outboxmessage",
    "view_withheldmessage",
    "view_delivery",
    "view_orphan",
    "view_relaycursor",
    "view_consumeroffset",
    "view_receiverstate",
    "view_process",
)


class Guarded(Protocol):
    """A view that says what its operations ask for."""

    def wanted_permissions(self, request: Request) -> Sequence[str]:
        """Code names of folio_events' permissions that the request's method needs."""


class MayOperate(BasePermission):
    """Staff with the permissions that the admin asks for the same; superusers have them."""

    def has_permission(self, request: Request, view: Guarded | APIView) -> bool:
        user = request.user
        if not (user.is_authenticated and user.is_active and user.is_staff):
            return False
        wanted = view.wanted_permissions(request)  # type: ignore[union-attr]  # it stands on no other view
        return bool(user.has_perms([f"folio_events.{name}" for name in wanted]))


def may_see_private(request: Request) -> bool:
    """Whether private fields of payloads are shown, and bodies whose fields cannot be told."""
    user = request.user
    return user.is_active and user.has_perm("folio_events.view_private")


def actor(request: Request) -> Actor:
    """Who acts; None where the project's own permission lets programs in without a user."""
    return request.user if request.user.is_authenticated else None


class ApiThrottle(UserRateThrottle):
    """A rate of its own: REST_FRAMEWORK["DEFAULT_THROTTLE_RATES"]["folio_events"]."""

    scope = "folio_events"
    #: Where the project names none; None there means no limit.
    default_rate = "600/minute"

    def get_rate(self) -> str | None:
        rates = api_settings.DEFAULT_THROTTLE_RATES
        rate = rates.get(self.scope, self.default_rate)
        return None if rate is None else str(rate)
