"""The Django app: finds events.py and receivers.py of all apps and starts the capture."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import pre_migrate
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class FolioEventsConfig(AppConfig):
    name = "folio_events"
    label = "folio_events"
    verbose_name = _("Domain events")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Not at the top: models must be loaded.
        from folio_events import (
            checks,  # noqa: F401
            hooks,
            trigger_checks,  # noqa: F401
            trigger_context,
            triggers,
            uninstall,
        )

        autodiscover_modules("events")
        autodiscover_modules("receivers")
        hooks.install()
        triggers.install()
        trigger_context.install()
        pre_migrate.connect(uninstall.refuse_to_drop, sender=self)
