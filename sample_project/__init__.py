"""A small library: inventory and orders keep each other up to date through events."""

from __future__ import annotations

from sample_project.celery import app as celery_app

__all__ = ["celery_app"]
