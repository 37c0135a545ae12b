"""What Kafka's client says of its connections, in words that say what to mend."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from folio_events.brokers.kafka.trouble import Trouble

OPTIONS = {"bootstrap.servers": "kafka:9094", "security.protocol": "SASL_SSL"}


@pytest.mark.parametrize("code", [KafkaError._SSL, KafkaError._TRANSPORT])
def test_a_refused_certificate_is_named_whatever_code_it_comes_under(code: int) -> None:
    """librdkafka reports what OpenSSL says now and then as a broken connection."""
    trouble = Trouble(OPTIONS)
    trouble(KafkaError(code, "error:0A000086:SSL routines::certificate verify failed"))

    assert trouble.needs_a_person
    assert trouble.explain("no answer").endswith(
        "Mend 'ssl.ca.location', or the client's own certificate."
    )


def test_a_broken_connection_needs_nobody() -> None:
    """It may come back."""
    trouble = Trouble(OPTIONS)
    trouble(KafkaError(KafkaError._TRANSPORT, "Connection refused"))

    assert not trouble.needs_a_person
    assert "SASL_SSL here" in trouble.explain("no answer")
