"""The Django app: finds events.py and receivers.py of all apps and starts the capture."""

from __future__ import annotations

import sys

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
            trigger_context,
            triggers,
        )
        from folio_events.checks import drift, schema, topic, trigger  # noqa: F401
        from folio_events.conf import get_settings
        from folio_events.operations import uninstall

        autodiscover_modules("events")
        autodiscover_modules("receivers")
        autodiscover_modules("reconciliations")
        hooks.install()
        triggers.install()
        trigger_context.install()
        # Celery's own advice has a project import it before its apps are ready. Where nobody
        # uses it, it stays out of the process.
        if "celery" in sys.modules:
            from folio_events import task_context

            task_context.install()
        if get_settings().TRACING:
            from folio_events import tracing

            tracing.install()
        pre_migrate.connect(uninstall.refuse_to_drop, sender=self)
