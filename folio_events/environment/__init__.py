"""FOLIO's environment variables as FOLIO_EVENTS."""

from __future__ import annotations

from folio_events.environment.doubts import doubts
from folio_events.environment.settings import settings_from_env

__all__ = ["doubts", "settings_from_env"]
