"""Settings of the tests: SQLite, or PostgreSQL by DATABASE_URL; the database broker."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import environ

env = environ.Env()
SECRET_KEY = "tests"
USE_TZ = True
TIME_ZONE = "UTC"
DEBUG = False
ROOT_URLCONF = "tests.urls"
ALLOWED_HOSTS = ["*"]

if os.environ.get("DATABASE_URL"):
    DATABASES = {"default": env.db("DATABASE_URL")}
else:
    # A file, not memory: several connections and processes are part of the tests.
    _folder = Path(tempfile.gettempdir()) / f"folio-events-{os.getpid()}"
    # What tests.commands starts works on the database of the test.
    _file = os.environ.get("TESTS_SQLITE_FILE", str(_folder / "db.sqlite3"))
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": _file,
            "TEST": {"NAME": str(_folder / "test.sqlite3")},
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            },
        }
    }

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "folio_events",
    "sample_project.inventory",
    "sample_project.orders",
    "tests.testapp",
    # Triggers need PostgreSQL, and their models arrays.
    *(
        ["django.contrib.postgres", "pgtrigger", "tests.triggerapp"]
        if "DATABASE_URL" in os.environ
        else []
    ),
    "taggit",
    "treebeard",
    "tests.thirdparty",
    *env.list("TESTS_APPS", default=[]),
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "folio_events.tenants.TenantMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# No wake-up: its thread would hold a connection to the database that the tests drop.
FOLIO_EVENTS = {
    "CONSUMER_POLL_INTERVAL": 0.2,
    "WAKE_UP": False,
    **env.json("TESTS_FOLIO_EVENTS", default={}),
}
