"""Views for probes: ``path("health/", include("folio_events.probes"))``."""

from __future__ import annotations

import threading
import time
from typing import Any

from django.db import DEFAULT_DB_ALIAS, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from folio_events.monitoring import health as judgements
from folio_events.monitoring.health import Health
from folio_events.monitoring.overview import Level

#: Seconds for which one look counts: who may not log in may ask as often as they like.
_LIFETIME = 5.0
_lock = threading.Lock()
_looks: dict[str, tuple[float, Health]] = {}


@require_safe
@never_cache
def live(_request: HttpRequest) -> JsonResponse:
    """Say that this process answers; that is all a restart could mend."""
    return JsonResponse({"state": "ok"})


@transaction.non_atomic_requests
@require_safe
@never_cache
def ready(request: HttpRequest, using: str = DEFAULT_DB_ALIAS) -> JsonResponse:
    """Say whether this process can record events; 503 where it cannot."""
    return _answer(request, judgements.readiness(using=using))


@transaction.non_atomic_requests
@require_safe
@never_cache
def health(request: HttpRequest, **options: Any) -> JsonResponse:
    """Say how the delivery fares; 503 where it fails, 200 where it is degraded.

    Args:
        request: Of a member of staff: the reasons are told too.
        options: As ``folio_events.health.health()`` takes them, from ``path()``.
    """
    with _lock:
        key = repr(sorted(options.items()))
        looked_at, found = _looks.get(key, (0.0, Health()))
        if not looked_at or time.monotonic() - looked_at >= _LIFETIME:
            found = judgements.health(**options)
            _looks[key] = time.monotonic(), found
    return _answer(request, found)


def _answer(request: HttpRequest, found: Health) -> JsonResponse:
    said: dict[str, object] = {"state": found.state}
    user = getattr(request, "user", None)
    if user is not None and user.is_active and user.is_staff:
        said["reasons"] = found.reasons
    return JsonResponse(said, status=503 if found.level == Level.FAILING else 200)


urlpatterns = [
    path("live/", live, name="folio_events_live"),
    path("ready/", ready, name="folio_events_ready"),
    path("", health, name="folio_events_health"),
]
