"""Names of topics and groups as FOLIO's modules form them, and what may stand in one; pure."""

from __future__ import annotations

import re
import socket
import uuid

from folio_events.exceptions import ConfigurationError

#: Source: org.apache.kafka.common.internals.Topic.
MAX_TOPIC_LENGTH = 249
_WIRE = re.compile(r"[A-Za-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
_LOGICAL = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LOGICAL_PATTERN = re.compile(r"[A-Za-z0-9_*-]+(\.[A-Za-z0-9_*-]+)*")
#: Source: folio-kafka-wrapper, KafkaTopicNameHelper; RFC 0002.
_COLLECTION = re.compile(r"[A-Z][A-Z0-9]{0,30}")
#: The placeholders of Spring's configuration files, ``${NAME:default}``.
_PLACEHOLDER = re.compile(r"\$\{([^}:]+)(?::([^}]*))?\}")
_ENV_PLACEHOLDERS = ("ENV", "folio.environment")


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


def validate_wire_topic(name: str) -> str:
    """Return the name of a topic on the broker, or refuse it.

    Raises:
        ConfigurationError: Kafka would not take it.
    """
    if not _WIRE.fullmatch(name) or name in (".", ".."):
        raise ConfigurationError(
            f"{name!r} is no topic that Kafka takes: only letters, digits, '.', '_' and '-', "
            "and neither '.' nor '..' alone."
        )
    if len(name) > MAX_TOPIC_LENGTH:
        raise ConfigurationError(
            f"{name!r} has {len(name)} characters; Kafka takes {MAX_TOPIC_LENGTH}."
        )
    return name


def validate_env(env: str) -> str:
    """Return the environment, or refuse it.

    Raises:
        ConfigurationError: It is not made of letters, digits, '-' and '_'.

    Source:
        folio-service-tools, FolioEnvironment.
    """
    if not _SEGMENT.fullmatch(str(env)):
        raise ConfigurationError(f"ENV {env!r} does not match [a-zA-Z0-9\\-_]+.")
    return env


def validate_namespace(namespace: str) -> str:
    """Return the namespace of a topic, or refuse it.

    Raises:
        ConfigurationError: It is not one segment of a topic.
    """
    if not _SEGMENT.fullmatch(str(namespace)):
        raise ConfigurationError(
            f"{namespace!r} is no namespace: it is one segment of a topic, made of letters, "
            "digits, '_' and '-', such as 'Default'."
        )
    return namespace


def validate_tenant_collection(collection: str) -> str:
    """Return the tenant collection qualifier, or refuse it.

    Raises:
        ConfigurationError: It does not match FOLIO's rule for it.
    """
    if not _COLLECTION.fullmatch(str(collection)):
        raise ConfigurationError(
            "KAFKA_PRODUCER_TENANT_COLLECTION environment variable does not match "
            f"[A-Z][A-Z0-9]{{0,30}}: {collection!r}, the setting TENANT_COLLECTION."
        )
    return collection


def validate_group_instance_id(group_instance_id: str | None) -> str | None:
    """Return the name of a static member of a group, None for none, or refuse it.

    Raises:
        ConfigurationError: It is blank.

    Source:
        folio-kafka-wrapper, KafkaConsumerWrapper.
    """
    if group_instance_id is not None and not group_instance_id.strip():
        raise ConfigurationError(
            "groupInstanceId must be non-empty String value. Current value is "
            f"'{group_instance_id}'"
        )
    return group_instance_id


def topic_name(
    env: str,
    tenant: str,
    event_type: str,
    namespace: str | None = None,
    tenant_collection: str | None = None,
) -> str:
    """Name a tenant's topic on the broker.

    Args:
        env: Environment, such as ``folio``.
        tenant: Owner of the events; a tenant collection takes its place.
        event_type: What follows the tenant: an event type such as ``DI_COMPLETED``, or
            module and name such as ``inventory.item``.
        namespace: ``Default`` with data import and the acquisition audit, else None.
        tenant_collection: Empty is none.

    Returns:
        ``{env}.{tenant}.{event_type}``, with a namespace ``{env}.{namespace}.{tenant}.{event_type}``.

    Raises:
        ConfigurationError: A part is blank, or Kafka would not take the name.
    """
    _refuse_blank(env, tenant, event_type)
    if namespace is not None:
        validate_namespace(namespace)
    owner = validate_tenant_collection(tenant_collection) if tenant_collection else tenant
    return validate_wire_topic(".".join(filter(None, (env, namespace, owner, event_type))))


def pubsub_topic_name(
    env: str,
    tenant: str,
    event_type: str,
    module: str,
    version: str,
    tenant_collection: str | None = None,
) -> str:
    """Name mod-pubsub's own topic of an event type, which is the name of its group too.

    Returns:
        ``{env}.pub-sub.{tenant}.{event_type}.{module}-{version}``, the module with hyphens.

    Raises:
        ConfigurationError: A part is blank, or Kafka would not take the name.
    """
    _refuse_blank(env, tenant, event_type)
    _refuse_blank(module, version, parts="module, version")
    published = f"{event_type}.{module.replace('_', '-')}-{version}"
    return topic_name(env, tenant, published, "pub-sub", tenant_collection)


def env_topic_name(env: str, name: str) -> str:
    """Name a topic that the whole environment shares: ``{env}.{name}``.

    Raises:
        ConfigurationError: A part is blank, or Kafka would not take the name.
    """
    _refuse_blank(env, name, parts="env, name")
    return validate_wire_topic(f"{env}.{name}")


def event_type_from_topic(topic: str | None) -> str:
    """The last segment of a topic on the broker; of a domain topic that is its entity only.

    Raises:
        ConfigurationError: There is no dot in it.
    """
    if not topic or not topic.strip() or "." not in topic:
        shown = "null" if topic is None else topic
        raise ConfigurationError(
            f"Invalid topic name: {shown} - expected env.nameSpace.tenant.eventType"
        )
    return topic.rpartition(".")[2]


def domain_topic(topic: str) -> str:
    """A domain topic on the broker without environment and tenant; whole if it has neither."""
    return topic.split(".", 2)[2] if topic.count(".") >= 2 else topic


def group_name(event_type: str, module: str, version: str | None = None) -> str:
    """Name a consumer group in the way of folio-kafka-wrapper: ``{event_type}.{module}``.

    Args:
        event_type: What it consumes.
        module: Who consumes; upstream it carries the version, and an upgrade reads all anew.
        version: Appended to the module after a hyphen.

    Raises:
        ConfigurationError: A part is blank.
    """
    _refuse_blank(event_type, module, parts="event_type, module")
    return f"{event_type}.{module}-{version}" if version else f"{event_type}.{module}"


def group_from_template(template: str, env: str) -> str:
    """Fill in a group as FOLIO's Spring modules write it, ``${ENV:folio}-mod-x-group``.

    Args:
        template: ``${ENV}``, ``${ENV:default}`` and ``${folio.environment}`` are known.
        env: What stands in their place.

    Raises:
        ConfigurationError: Another variable is named, or the group would be blank.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in _ENV_PLACEHOLDERS:
            raise ConfigurationError(
                f"Group {template!r} names the variable {found[1]!r}; only ${{ENV}} is known."
            )
        return env or found[2] or ""

    group = _PLACEHOLDER.sub(value, template)
    _refuse_blank(group, parts="group")
    return group


def unshared_group(group: str) -> str:
    """Name a group that no other process is in, for receivers that every process must see.

    Returns:
        The group with the name of the host, as FOLIO's Spring modules do, and a random part:
        a host may run several processes.
    """
    return f"{group}-{socket.gethostname()}-{uuid.uuid4().hex[:10]}"


def _refuse_blank(*values: str | None, parts: str = "envId, tenantId, topicName") -> None:
    if not all(value and value.strip() for value in values):
        raise ConfigurationError(f"{parts} can't be blank")
