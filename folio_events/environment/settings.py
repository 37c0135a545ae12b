"""FOLIO_EVENTS from FOLIO's variables."""

from __future__ import annotations

import re
from typing import Any

import environ

from folio_events import topics
from folio_events.conf import DATABASE_BROKER, KAFKA_BROKER
from folio_events.environment.key_stores import key_store_options, trust_store_options
from folio_events.environment.values import Values
from folio_events.environment.variables import (
    CLIENT_PROPERTIES,
    DI_SINGLE,
    DI_SUFFIX,
    TOPIC_VARIABLES,
)
from folio_events.exceptions import ConfigurationError

_HIGHEST_PORT = 65_535
#: Source: librdkafka, CONFIGURATION.md, message.max.bytes.
_MESSAGE_BYTES = (1000, 1_000_000_000)
_DI_VARIABLE = re.compile(rf"(DI_[A-Z0-9_]+){DI_SUFFIX}")


def settings_from_env(env: environ.Env) -> dict[str, Any]:
    """Build FOLIO_EVENTS from the variables that FOLIO modules read.

    Without KAFKA_HOST the database broker serves. See docs/reference/environment.md.

    Args:
        env: As django-environ makes it.

    Raises:
        ConfigurationError: A variable has a value that cannot be.
    """
    values = Values(env)
    _refuse_silence(values)
    settings: dict[str, Any] = {
        "ENV": topics.validate_env(values.text("ENV") or "folio"),
        "BROKER": _kafka(values) if values.text("KAFKA_HOST") else {"BACKEND": DATABASE_BROKER},
    }
    # Upstream takes no blank for nothing here.
    if collection := values.verbatim("KAFKA_PRODUCER_TENANT_COLLECTION"):
        settings["TENANT_COLLECTION"] = topics.validate_tenant_collection(collection)
        settings["TENANCY"] = "folio"
    if pattern := values.text("KAFKA_EVENTS_CONSUMER_PATTERN"):
        settings["CONSUMER_PATTERN"] = pattern
    for variable, key in (
        ("NUMBER_OF_PARTITIONS", "TOPIC_PARTITIONS"),
        ("REPLICATION_FACTOR", "TOPIC_REPLICATION"),
        ("KAFKA_CONSUMER_MAX_POLL_RECORDS", "CONSUMER_BATCH_SIZE"),
        ("KAFKA_RETRY_DELIVERY_ATTEMPTS", "RETRY_ATTEMPTS"),
    ):
        if (number := values.number(variable)) is not None:
            settings[key] = number
    if (milliseconds := values.number("KAFKA_RETRY_INTERVAL_MS")) is not None:
        settings["RETRY_BACKOFF"] = milliseconds / 1000
    if of_topics := _topics(values):
        settings["TOPICS"] = of_topics
    return settings


def _refuse_silence(values: Values) -> None:
    if values.choice("DOMAIN_EVENTS_ENABLED", "true", "false") == "false":
        raise ConfigurationError(
            "DOMAIN_EVENTS_ENABLED is false, but events cannot be turned off from outside: remove "
            "the variable, and leave models unregistered or write within suppress_events()."
        )


def _kafka(values: Values) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bootstrap.servers": _bootstrap_servers(values),
        "security.protocol": values.choice(
            "KAFKA_SECURITY_PROTOCOL", "PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"
        )
        or "PLAINTEXT",
        **trust_store_options(values),
        **key_store_options(values),
    }
    name = "ssl.endpoint.identification.algorithm"
    if algorithm := values.choice(name, "https", "none"):
        options[name] = algorithm
    for role in ("producer", "consumer"):
        if of_role := _client_options(values, role):
            options[role] = of_role
    return {"BACKEND": KAFKA_BROKER, "OPTIONS": options}


def _bootstrap_servers(values: Values) -> str:
    said, host = values.found("KAFKA_HOST")
    try:
        port = values.number("KAFKA_PORT", high=_HIGHEST_PORT) or 9092
    except ConfigurationError as error:
        if "://" not in values.text("KAFKA_PORT"):
            raise
        raise ConfigurationError(
            f"{error} Kubernetes sets it like this for a service with the name 'kafka': set "
            "'enableServiceLinks: false' in the pod, or KAFKA_PORT itself."
        ) from None
    hosts = [part.strip() for part in host.split(",") if part.strip()]
    if not hosts:
        raise ConfigurationError(f"{said} is {host!r}, which names no host. Name one, or none.")
    # A host in brackets is an address of IPv6.
    return ",".join(h if re.search(r":\d+$", h) else f"{h}:{port}" for h in hosts)


def _client_options(values: Values, role: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for given in CLIENT_PROPERTIES:
        if given.role == role and given.taken and (text := values.found(*given.names)[1]):
            number = values.number(*given.names, low=0) if given.folio.isdecimal() else None
            options[given.option] = text if number is None else number
    low, high = _MESSAGE_BYTES
    size = values.number("MAX_REQUEST_SIZE", low=low, high=high) if role == "producer" else None
    return options if size is None else {**options, "message.max.bytes": size}


def _topics(values: Values) -> dict[str, dict[str, Any]]:
    """The setting TOPICS: logical topic to its options."""
    found: dict[str, dict[str, Any]] = {}
    for variable in TOPIC_VARIABLES:
        if (number := values.number(variable.name)) is not None:
            for topic in variable.topics:
                found.setdefault(topic, {})[variable.option] = variable.convert(number)
    for name in values.names:
        if (match := _DI_VARIABLE.fullmatch(name)) and (number := values.number(name)):
            found[match[1]] = {"NAMESPACE": "Default", "PARTITIONS": number}
    if any(topic.startswith("DI_") for topic in found):
        single = found.setdefault(DI_SINGLE, {"NAMESPACE": "Default", "PARTITIONS": 1})
        if single["PARTITIONS"] != 1:
            raise ConfigurationError(
                f"{DI_SINGLE}{DI_SUFFIX} is {single['PARTITIONS']}, but {DI_SINGLE} has one partition: remove "
                "the variable."
            )
    return found
