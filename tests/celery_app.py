"""A Celery application as a project has it: beat runs the tasks, files are the queue."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

_folder = Path(os.environ["TESTS_CELERY_FOLDER"])
for _name in ("queue", "control"):
    (_folder / _name).mkdir(exist_ok=True)
_tasks = os.environ.get("TESTS_BEAT", "relay_events,retry_deliveries,purge_events").split(",")
_tick = float(os.environ.get("TESTS_TICK", "0.5"))

app = Celery("tests")
app.conf.update(
    broker_url="filesystem://",
    broker_transport="sample_project.file_queue:Transport",
    broker_transport_options={
        "data_folder_in": str(_folder / "queue"),
        "data_folder_out": str(_folder / "queue"),
        "control_folder": str(_folder / "control"),
        "polling_interval": 0.1,
    },
    beat_schedule_filename=str(_folder / "schedule"),
    beat_schedule={
        name: {
            "task": f"folio_events.tasks.{name}",
            "schedule": _tick,
            "options": {"expires": 5},
        }
        for name in _tasks
    },
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
app.autodiscover_tasks()
