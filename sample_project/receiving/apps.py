"""The receiving app."""

from __future__ import annotations

from django.apps import AppConfig


class ReceivingConfig(AppConfig):
    name = "sample_project.receiving"
    label = "receiving"
