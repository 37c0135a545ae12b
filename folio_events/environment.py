"""FOLIO's environment variables as FOLIO_EVENTS."""

from __future__ import annotations

from typing import Any

import environ

from folio_events import topics
from folio_events.conf import DATABASE_BROKER, KAFKA_BROKER
from folio_events.exceptions import ConfigurationError


def settings_from_env(env: environ.Env) -> dict[str, Any]:
    """Build FOLIO_EVENTS from the variables that FOLIO modules read.

    Without KAFKA_HOST the database broker serves. See docs/reference/environment.md.

    Args:
        env: As django-environ makes it.

    Raises:
        ConfigurationError: A variable has a value that cannot be.
    """
    settings: dict[str, Any] = {"ENV": topics.validate_env(env.str("ENV", default="") or "folio")}
    collection = env.str("KAFKA_PRODUCER_TENANT_COLLECTION", default="")
    if collection:
        settings["TENANT_COLLECTION"] = topics.validate_tenant_collection(collection)
        settings["TENANCY"] = "folio"
    host = env.str("KAFKA_HOST", default="")
    settings["BROKER"] = _kafka(env, host) if host else {"BACKEND": DATABASE_BROKER}
    for variable, key in (
        ("NUMBER_OF_PARTITIONS", "TOPIC_PARTITIONS"),
        ("REPLICATION_FACTOR", "TOPIC_REPLICATION"),
        ("KAFKA_CONSUMER_MAX_POLL_RECORDS", "CONSUMER_BATCH_SIZE"),
    ):
        if env.str(variable, default=""):
            settings[key] = _positive(env, variable)
    return settings


def _kafka(env: environ.Env, host: str) -> dict[str, Any]:
    port = env.str("KAFKA_PORT", default="") or "9092"
    options: dict[str, Any] = {
        # KAFKA_HOST may be a list, each member with or without a port of its own.
        "bootstrap.servers": ",".join(
            part if ":" in part else f"{part}:{port}"
            for part in (p.strip() for p in host.split(","))
            if part
        ),
        "security.protocol": env.str("KAFKA_SECURITY_PROTOCOL", default="") or "PLAINTEXT",
    }
    for name in ("KAFKA_SSL_KEYSTORE_LOCATION", "KAFKA_SSL_TRUSTSTORE_LOCATION"):
        if env.str(name, default=""):
            raise ConfigurationError(
                f"{name} names a Java key store, which librdkafka cannot read. Convert it with "
                "'keytool -importkeystore -deststoretype PKCS12' and openssl, and set "
                "'ssl.ca.location', 'ssl.certificate.location' and 'ssl.key.location' in "
                "FOLIO_EVENTS['BROKER']['OPTIONS']."
            )
    if env.str("MAX_REQUEST_SIZE", default=""):
        options["producer"] = {"message.max.bytes": _positive(env, "MAX_REQUEST_SIZE")}
    return {"BACKEND": KAFKA_BROKER, "OPTIONS": options}


def _positive(env: environ.Env, name: str) -> int:
    text = env.str(name)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"{name} must be a whole number above 0, not {text!r}.")
    return int(text)
