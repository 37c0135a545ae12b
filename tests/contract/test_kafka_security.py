"""Kafka behind TLS, with passwords, certificates and tokens: what works, and what is said if not."""

from __future__ import annotations

import base64
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import environ
import pytest

from folio_events import settings_from_env
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.kafka import KafkaBroker
from folio_events.exceptions import BrokerUnavailableError, ConfigurationError
from tests.contract.stage import Reader, message, publish, values
from tests.services import KafkaCluster, kafka
from tests.services.kafka_security import Security

pytestmark = pytest.mark.kafka

WRONG = "wrong-and-secret"


@pytest.fixture(scope="module")
def secured() -> Iterator[KafkaCluster]:
    """A broker with a listener for passwords and tokens, and one for client certificates."""
    with kafka(secured=True) as cluster:
        yield cluster


@pytest.fixture
def security(secured: KafkaCluster) -> Security:
    assert secured.security is not None
    return secured.security


@pytest.fixture(autouse=True)
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not answer is given up soon."""
    monkeypatch.setattr("folio_events.brokers.kafka.topics.ADMIN_TIMEOUT", 2.0)


def token() -> str:
    """A bearer token as the brokers take them: unsigned."""
    parts = ({"alg": "none"}, {"sub": "mysite", "iat": time.time(), "exp": time.time() + 600})
    coded = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts)
    return ".".join(part.rstrip("=") for part in coded) + "."


def options_of(security: Security, how: str) -> dict[str, Any]:
    if how == "certificate":
        return security.with_certificate()
    options: dict[str, Any] = security.with_password(how)
    if how == "OAUTHBEARER":
        del options["sasl.username"], options["sasl.password"]
        options["oauth_cb"] = lambda _config: (token(), time.time() + 600)
    return options


@pytest.mark.parametrize("how", ["PLAIN", "SCRAM-SHA-512", "OAUTHBEARER", "certificate"])
def test_events_go_through_tls(
    security: Security, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Admin client, producer and consumer take the same options; no secret is logged."""
    caplog.set_level(logging.DEBUG)
    broker = KafkaBroker(options_of(security, how))
    topic = f"t{uuid.uuid4().hex}"
    try:
        assert broker.create_topics([TopicSpec(topic, 1, 1)]) == {topic}
        publish(broker, [message(topic, b"one"), message(topic, b"two")])
        reader = Reader(broker, [topic])
        found = values(reader.read(2))
        reader.close()
    finally:
        broker.close()

    assert found == [b"one", b"two"]
    assert security.password not in caplog.text


#: How the options are changed, and what the error has to name.
FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "password": ({"sasl.password": WRONG}, r"'sasl\.password'"),
    "password of SCRAM": (
        {"sasl.password": WRONG, "sasl.mechanism": "SCRAM-SHA-512"},
        r"'sasl\.password'",
    ),
    "mechanism": ({"sasl.mechanism": "SCRAM-SHA-256"}, r"PLAIN,SCRAM-SHA-512.*'sasl\.mechanism'"),
    "authority": ({"ssl.ca.location": "other"}, r"certificate.*'ssl\.ca\.location'"),
    "no TLS": ({"security.protocol": "PLAINTEXT"}, r"'security\.protocol', PLAINTEXT here"),
    "TLS to a listener without": (
        {"bootstrap.servers": "plain"},
        r"SSL.*'security\.protocol', SASL_SSL here",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_keeps_clients_out_is_said_by_each_of_them(
    secured: KafkaCluster, security: Security, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names the option to mend; neither it nor the log contains a secret."""
    caplog.set_level(logging.DEBUG)
    changes, named = FAULTS[fault]
    standing_for = {
        ("ssl.ca.location", "other"): str(security.other_authority),
        ("bootstrap.servers", "plain"): secured.bootstrap,
    }
    options = security.with_password("PLAIN") | {
        name: standing_for.get((name, value), value) for name, value in changes.items()
    }
    broker = KafkaBroker(options)
    said: list[str] = []
    try:
        with pytest.raises(BrokerUnavailableError, match=named) as caught:
            broker.missing_topics(["t"])
        said.append(str(caught.value))
        (report,) = broker.publish([message("t")], timeout=1)
        assert isinstance(report, BrokerUnavailableError)
        said.append(str(report))
        assert re.search(named, said[-1])
    finally:
        broker.close()

    for secret in (WRONG, security.password):
        assert secret not in caplog.text
        assert not any(secret in text for text in said)
        assert secret not in f"{broker!r} {broker}"


@pytest.mark.parametrize("fault", ["password", "authority"])
def test_a_consumer_that_is_not_let_in_says_so(security: Security, fault: str) -> None:
    """Also where it listens to a pattern, and asks the admin client nothing."""
    changes, named = FAULTS[fault]
    options = security.with_password("PLAIN") | changes
    if fault == "authority":
        options["ssl.ca.location"] = str(security.other_authority)
    reader = Reader(KafkaBroker(options), ["^t.*$"])

    with pytest.raises(BrokerUnavailableError, match=named):
        reader.read(1)

    reader.close()


def test_a_client_without_the_certificate_that_is_asked_for_is_told(security: Security) -> None:
    """The broker's own word for it is in the error."""
    options = security.with_certificate()
    del options["ssl.keystore.location"], options["ssl.keystore.password"]
    broker = KafkaBroker(options)

    with pytest.raises(BrokerUnavailableError, match="certificate"):
        broker.missing_topics(["t"])

    broker.close()


@pytest.mark.parametrize("option", ["ssl.ca.location", "ssl.keystore.location"])
def test_a_file_that_is_missing_is_named_at_once(security: Security, option: str) -> None:
    """By the check, before anything connects."""
    options = {**security.with_certificate(), option: "/nowhere/to.be.found"}

    with pytest.raises(ConfigurationError, match=option):
        KafkaBroker(options)


def test_the_environment_of_a_folio_module_leads_to_a_listener_with_tls(
    security: Security, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Host, port and protocol come from the variables, credentials from the settings."""
    host, _, port = security.addresses["SASL_SSL"].partition(":")
    monkeypatch.setenv("KAFKA_HOST", host)
    monkeypatch.setenv("KAFKA_PORT", port)
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    settings = settings_from_env(environ.Env())
    given = security.with_password("SCRAM-SHA-512")
    own = {name: value for name, value in given.items() if name.startswith(("sasl.", "ssl."))}

    broker = KafkaBroker({**settings["BROKER"]["OPTIONS"], **own})

    assert broker.missing_topics(["no-such-topic"]) == {"no-such-topic"}
    broker.close()


def test_the_stores_of_a_folio_module_lead_to_a_listener_that_asks_for_certificates(
    security: Security,
) -> None:
    """By variables alone: authorities in PEM, the client's certificate and key in PKCS#12."""
    host, _, port = security.addresses["SSL"].partition(":")
    env = environ.Env()
    env.ENVIRON = {
        "KAFKA_HOST": host,
        "KAFKA_PORT": port,
        "KAFKA_SECURITY_PROTOCOL": "SSL",
        "KAFKA_SSL_TRUSTSTORE_LOCATION": str(security.authority),
        "KAFKA_SSL_KEYSTORE_LOCATION": str(security.folder / "client.p12"),
        "KAFKA_SSL_KEYSTORE_PASSWORD": security.password,
    }

    broker = KafkaBroker(settings_from_env(env)["BROKER"]["OPTIONS"])

    assert broker.missing_topics(["no-such-topic"]) == {"no-such-topic"}
    broker.close()
