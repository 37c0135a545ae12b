"""Settings as a module would have them: its group and tenancy are its own, all else is said from outside."""

from __future__ import annotations

from folio_events import settings_from_env
from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, env

INSTALLED_APPS = [*INSTALLED_APPS, "tests.folio_instance"]
FOLIO_EVENTS = {**settings_from_env(env), "GROUP": "library", "TENANCY": "folio"}
