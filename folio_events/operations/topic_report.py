"""What the topics of this project cost a broker: now, one per tenant, and under a collection."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from folio_events import topics
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.conf import Settings, get_settings
from folio_events.provisioning import known_tenants, named_topics, topic_spec

#: What stands for the tenant collection in the reckoning of a project that has none.
_ANY_COLLECTION = "ALL"


@dataclass(frozen=True, slots=True)
class Size:
    """A number of topics, and what they take on the brokers together."""

    topics: int = 0
    partitions: int = 0
    #: Partitions with all their copies.
    replicas: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.topics + other.topics,
            self.partitions + other.partitions,
            self.replicas + other.replicas,
        )

    @property
    def files(self) -> int:
        """File handles at least: one for the newest segment of each replica.

        Source: Kafka's manual, "OS: File descriptor limits"; a segment takes two memory maps
        besides.
        """
        return self.replicas

    def as_dict(self) -> dict[str, int]:
        return {
            "topics": self.topics,
            "partitions": self.partitions,
            "replicas": self.replicas,
            "files": self.files,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicReport:
    """Sizes of what is, and of what would be."""

    #: All topics on the broker that this project names.
    now: Size
    #: The same by the tenant's segment of the name, which may be a collection; "": none.
    by_tenant: dict[str, Size]
    #: The same by logical topic.
    by_topic: dict[str, Size]
    #: Reckoned from the declarations, if each tenant had topics of its own.
    per_tenant: Size
    #: Reckoned from the declarations, if all tenants shared theirs.
    collection: Size
    #: The tenants that this was reckoned for.
    tenants: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON takes it."""
        return {
            "now": self.now.as_dict(),
            "by_tenant": {name: size.as_dict() for name, size in self.by_tenant.items()},
            "by_topic": {name: size.as_dict() for name, size in self.by_topic.items()},
            "per_tenant": self.per_tenant.as_dict(),
            "collection": self.collection.as_dict(),
            "tenants": self.tenants,
        }


def topic_report(*, tenants: Collection[str] = (), broker: Broker | None = None) -> TopicReport:
    """Count the topics of this project, as they are and as another topology would have them.

    Args:
        tenants: To reckon for, besides those that have topics.
        broker: Defaults to the setting BROKER.

    Raises:
        BrokerUnavailableError: The broker does not answer.
    """
    broker = broker or get_broker()
    settings = get_settings()
    named = named_topics()
    by_tenant: dict[str, Size] = {}
    by_topic: dict[str, Size] = {}
    found = {
        name: part
        for name in broker.list_topics(f"{settings.ENV}.")
        if (part := topics.parse_wire_topic(name)).topic in named
    }
    replicas: dict[str, int] = {}
    for name, state in broker.describe_topics(found).items():
        size = Size(1, state.partitions, state.partitions * (state.replication or 1))
        part = found[name]
        by_tenant[part.tenant or ""] = by_tenant.get(part.tenant or "", Size()) + size
        by_topic[part.topic] = by_topic.get(part.topic, Size()) + size
        replicas[part.topic] = max(state.replication or 1, replicas.get(part.topic, 1))
    known = sorted({*tenants, *known_tenants(broker)})
    return TopicReport(
        now=_sum(by_topic.values()),
        by_tenant=dict(sorted(by_tenant.items())),
        by_topic=dict(sorted(by_topic.items())),
        per_tenant=_reckon(named, known or [None], replicas, None),
        collection=_reckon(named, [None], replicas, settings.TENANT_COLLECTION or _ANY_COLLECTION),
        tenants=known,
    )


def _sum(sizes: Iterable[Size]) -> Size:
    return sum(sizes, Size())


def _reckon(
    named: Collection[str],
    tenants: Collection[str | None],
    replicas: dict[str, int],
    collection: str | None,
) -> Size:
    """The size of the declared topics under another topology."""
    settings: Settings = replace(get_settings(), TENANCY="folio", TENANT_COLLECTION=collection)
    seen: set[str] = set()
    found = Size()
    for topic in named:
        for tenant in tenants:
            name = topics.wire_topic(topic, tenant, settings)
            if name in seen:
                continue  # one for all tenants, whatever the topology
            seen.add(name)
            spec = topic_spec(topic, tenant)
            # Where the broker chooses, what it chose for others is the best guess.
            copies = spec.replication if spec.replication > 0 else replicas.get(topic, 1)
            found += Size(1, spec.partitions, spec.partitions * copies)
    return found
