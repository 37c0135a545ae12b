"""FOLIO's environment variables as FOLIO_EVENTS."""

from __future__ import annotations

from typing import Any

import environ
import pytest

from folio_events import settings_from_env
from folio_events.conf import DATABASE_BROKER, KAFKA_BROKER, get_settings
from folio_events.exceptions import ConfigurationError
from tests.unit.vectors import cases


def read(**variables: str) -> dict[str, Any]:
    """FOLIO_EVENTS as an environment of these variables alone makes it."""
    env = environ.Env()
    env.ENVIRON = variables
    return settings_from_env(env)


def options(**variables: str) -> dict[str, Any]:
    found: dict[str, Any] = read(KAFKA_HOST="kafka", **variables)["BROKER"]["OPTIONS"]
    return found


def test_an_empty_environment_has_the_embedded_default() -> None:
    """Without KAFKA_HOST the database broker serves, under FOLIO's own ENV."""
    assert read() == {"ENV": "folio", "BROKER": {"BACKEND": DATABASE_BROKER}}


def test_empty_variables_are_as_if_unset() -> None:
    """Module descriptors and compose files set many to nothing."""
    names = (
        *("ENV", "KAFKA_HOST", "KAFKA_PORT", "KAFKA_PRODUCER_TENANT_COLLECTION"),
        *("NUMBER_OF_PARTITIONS", "REPLICATION_FACTOR", "KAFKA_CONSUMER_MAX_POLL_RECORDS"),
        *("MAX_REQUEST_SIZE", "KAFKA_SECURITY_PROTOCOL", "KAFKA_SSL_KEYSTORE_LOCATION"),
    )

    assert read(**dict.fromkeys(names, "")) == read()


def test_what_comes_out_is_taken_as_settings(settings: Any) -> None:
    """All keys that any environment gives are known ones."""
    settings.FOLIO_EVENTS = read(
        ENV="ibf-3",
        KAFKA_HOST="kafka",
        KAFKA_PRODUCER_TENANT_COLLECTION="ALL",
        NUMBER_OF_PARTITIONS="10",
        REPLICATION_FACTOR="3",
        KAFKA_CONSUMER_MAX_POLL_RECORDS="50",
        MAX_REQUEST_SIZE="4000000",
    )

    found = get_settings()
    assert (found.ENV, found.TENANCY, found.TENANT_COLLECTION) == ("ibf-3", "folio", "ALL")
    assert (found.TOPIC_PARTITIONS, found.TOPIC_REPLICATION) == (10, 3)
    assert found.CONSUMER_BATCH_SIZE == 50
    assert found.BROKER["BACKEND"] == KAFKA_BROKER
    assert found.BROKER["OPTIONS"]["producer"] == {"message.max.bytes": 4_000_000}


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("kafka", "", "kafka:9092"),
        ("kafka", "29092", "kafka:29092"),
        ("kafka:1234", "29092", "kafka:1234"),
        ("a, b:2 ,c", "3", "a:3,b:2,c:3"),
        ("a,,b", "", "a:9092,b:9092"),
    ],
)
def test_host_and_port_become_bootstrap_servers(host: str, port: str, expected: str) -> None:
    """KAFKA_HOST may list several, each with or without a port of its own."""
    found = read(KAFKA_HOST=host, KAFKA_PORT=port)["BROKER"]["OPTIONS"]

    assert found["bootstrap.servers"] == expected


def test_the_security_protocol_is_taken_over() -> None:
    """PLAINTEXT where none is named."""
    assert options()["security.protocol"] == "PLAINTEXT"
    assert options(KAFKA_SECURITY_PROTOCOL="SSL")["security.protocol"] == "SSL"


@pytest.mark.parametrize("name", ["KAFKA_SSL_KEYSTORE_LOCATION", "KAFKA_SSL_TRUSTSTORE_LOCATION"])
def test_a_java_key_store_is_refused_with_the_way_to_convert_it(name: str) -> None:
    """librdkafka cannot read it; the error names the variable and the options instead."""
    with pytest.raises(ConfigurationError, match=rf"{name}.*keytool.*ssl\.ca\.location"):
        options(**{name: "/etc/kafka/store.jks"})


@pytest.mark.parametrize("case", cases("tenant_collection"))
def test_tenant_collections_are_folios(case: dict[str, Any]) -> None:
    """What FOLIO takes, refuses and ignores, we do; the error has FOLIO's variable and rule."""
    expected = case["expected"]
    given = {name: value for name, value in case["input"].items() if value is not None}

    if not expected["valid"]:
        with pytest.raises(ConfigurationError) as caught:
            read(**given)
        for part in ("KAFKA_PRODUCER_TENANT_COLLECTION", "[A-Z][A-Z0-9]{0,30}"):
            assert part in expected["error"]
            assert part in str(caught.value)
        return
    found = read(**given)
    assert ("TENANT_COLLECTION" in found) is expected["enabled"]
    assert found.get("TENANCY") == ("folio" if expected["enabled"] else None)


@pytest.mark.parametrize("env", ["a.b", "a b", "^"], ids=repr)
def test_an_env_that_is_no_segment_is_refused(env: str) -> None:
    """It would shift the tenant's place in every topic."""
    with pytest.raises(ConfigurationError, match="ENV"):
        read(ENV=env)


@pytest.mark.parametrize(
    "name",
    [
        "NUMBER_OF_PARTITIONS",
        "REPLICATION_FACTOR",
        "KAFKA_CONSUMER_MAX_POLL_RECORDS",
        "MAX_REQUEST_SIZE",
    ],
)
@pytest.mark.parametrize("value", ["0", "-1", "ten", "1.5", "1e3", "²"])
def test_a_number_that_is_none_is_refused(name: str, value: str) -> None:
    """The error names the variable and what it holds."""
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number above 0"):
        options(**{name: value})
