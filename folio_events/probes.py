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


class _Look:
    """The last judgement by one set of options; one thread at a time makes a new one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: When it ended, and what it found; None: none has ended yet.
        self.last: tuple[float, Health] | None = None


_looks: dict[str, _Look] = {}


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

    Who asks while another thread looks gets the look before; the header ``Age`` has its seconds.

    Args:
        request: Of a member of staff: the reasons are told too.
        options: As ``folio_events.monitoring.health.health()`` takes them, from ``path()``.
    """
    look = _looks.setdefault(repr(sorted(options.items())), _Look())
    is_fresh = look.last is not None and time.monotonic() - look.last[0] < _LIFETIME
    if not is_fresh and look.lock.acquire(blocking=False):
        try:
            found = judgements.health(**options)
            look.last = time.monotonic(), found
        finally:
            look.lock.release()
    if look.last is None:
        # Another thread waits for the broker.
        return _answer(request, judgements.health(**{**options, "ask_broker": False}))
    ended_at, found = look.last
    response = _answer(request, found)
    response.headers["Age"] = str(int(time.monotonic() - ended_at))
    return response


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
