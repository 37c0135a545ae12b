"""Settings of the processes that the fault harness runs."""

from __future__ import annotations

import json
import os

import environ

env = environ.Env()
SECRET_KEY = "faults"
USE_TZ = True
TIME_ZONE = "UTC"
DATABASES = {
    "default": {
        **env.db("DATABASE_URL"),
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "OPTIONS": {"connect_timeout": 5, "application_name": os.environ.get("FAULTS_ROLE", "")},
    }
}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "folio_events",
    "tests.faults.bank.apps.BankConfig",
    "tests.faults.commands",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SILENCED_SYSTEM_CHECKS = [
    "admin.E403",
    "admin.E408",
    "admin.E409",
    "admin.E410",
]

FOLIO_EVENTS = {
    "ENV": os.environ["FAULTS_ENV"],
    "GROUP": os.environ["FAULTS_ENV"],
    "TOPIC_PARTITIONS": 4,
    "RELAY_BATCH_SIZE": 200,
    "RELAY_DEADLINE": 10.0,
    "CONSUMER_BATCH_SIZE": 100,
    "CONSUMER_POLL_INTERVAL": 0.2,
    "POLL_FAILURE_SLEEP": 0.2,
    "CONSECUTIVE_ERRORS_LIMIT": 100,
    "BROKER": {
        "BACKEND": "folio_events.brokers.kafka.KafkaBroker",
        "OPTIONS": {
            "bootstrap.servers": os.environ["FAULTS_KAFKA"],
            "reconnect.backoff.max.ms": 1000,
            "consumer": {
                "session.timeout.ms": 2500,
                "heartbeat.interval.ms": 500,
                "topic.metadata.refresh.interval.ms": 2000,
            },
            **json.loads(os.environ.get("FAULTS_OPTIONS", "{}")),
        },
    },
    **json.loads(os.environ.get("FAULTS_SETTINGS", "{}")),
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "plain": {"format": "%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"}
    },
    "handlers": {"stream": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        "folio_events": {"handlers": ["stream"], "level": "INFO", "propagate": False},
        "folio_events.kafka": {
            "handlers": ["stream"],
            "level": os.environ.get("FAULTS_KAFKA_LOG", "ERROR"),
            "propagate": False,
        },
    },
}
