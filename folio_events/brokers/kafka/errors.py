"""librdkafka's errors as those of folio_events."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from folio_events.exceptions import (
    BrokerError,
    BrokerUnavailableError,
    MessageTooLargeError,
    MissingTopicError,
    PublishError,
    TopicRefusedError,
)

TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
NO_TOPIC = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - confluent-kafka's spelling of local errors
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
)
TOPIC_REFUSED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION)
REFUSED = (
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.POLICY_VIOLATION,
)
NO_LEADER = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
GONE = (
    KafkaError._TRANSPORT,  # noqa: SLF001
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._TIMED_OUT,  # noqa: SLF001
    KafkaError._RESOLVE,  # noqa: SLF001
)
#: What messages get that were still under way when their producer was given up.
PURGED = (
    KafkaError._PURGE_QUEUE,  # noqa: SLF001
    KafkaError._PURGE_INFLIGHT,  # noqa: SLF001
)


def translate(error: KafkaError, about: str = "") -> BrokerError:
    text = f"{about}{error.name()}: {error.str()}"
    code = error.code()
    if code in TOO_LARGE:
        return MessageTooLargeError(text)
    if code in NO_TOPIC:
        return MissingTopicError(text)
    if code in GONE:
        return BrokerUnavailableError(text)
    if code in TOPIC_REFUSED:
        return TopicRefusedError(text)
    return PublishError(text, retryable=code not in REFUSED)


def translate_consumers(error: KafkaError) -> BrokerError:
    """The same of a consumer: after a fatal error it would be fenced off again, or fence others."""
    translated = translate(error)
    if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001
        translated.retryable = False
    return translated


@contextmanager
def translating() -> Iterator[None]:
    """Raise a consumer's errors as those of folio_events."""
    try:
        yield
    except KafkaException as error:
        raise translate_consumers(error.args[0]) from error


def is_fault(message: Any, names: Collection[str]) -> bool:
    """Whether a polled message stands for an error that ends the subscription.

    Args:
        message: As librdkafka gives it.
        names: The topics that are subscribed to by name.
    """
    error = message.error()
    if error is None or error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
        return False
    if error.code() not in NO_TOPIC:
        return True
    # A pattern may find a topic with the next refresh, and gives up one that was deleted.
    said = error.str().removeprefix("Subscribed topic not available: ").partition(":")[0]
    return (message.topic() or said) in names
