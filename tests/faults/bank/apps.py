"""The app of the fault harness; in each process it plants what the environment asks for."""

from __future__ import annotations

import faulthandler
import os
import signal

from django.apps import AppConfig


class BankConfig(AppConfig):
    name = "tests.faults.bank"
    label = "bank"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from tests.faults import clock, defects, failpoints

        # The stacks of a process that is stuck go to its log.
        faulthandler.register(signal.SIGUSR2, all_threads=True)
        clock.tamper(os.environ.get("FAULTS_CLOCK", ""))
        defects.plant(os.environ.get("FAULTS_DEFECT", ""))
        failpoints.install(os.environ.get("FAULTS_FAILPOINTS", ""))
