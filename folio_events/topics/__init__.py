"""The topics of this project on the broker: their names, what they say, what is subscribed to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from folio_events.conf import Settings, get_settings
from folio_events.exceptions import ConfigurationError
from folio_events.topics.declared import Topic, declared_topics, topic_options
from folio_events.topics.names import (
    MAX_TOPIC_LENGTH,
    domain_topic,
    env_topic_name,
    event_type_from_topic,
    group_from_template,
    group_name,
    pubsub_topic_name,
    topic_name,
    unshared_group,
    validate_env,
    validate_group_instance_id,
    validate_tenant_collection,
    validate_topic,
    validate_topic_pattern,
    validate_wire_topic,
)
from folio_events.topics.patterns import (
    TENANT,
    escape,
    java_matches,
    librdkafka_pattern,
    spring_pattern,
    subscription_pattern,
    tenant_argument_pattern,
    wrapper_pattern,
)

__all__ = [
    "MAX_TOPIC_LENGTH",
    "TopicParts",
    "colliding",
    "consumer_pattern",
    "domain_topic",
    "env_topic_name",
    "event_type_from_topic",
    "group_from_template",
    "group_name",
    "java_matches",
    "librdkafka_pattern",
    "matches",
    "parse_wire_topic",
    "pubsub_topic_name",
    "spring_pattern",
    "stands_for",
    "subscription",
    "subscription_pattern",
    "subscriptions",
    "tenant_argument_pattern",
    "topic_name",
    "unshared_group",
    "validate_env",
    "validate_group_instance_id",
    "validate_tenant_collection",
    "validate_topic",
    "validate_topic_pattern",
    "validate_wire_topic",
    "wire_topic",
    "wrapper_pattern",
]


class TopicParts(NamedTuple):
    """A topic of the broker taken apart."""

    #: The tenant segment, which may be a tenant collection; None where the topic has none.
    tenant: str | None
    #: The logical topic.
    topic: str


def wire_topic(topic: str, tenant: str | None, settings: Settings | None = None) -> str:
    """Name the topic on the broker.

    Args:
        topic: Logical topic.
        tenant: Owner of the event; ignored where the topic has no tenant segment.
        settings: Defaults to FOLIO_EVENTS.

    Returns:
        ``{ENV}.{tenant}.{topic}``, with the tenant collection in the tenant's place if one
        is set; without the tenant where tenancy is off and for environment-only topics; the
        declared namespace stands before the tenant.
    """
    settings = settings or get_settings()
    declared = declared_topics.merged(settings).get(topic)
    segments = [settings.ENV]
    if declared is not None and declared.namespace is not None:
        segments.append(declared.namespace)
    if settings.TENANCY is not None and not (declared and declared.environment_only):
        segments.append(str(settings.TENANT_COLLECTION or tenant))
    return ".".join((*segments, topic))


def is_of_tenant(topic: str, settings: Settings | None = None) -> bool:
    """Whether a logical topic is another on the broker for each tenant."""
    settings = settings or get_settings()
    if settings.TENANCY is None or settings.TENANT_COLLECTION:
        return False
    return not topic_options(topic, settings).environment_only


def parse_wire_topic(name: str, settings: Settings | None = None) -> TopicParts:
    """Take a topic of the broker apart; the inverse of ``wire_topic``.

    A name of another form is returned whole as the logical topic.
    """
    settings = settings or get_settings()
    env, _, rest = name.partition(".")
    first, _, after = rest.partition(".")
    if env != settings.ENV or not rest:
        return TopicParts(None, name)
    declared = declared_topics.merged(settings)
    if settings.TENANCY is None:
        return TopicParts(None, after if _in_namespace(declared.get(after), first) else rest)
    if (whole := declared.get(rest)) is not None and whole.environment_only:
        return TopicParts(None, rest)
    second, _, topic = after.partition(".")
    if _in_namespace(declared.get(topic), first):
        return TopicParts(second, topic)
    return TopicParts(first, after) if after else TopicParts(None, name)


def _in_namespace(topic: Topic | None, namespace: str) -> bool:
    return topic is not None and topic.namespace == namespace


def subscription(pattern: str, settings: Settings | None = None) -> str:
    r"""Say what a broker is to be subscribed to for a receiver's topic.

    Returns:
        A topic name, or a pattern that begins with ``^`` and ends with ``$``: without the
        first librdkafka takes it for a name, without the second it takes longer names too.
        A tenant is ``[^.]+``: FOLIO's own ``\w+`` misses tenants with a hyphen.
    """
    settings = settings or get_settings()
    if "*" not in pattern:
        forms = [_form(topic_options(pattern, settings), settings)]
    else:
        # Those with a name of another shape stand beside the shape of all others.
        special = [
            topic
            for topic in declared_topics.merged(settings).values()
            if (topic.namespace or topic.environment_only) and matches(pattern, topic.name)
        ]
        forms = [_form(Topic("any"), settings, escape(pattern).replace(r"\*", "[^.]*"))]
        forms += sorted(_form(topic, settings) for topic in special)
    env = escape(settings.ENV)
    if len(forms) > 1:
        return rf"^{env}\.({'|'.join(forms)})$"
    if TENANT in forms[0] or "*" in pattern:
        return rf"^{env}\.{forms[0]}$"
    return wire_topic(pattern, None, settings)


def _form(topic: Topic, settings: Settings, name: str | None = None) -> str:
    """What follows the environment in the names of a topic, as a pattern."""
    segments = [escape(topic.namespace)] if topic.namespace is not None else []
    if settings.TENANCY is not None and not topic.environment_only:
        segments.append(TENANT)
    return r"\.".join((*segments, name or escape(topic.name)))


def subscriptions(patterns: Iterable[str], settings: Settings | None = None) -> list[str]:
    """Say what a broker is to be subscribed to for the topics of a group's receivers.

    Returns:
        Names and patterns. With CONSUMER_PATTERN those names that it takes, and itself in the
        place of all patterns: POSIX expressions cannot say "this one and that one". What it
        takes beyond the receivers' topics is read and passed over.

    Raises:
        ConfigurationError: CONSUMER_PATTERN cannot be.
    """
    settings = settings or get_settings()
    own = sorted({subscription(pattern, settings) for pattern in patterns})
    narrowed = consumer_pattern(settings)
    if narrowed is None:
        return own
    names = [name for name in own if not name.startswith("^")]
    left = [name for name in names if re.fullmatch(narrowed, name)]
    return left if left and names == own else [narrowed, *left]


def consumer_pattern(settings: Settings | None = None) -> str | None:
    """CONSUMER_PATTERN as librdkafka takes it; None: it is not set.

    Raises:
        ConfigurationError: librdkafka would not take it, or it takes topics of other
            environments too.
    """
    settings = settings or get_settings()
    if settings.CONSUMER_PATTERN is None:
        return None
    pattern = librdkafka_pattern(settings.CONSUMER_PATTERN)
    env = escape(settings.ENV)
    begin = re.match(rf"\^(\({env}\\?\.\)|{env}\\?\.)(?![?*+{{])", pattern)
    if begin is None:
        raise ConfigurationError(
            f"CONSUMER_PATTERN {settings.CONSUMER_PATTERN!r} takes topics of other environments: "
            rf"let it begin with '{env}\.', and put alternatives after that into parentheses."
        )
    return rf"^{env}\.{pattern[begin.end() :]}"


def matches(pattern: str, topic: str) -> bool:
    """Whether a logical topic falls under what a receiver listens to."""
    if "*" not in pattern:
        return pattern == topic
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[^.]*"), topic) is not None


def stands_for(tenant: str, settings: Settings | None = None) -> str | None:
    """What else a topic's tenant segment of this name would stand for; None: nothing else.

    Whoever reads such a topic would take it for another, so no tenant may have the name.
    """
    settings = settings or get_settings()
    if tenant == settings.TENANT_COLLECTION:
        return "the tenant collection"
    return declared_topics.first_segments(settings).get(tenant)


def colliding(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of topics that differ in '.' and '_' only, of which Kafka creates one alone.

    Source:
        org.apache.kafka.common.internals.Topic: metrics have '_' in the place of '.'.
    """
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        known = seen.setdefault(name.replace(".", "_"), name)
        if known != name:
            yield known, name
