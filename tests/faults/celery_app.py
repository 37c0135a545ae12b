"""Celery for the harness: beat drains every second, through a folder as the queue."""

from __future__ import annotations

import os

import django
from celery import Celery

django.setup()
_QUEUE = os.environ["FAULTS_FOLDER"] + "/queue"

app = Celery("faults", broker="filesystem://")
app.conf.update(
    broker_transport="sample_project.file_queue:Transport",
    broker_transport_options={
        "data_folder_in": _QUEUE,
        "data_folder_out": _QUEUE,
        "control_folder": os.environ["FAULTS_FOLDER"] + "/control",
        "polling_interval": 0.1,
    },
    beat_schedule={
        "relay": {
            "task": "folio_events.tasks.relay_events",
            "schedule": 1.0,
            "options": {"expires": 2.0},
        },
        "retry": {
            "task": "folio_events.tasks.retry_deliveries",
            "schedule": 1.0,
            "options": {"expires": 2.0},
        },
    },
    worker_hijack_root_logger=False,
)
app.autodiscover_tasks(["folio_events"])
