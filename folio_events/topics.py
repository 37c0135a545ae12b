"""Topic names, subscription patterns and consumer groups."""

from __future__ import annotations

import re
from typing import NamedTuple

from folio_events.conf import Settings, get_settings
from folio_events.exceptions import ConfigurationError

#: What Kafka takes in a topic name, and its length.
#: Source: org.apache.kafka.common.internals.Topic.
MAX_TOPIC_LENGTH = 249
_SEGMENT = r"[A-Za-z0-9_-]+"
_LOGICAL = re.compile(rf"{_SEGMENT}(\.{_SEGMENT})*")
_LOGICAL_PATTERN = re.compile(r"[A-Za-z0-9_*-]+(\.[A-Za-z0-9_*-]+)*")
#: Source: folio-kafka-wrapper, KafkaTopicNameHelper; RFC 0002.
_COLLECTION = re.compile(r"[A-Z][A-Z0-9]{0,30}")
#: Source: folio-service-tools, KafkaUtils.
_ENV = re.compile(r"[A-Za-z0-9_-]+")


class TopicParts(NamedTuple):
    """A topic of the broker taken apart."""

    #: The tenant segment, which may be a tenant collection; None where tenancy is off.
    tenant: str | None
    #: The logical topic.
    topic: str


def validate_topic(topic: str) -> str:
    """Return the logical topic, or refuse it.

    Raises:
        ConfigurationError: Kafka would not take it as part of a topic name.
    """
    if topic != str(topic) or not _LOGICAL.fullmatch(topic):
        raise ConfigurationError(
            f"{topic!r} is no topic: use letters, digits, '_' and '-' in segments joined by "
            "single dots, such as 'inventory.item'."
        )
    if len(topic) > MAX_TOPIC_LENGTH:
        raise ConfigurationError(f"{topic!r} is longer than {MAX_TOPIC_LENGTH} characters.")
    return topic


def validate_topic_pattern(pattern: str) -> str:
    """Return what a receiver listens to, or refuse it.

    Args:
        pattern: A logical topic in which ``*`` stands for any characters of one segment.

    Raises:
        ConfigurationError: No topic can match it.
    """
    if pattern != str(pattern) or not _LOGICAL_PATTERN.fullmatch(pattern):
        raise ConfigurationError(
            f"No topic can match {pattern!r}: use a logical topic such as 'inventory.item', "
            "with '*' for any characters of one segment ('circulation.*')."
        )
    return pattern


def validate_env(env: str) -> str:
    """Return the environment, or refuse it.

    Raises:
        ConfigurationError: It is not made of letters, digits, '-' and '_'.
    """
    if not _ENV.fullmatch(str(env)):
        raise ConfigurationError(f"ENV {env!r} does not match [a-zA-Z0-9\\-_]+.")
    return env


def validate_tenant_collection(collection: str) -> str:
    """Return the tenant collection qualifier, or refuse it.

    Raises:
        ConfigurationError: It does not match FOLIO's rule for it.
    """
    if not _COLLECTION.fullmatch(str(collection)):
        raise ConfigurationError(
            f"TENANT_COLLECTION {collection!r} does not match [A-Z][A-Z0-9]{{0,30}} "
            "(KAFKA_PRODUCER_TENANT_COLLECTION)."
        )
    return collection


def wire_topic(topic: str, tenant: str | None, settings: Settings | None = None) -> str:
    """Name the topic on the broker.

    Args:
        topic: Logical topic.
        tenant: Owner of the event; ignored where tenancy is off.
        settings: Defaults to FOLIO_EVENTS.

    Returns:
        ``{ENV}.{tenant}.{topic}``, with the tenant collection in the tenant's place if one
        is set, or ``{ENV}.{topic}`` where tenancy is off.
    """
    settings = settings or get_settings()
    if settings.TENANCY is None:
        return f"{settings.ENV}.{topic}"
    return f"{settings.ENV}.{settings.TENANT_COLLECTION or tenant}.{topic}"


def parse_wire_topic(name: str, settings: Settings | None = None) -> TopicParts:
    """Take a topic of the broker apart; the inverse of ``wire_topic``.

    A name of another form is returned whole as the logical topic.
    """
    settings = settings or get_settings()
    prefix = f"{settings.ENV}."
    if not name.startswith(prefix):
        return TopicParts(None, name)
    rest = name[len(prefix) :]
    if settings.TENANCY is None:
        return TopicParts(None, rest)
    tenant, dot, topic = rest.partition(".")
    return TopicParts(tenant, topic) if dot else TopicParts(None, name)


def subscription(pattern: str, settings: Settings | None = None) -> str:
    r"""Say what a broker is to be subscribed to for a receiver's topic.

    Returns:
        A topic name, or a pattern that begins with ``^`` and ends with ``$``: without the
        first librdkafka takes it for a name, without the second it takes longer names too.
        A tenant is ``[^.]+``: FOLIO's own ``\w+`` misses tenants with a hyphen.
    """
    settings = settings or get_settings()
    if settings.TENANCY is None and "*" not in pattern:
        return f"{settings.ENV}.{pattern}"
    topic = re.escape(pattern).replace(r"\*", "[^.]*").replace(r"\-", "-")
    env = re.escape(settings.ENV).replace(r"\-", "-")
    tenant = "" if settings.TENANCY is None else r"[^.]+\."
    return rf"^{env}\.{tenant}{topic}$"


def matches(pattern: str, topic: str) -> bool:
    """Whether a logical topic falls under what a receiver listens to."""
    if "*" not in pattern:
        return pattern == topic
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[^.]*"), topic) is not None
