"""Settings of the sample project; all state lives in one directory, SAMPLE_PROJECT_DIR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import environ

import folio_events

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

#: Database, queue of Celery and logs. Two instances with two directories do not meet.
INSTANCE_DIR = Path(env.str("SAMPLE_PROJECT_DIR", default=str(BASE_DIR / ".demo"))).resolve()
INSTANCE_DIR.mkdir(parents=True, exist_ok=True)

# Good enough for a library that lives as long as a demo; a real one sets SECRET_KEY.
SECRET_KEY = env.str("SECRET_KEY", default="only-for-the-sample-project-set-SECRET_KEY-elsewhere")
DEBUG = env.bool("DEBUG", default=False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "folio_events",
    "sample_project.inventory",
    "sample_project.orders",
    "sample_project.receiving",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "folio_events.tenants.TenantMiddleware",
]

ROOT_URLCONF = "sample_project.urls"
WSGI_APPLICATION = "sample_project.wsgi.application"
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


def _database() -> dict[str, Any]:
    database: dict[str, Any] = env.db_url(
        "DATABASE_URL", default=f"sqlite:///{INSTANCE_DIR}/db.sqlite3"
    )
    if database["ENGINE"].endswith("sqlite3"):
        database["OPTIONS"] = {
            # A transaction that starts as a reader cannot wait for the write lock; this one can.
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            "timeout": 20,
        }
    else:
        database["CONN_MAX_AGE"] = 60
        database["CONN_HEALTH_CHECKS"] = True
    return database


DATABASES = {"default": _database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"

REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "UNAUTHENTICATED_USER": None,
}

# KAFKA_HOST, KAFKA_PORT, ENV ... as every FOLIO module reads them; without KAFKA_HOST the
# database is the broker.
FOLIO_EVENTS = {
    **folio_events.settings_from_env(env),
    "GROUP": env.str("SAMPLE_PROJECT_GROUP", default="sample-library"),
    "TENANCY": "folio",
    "DEFAULT_TENANT": None,
}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A batch holds SQLite's one write lock while its receivers run: small ones let the site in.
    FOLIO_EVENTS.setdefault("CONSUMER_BATCH_SIZE", 50)

_QUEUE = INSTANCE_DIR / "celery"
CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", default="filesystem://")
if CELERY_BROKER_URL.startswith("filesystem:"):
    for name in ("queue", "control"):
        (_QUEUE / name).mkdir(parents=True, exist_ok=True)
    CELERY_BROKER_TRANSPORT = "sample_project.file_queue:Transport"
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(_QUEUE / "queue"),
        "data_folder_out": str(_QUEUE / "queue"),
        "control_folder": str(_QUEUE / "control"),
        # The transport looks for messages once a second otherwise, as often as beat sends them.
        "polling_interval": 0.2,
    }
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULE_FILENAME = str(INSTANCE_DIR / "celerybeat-schedule")
CELERY_BEAT_SCHEDULE = {
    # A tick that was not run in time is worth nothing: the next one does its work.
    "relay-events": {
        "task": "folio_events.tasks.relay_events",
        "schedule": 1.0,
        "options": {"expires": 5},
    },
    "retry-deliveries": {
        "task": "folio_events.tasks.retry_deliveries",
        "schedule": 1.0,
        "options": {"expires": 5},
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="INFO")},
    # One line a request is the access log's work.
    "loggers": {"django.server": {"level": "WARNING"}},
}
