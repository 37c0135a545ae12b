"""Settings of the benchmarks: PostgreSQL twice, SQLite once, and the real Kafka."""

from __future__ import annotations

import json
import os

import environ

from folio_events.conf import KAFKA_BROKER

_postgres = environ.Env().db("DATABASE_URL")

SECRET_KEY = "benchmarks"
USE_TZ = True
DEBUG = False
# What librdkafka says at each start would stand between the figures.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {
        name: {"level": "ERROR", "handlers": ["stderr"], "propagate": False}
        for name in ("folio_events", "tests.bench")
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "pgtrigger",
    "folio_events",
    "tests.bench",
]
DATABASES = {
    "default": _postgres,
    # Holds millions of rows, so that both sizes can take turns.
    "large": {**_postgres, "NAME": "bench_large"},
    "sqlite": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["BENCH_SQLITE"],
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    },
}
FOLIO_EVENTS = {
    "ENV": os.environ["BENCH_ENV"],
    "GROUP": "bench",
    "BROKER": {
        "BACKEND": KAFKA_BROKER,
        "OPTIONS": {"bootstrap.servers": f"{os.environ['KAFKA_HOST']}:{os.environ['KAFKA_PORT']}"},
    },
    **json.loads(os.environ.get("BENCH_SETTINGS", "{}")),
}
