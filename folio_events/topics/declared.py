"""Topics that are declared with a namespace or with options of their own."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from folio_events.conf import Settings, get_settings
from folio_events.exceptions import ConfigurationError
from folio_events.topics.names import validate_namespace, validate_topic

CLEANUP_POLICIES = ("delete", "compact", "compact,delete")
_KNOWN_KEYS = (
    *("NAMESPACE", "PARTITIONS", "REPLICATION", "RETENTION", "CLEANUP_POLICY"),
    *("DELETE_RETENTION", "MAX_MESSAGE_BYTES", "ENVIRONMENT_ONLY", "TENANTS"),
)
#: What may differ from tenant to tenant: not what a topic is, only how large it is.
_TENANTS_KEYS = ("PARTITIONS", "REPLICATION", "RETENTION", "MAX_MESSAGE_BYTES")

#: Seconds that a compacted topic keeps tombstones unless its declaration says otherwise: longer
#: than a consumer may be away, or it never hears of a deletion. Kafka's own is one day.
TOMBSTONE_RETENTION = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Topic:
    """A logical topic, and how it is to be on the broker; None leaves it to the default.

    Raises:
        ConfigurationError: A value cannot be.
    """

    name: str
    #: Segment between environment and tenant; FOLIO knows one, ``Default``.
    namespace: str | None = None
    #: Default: the setting TOPIC_PARTITIONS.
    partitions: int | None = None
    #: Replicas; -1 leaves it to the broker. Default: the setting TOPIC_REPLICATION.
    replication: int | None = None
    #: Seconds that records are kept; ``math.inf`` or -1: for ever.
    retention: float | None = None
    #: "delete", "compact" or "compact,delete".
    cleanup_policy: str | None = None
    #: Seconds that tombstones of a compacted topic are kept. Default: TOMBSTONE_RETENTION.
    delete_retention: float | None = None
    #: Largest batch of records that the topic takes, in bytes.
    max_message_bytes: int | None = None
    #: Whether it is one topic for all tenants, ``{ENV}.{name}``.
    environment_only: bool = False

    def __post_init__(self) -> None:
        validate_topic(self.name)
        if self.namespace is not None:
            validate_namespace(self.namespace)
        self._require("partitions", "a whole number above 0", _is_count(self.partitions))
        self._require(
            "replication",
            "a whole number above 0, or -1",
            self.replication == -1 or _is_count(self.replication),
        )
        self._require(
            "retention",
            "a number of seconds above 0, or math.inf",
            self.retention == -1 or _is_duration(self.retention),
        )
        self._require(
            "cleanup_policy",
            f"one of {', '.join(CLEANUP_POLICIES)}",
            self.cleanup_policy in (None, *CLEANUP_POLICIES),
        )
        self._require(
            "delete_retention",
            "a finite number of seconds above 0",
            _is_duration(self.delete_retention) and self.delete_retention != math.inf,
        )
        self._require(
            "max_message_bytes", "a whole number above 0", _is_count(self.max_message_bytes)
        )
        self._require("environment_only", "True or False", isinstance(self.environment_only, bool))
        if self.environment_only and self.namespace is not None:
            raise ConfigurationError(
                f"Topic {self.name!r}: environment_only topics have no namespace. Leave one out."
            )

    def _require(self, option: str, kind: str, holds: bool) -> None:
        if not holds:
            raise ConfigurationError(
                f"Topic {self.name!r}: {option} must be {kind}, not {getattr(self, option)!r}."
            )

    def config(self) -> dict[str, str]:
        """What is said about the topic's configuration, in Kafka's names and units."""
        said = {
            "retention.ms": _milliseconds(self.retention),
            "cleanup.policy": self.cleanup_policy,
            "delete.retention.ms": _milliseconds(self.delete_retention),
            "max.message.bytes": self.max_message_bytes,
        }
        return {name: str(value) for name, value in said.items() if value is not None}


def _is_count(value: object) -> bool:
    return value is None or (
        isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    )


def _is_duration(value: object) -> bool:
    return value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0.001
    )


def _milliseconds(seconds: float | None) -> int | None:
    if seconds is None:
        return None
    return -1 if seconds in (-1, math.inf) else round(seconds * 1000)


class TopicRegistry:
    """Declared topics by name; the setting TOPICS wins over what code declares."""

    def __init__(self) -> None:
        self._declared: dict[str, Topic] = {}
        #: The setting that ``_merged`` was made with.
        self._given: Mapping[str, Any] | None = None
        self._merged: dict[str, Topic] = {}
        #: By topic and tenant, what TOPICS says of one tenant's.
        self._of_tenants: dict[tuple[str, str], Topic] = {}
        self._first_segments: dict[str, str] = {}

    def add(self, topic: Topic) -> None:
        known = self._declared.get(topic.name)
        if known is not None and known != topic:
            raise ConfigurationError(
                f"Topic {topic.name!r} is declared twice, as {_shown(known)} and as "
                f"{_shown(topic)}. Keep one."
            )
        self._declared[topic.name] = topic
        self._given = None

    def remove(self, name: str) -> None:
        """Forget a topic; for tests."""
        self._declared.pop(name, None)
        self._given = None

    def in_code(self) -> set[str]:
        """Names of the topics that code declares, whatever the setting says of them."""
        return set(self._declared)

    def merged(self, settings: Settings | None = None) -> Mapping[str, Topic]:
        """All topics that code or the setting TOPICS says something about, by name.

        Raises:
            ConfigurationError: TOPICS names an unknown option, or a value that cannot be.
        """
        given = (settings or get_settings()).TOPICS
        # Asked once for each record; one dict of the settings lives as long as they do.
        if given is not self._given:
            self._merged = self._merge(given)
            self._of_tenants = dict(self._merge_tenants(given))
            self._first_segments = _first_segments(self._merged.values())
            self._given = given
        return self._merged

    def of_tenants(self, settings: Settings | None = None) -> Mapping[tuple[str, str], Topic]:
        """The topics of single tenants that TOPICS says something about, by name and tenant.

        Raises:
            ConfigurationError: As ``merged``.
        """
        self.merged(settings)
        return self._of_tenants

    def first_segments(self, settings: Settings | None = None) -> Mapping[str, str]:
        """What stands at the tenant's place in topics that have no tenant there, and why.

        Raises:
            ConfigurationError: As ``merged``.
        """
        self.merged(settings)
        return self._first_segments

    def _merge(self, given: Mapping[str, Any]) -> dict[str, Topic]:
        if not isinstance(given, Mapping):
            raise ConfigurationError(
                f"FOLIO_EVENTS['TOPICS'] must be a dict of topic and options, not {given!r}."
            )
        merged = dict(self._declared)
        for name, options in given.items():
            said = _said(options, _KNOWN_KEYS, f"[{name!r}]")
            said.pop("tenants", None)
            merged[name] = replace(merged.get(name) or Topic(name), **said)
        return merged

    def _merge_tenants(self, given: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Topic]]:
        for name, options in given.items():
            place = f"[{name!r}]['TENANTS']"
            for tenant, own in _require_dict(options.get("TENANTS", {}), place).items():
                said = _said(own, _TENANTS_KEYS, f"{place}[{tenant!r}]")
                yield (name, tenant), replace(self._merged[name], **said)

    def __iter__(self) -> Iterator[Topic]:
        return iter(sorted(self.merged().values(), key=lambda topic: topic.name))

    def __contains__(self, name: object) -> bool:
        return name in self.merged()

    def __len__(self) -> int:
        return len(self.merged())


def _require_dict(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"FOLIO_EVENTS['TOPICS']{place} must be a dict, not {value!r}.")
    return value


def _said(options: object, known: Collection[str], place: str) -> dict[str, Any]:
    options = _require_dict(options, place)
    if unknown := sorted(map(str, options.keys() - set(known))):
        raise ConfigurationError(
            f"FOLIO_EVENTS['TOPICS']{place} has unknown options: {', '.join(unknown)}. "
            f"Known ones: {', '.join(known)}."
        )
    return {key.lower(): value for key, value in options.items()}


declared_topics = TopicRegistry()


def declare_topic(
    name: str,
    *,
    namespace: str | None = None,
    partitions: int | None = None,
    replication: int | None = None,
    retention: float | None = None,
    cleanup_policy: str | None = None,
    delete_retention: float | None = None,
    max_message_bytes: int | None = None,
    environment_only: bool = False,
) -> Topic:
    """Say how a topic is called and kept on the broker; called in a project's ``events.py``.

    The setting TOPICS wins over it, option by option.

    Args:
        name: Logical topic, such as ``inventory.item``.
        namespace: Segment between environment and tenant, such as ``Default``.
        partitions: Default: the setting TOPIC_PARTITIONS.
        replication: Replicas; default: the setting TOPIC_REPLICATION.
        retention: Seconds that records are kept; ``math.inf``: for ever.
        cleanup_policy: "delete", "compact" or "compact,delete".
        delete_retention: Seconds that tombstones of a compacted topic are kept.
        max_message_bytes: Largest batch of records that the topic takes.
        environment_only: One topic for all tenants, without a tenant segment.

    Raises:
        ConfigurationError: A value cannot be, or the topic is declared otherwise elsewhere.
    """
    topic = Topic(
        name,
        namespace=namespace,
        partitions=partitions,
        replication=replication,
        retention=retention,
        cleanup_policy=cleanup_policy,
        delete_retention=delete_retention,
        max_message_bytes=max_message_bytes,
        environment_only=environment_only,
    )
    declared_topics.add(topic)
    return topic


def topic_options(
    name: str, settings: Settings | None = None, *, tenant: str | None = None
) -> Topic:
    """What is declared of a logical topic; of one that is not declared, nothing but its name.

    Args:
        name: Logical topic.
        settings: Defaults to FOLIO_EVENTS.
        tenant: Whose; TOPICS may say of one tenant's topic what differs.

    Raises:
        ConfigurationError: The setting TOPICS has an option that cannot be.
    """
    if tenant is not None and (own := declared_topics.of_tenants(settings).get((name, tenant))):
        return own
    return declared_topics.merged(settings).get(name) or Topic(name)


def _first_segments(merged: Iterable[Topic]) -> dict[str, str]:
    found = {}
    for topic in merged:
        if topic.namespace is not None:
            found[topic.namespace] = f"the namespace of {topic.name!r}"
        elif topic.environment_only and "." in topic.name:
            found[topic.name.partition(".")[0]] = f"the beginning of {topic.name!r}"
    return found


def _shown(topic: Topic) -> str:
    defaults = asdict(Topic(topic.name))
    said = {key: value for key, value in asdict(topic).items() if value != defaults[key]}
    return ", ".join(f"{key}={value!r}" for key, value in said.items() if key != "name") or "plain"


def is_compacted(topic: str) -> bool:
    """Whether a logical topic is to keep the last event of each key only."""
    # Asked once for each event that is recorded.
    known = declared_topics.merged().get(topic)
    return known is not None and "compact" in (known.cleanup_policy or "")
