"""The topics of this project on the broker: how they are wanted, created, compared, changed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from folio_events import inbox, topics
from folio_events.audit import Actor, log_erasure
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec, TopicState, TopicUse
from folio_events.conf import get_settings
from folio_events.declarations import events
from folio_events.exceptions import (
    BrokerError,
    InvalidStateError,
    InvalidTenantError,
    MissingTenantError,
    MissingTopicError,
)
from folio_events.ownership import is_tenant, tenant_of
from folio_events.receivers import broadcasts, registry
from folio_events.topics.declared import (
    TOMBSTONE_RETENTION,
    Topic,
    declared_topics,
    topic_options,
)

logger = logging.getLogger("folio_events.topics")

#: Most names that a message lists.
_NAMED = 5


def own_topics() -> set[str]:
    """The logical topics that this project publishes to: its models' and those it declares.

    Of what the setting TOPICS alone names, nobody knows whose it is.
    """
    return {*events.topics(), *declared_topics.in_code()}


def named_topics() -> set[str]:
    """The same with those that receivers name; a pattern names none."""
    listened = (one.topic for one in (*registry, *broadcasts))
    return {*own_topics(), *(topic for topic in listened if "*" not in topic)}


def topic_spec(topic: str, tenant: str | None) -> TopicSpec:
    """How a topic is wanted on the broker.

    Args:
        topic: Logical topic.
        tenant: Whose; ignored where tenancy is off or a tenant collection is on.
    """
    settings = get_settings()
    has_own = settings.TENANCY is not None and not settings.TENANT_COLLECTION
    options = topic_options(topic, tenant=tenant if has_own else None)
    config = options.config()
    if "compact" in (options.cleanup_policy or ""):
        config.setdefault("delete.retention.ms", str(TOMBSTONE_RETENTION * 1000))
    return TopicSpec(
        topics.wire_topic(topic, tenant),
        settings.TOPIC_PARTITIONS if options.partitions is None else options.partitions,
        settings.TOPIC_REPLICATION if options.replication is None else options.replication,
        config,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A property of a topic that is not as declared."""

    #: On the broker.
    topic: str
    #: "partitions", "replication", or a setting by Kafka's name.
    what: str
    declared: str
    found: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.what} is {self.found}, declared {self.declared}"

    @property
    def is_config(self) -> bool:
        return self.what not in ("partitions", "replication")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The topics of some tenants as they are wanted, by name on the broker."""

    specs: Mapping[str, TopicSpec]
    #: Of a topic that only receivers name, what nobody declared is its owner's: not compared.
    foreign: Mapping[str, Topic] = field(default_factory=dict)


def wanted_topics(tenants: Iterable[str] = (), *, only: Collection[str] | None = None) -> Wanted:
    """How the topics of this project are wanted.

    Args:
        tenants: Needed where tenancy is on without a tenant collection.
        only: Logical topics; None: all that models, declarations and receivers name.

    Raises:
        MissingTenantError: Tenancy is on, and no tenant is named.
        InvalidTenantError: A tenant cannot be a segment of a topic.
    """
    settings = get_settings()
    names = named_topics() if only is None else set(only)
    found: list[str | None] = [validate_tenant(tenant) for tenant in tenants]
    if settings.TENANCY is None or settings.TENANT_COLLECTION:
        found = [None]
    elif not found:
        raise MissingTenantError("Tenancy is on: name the tenants.")
    own = own_topics()
    specs: dict[str, TopicSpec] = {}
    foreign: dict[str, Topic] = {}
    for topic in sorted(names):
        for tenant in found:
            spec = topic_spec(topic, tenant)
            specs[spec.name] = spec
            if topic not in own:
                foreign[spec.name] = topic_options(topic, tenant=tenant)
    return Wanted(specs, foreign)


def validate_tenant(tenant: str) -> str:
    """Return the tenant, or refuse it.

    Raises:
        InvalidTenantError: It cannot be a segment of a topic.
    """
    if not is_tenant(tenant):
        raise InvalidTenantError(
            f"{tenant!r} is no tenant: use at most 200 letters, digits, '_' and '-'."
        )
    if other := topics.stands_for(tenant):
        raise InvalidTenantError(f"{tenant!r} is no tenant: in topics it stands for {other}.")
    return tenant


def known_tenants(broker: Broker | None = None) -> set[str]:
    """The tenants that have topics of this project on the broker.

    What could be a tenant collection is taken for one.

    Raises:
        BrokerUnavailableError: The broker does not answer.
    """
    settings = get_settings()
    if settings.TENANCY is None:
        return set()
    broker = broker or get_broker()
    names = named_topics()
    parts = map(topics.parse_wire_topic, broker.list_topics(f"{settings.ENV}."))
    found = (tenant_of({}, part.tenant) for part in parts if part.topic in names)
    return {tenant for tenant in found if tenant}


def create_missing(
    names: Mapping[str, tuple[str, str | None]], broker: Broker
) -> dict[str, BrokerError]:
    """Create topics that do not exist, one by one.

    Args:
        names: By name on the broker: logical topic and tenant.
        broker: Where.

    Returns:
        Why, of those that cannot be.

    Raises:
        BrokerError: The broker does not answer, or cannot create a topic just now.
    """
    creates = get_settings().CREATE_TOPICS
    unknown = names.keys() - broker.known_topics if broker.keeps_topics else names.keys()
    missing = broker.missing_topics(unknown) if unknown else set()
    refusals: dict[str, BrokerError] = {}
    for name in sorted(missing):
        if not creates:
            refusals[name] = MissingTopicError(
                f"Topic {name!r} does not exist. Create it with 'manage.py create_topics', then release the message."
            )
            continue
        try:
            broker.create_topics([topic_spec(*names[name])])
        except BrokerError as error:
            if error.retryable:
                raise
            refusals[name] = error
        else:
            logger.info("created topic %s", name)
    broker.known_topics |= names.keys() - refusals.keys()
    return refusals


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is wanted against what is there."""

    missing: list[TopicSpec]
    drift: list[Drift]


def compare(wanted: Wanted, broker: Broker) -> Comparison:
    """Say which topics are missing, and which are not as declared; changes nothing.

    Raises:
        BrokerUnavailableError: The broker does not answer.
    """
    states = broker.describe_topics(wanted.specs)
    missing = broker.missing_topics(wanted.specs.keys() - states.keys())
    return Comparison(
        missing=[wanted.specs[name] for name in sorted(missing)],
        drift=[
            drift
            for name in sorted(states)
            for drift in _differences(wanted.specs[name], states[name], wanted.foreign.get(name))
        ],
    )


def _differences(spec: TopicSpec, state: TopicState, options: Topic | None) -> Iterable[Drift]:
    def drift(what: str, declared: object, found: object) -> Drift:
        return Drift(topic=spec.name, what=what, declared=str(declared), found=str(found))

    if spec.partitions != state.partitions and (options is None or options.partitions is not None):
        yield drift("partitions", spec.partitions, state.partitions)
    if (
        spec.replication not in (-1, state.replication)
        and state.replication is not None
        and (options is None or options.replication is not None)
    ):
        yield drift("replication", spec.replication, state.replication)
    for name, declared in sorted(spec.config.items()) if state.config is not None else ():
        found = (state.config or {}).get(name, "unset")
        if _normal(name, found) != _normal(name, declared):
            yield drift(name, declared, found)


def _normal(name: str, value: str) -> object:
    # "compact,delete" and "delete,compact" are the same.
    return frozenset(value.split(",")) if name == "cleanup.policy" else value


def alter_configs(drift: Iterable[Drift], broker: Broker, *, dry_run: bool = False) -> list[Drift]:
    """Set the settings that are not as declared.

    Args:
        drift: Of ``compare()``.
        broker: Where.
        dry_run: Only say what would be set.

    Returns:
        What was set; partitions and replication are left alone.

    Raises:
        BrokerError: A topic could not be changed.
    """
    done = [one for one in drift if one.is_config]
    if dry_run:
        return done
    configs: dict[str, dict[str, str]] = {}
    for one in done:
        configs.setdefault(one.topic, {})[one.what] = one.declared
    broker.configure_topics(configs)
    for one in done:
        logger.warning("altered topic %s: %s from %s to %s", one.topic, one.what, one.found, one.declared)  # fmt: skip
    return done


def grow_partitions(
    drift: Iterable[Drift], broker: Broker, *, even_unread: bool = False, dry_run: bool = False
) -> list[Drift]:
    """Give topics the partitions that they are declared to have more than they have.

    A key's later records may stand in another partition than its earlier ones, so its order
    holds only if those are read before: stop the relay, and let all groups read to the end.

    Args:
        drift: Of ``compare()``; topics with more partitions than declared are left alone.
        broker: Where.
        even_unread: Grow although some group has not read all.
        dry_run: Only say what would be grown.

    Returns:
        What was grown.

    Raises:
        InvalidStateError: Some group has not read all, or a topic is compacted; nothing was grown.
        BrokerError: A topic could not grow.
    """
    done = [one for one in drift if one.what == "partitions" and int(one.declared) > int(one.found)]
    names = {one.topic for one in done}
    _refuse_compacted(names, broker)
    if not even_unread:
        _refuse_unread(names, broker)
    if dry_run:
        return done
    broker.grow_topics({one.topic: int(one.declared) for one in done})
    for one in done:
        logger.warning("topic %s: partitions grown from %s to %s", one.topic, one.found, one.declared)  # fmt: skip
    return done


def _refuse_compacted(names: Collection[str], broker: Broker) -> None:
    states = broker.describe_topics(names)
    policies = {name: (state.config or {}).get("cleanup.policy", "") for name, state in states.items()}  # fmt: skip
    if compacted := sorted(name for name, policy in policies.items() if "compact" in policy):
        raise InvalidStateError(
            f"Compacted topics cannot grow: {', '.join(compacted[:_NAMED])}. A key that moved "
            "would leave its last record behind for ever; make a new topic, and fill it anew."
        )


def _refuse_unread(names: Collection[str], broker: Broker) -> None:
    lags = {name: _listed(lag) for name, lag in sorted(unread(names, broker).items())}
    if waiting := [f"{name} ({lag})" for name, lag in lags.items() if lag]:
        raise InvalidStateError(
            f"{len(waiting)} topics have records that groups have not read: "
            f"{'; '.join(waiting[:_NAMED])}. In more partitions, later records of a key may "
            "overtake them. Stop the relay, let the groups read to the end, and try again."
        )


def _listed(lag: Mapping[str, int]) -> str:
    return ", ".join(f"{group}: {count}" for group, count in sorted(lag.items()) if count)


def unread(names: Collection[str], broker: Broker) -> dict[str, dict[str, int]]:
    """How many records each known group has not read, by topic on the broker and group.

    Known are this project's groups that listen to the topic, those that it has offsets of, and
    those that the broker has offsets of. What a group's receivers committed counts, not what
    the broker heard of it.

    Raises:
        BrokerError: The broker does not answer, or does not tell.
    """
    return {name: lag_of(name, use) for name, use in broker.describe_use(names).items()}


def lag_of(name: str, use: TopicUse) -> dict[str, int]:
    """How many records of one topic each known group has not read."""
    logical = topics.parse_wire_topic(name).topic
    listening = [receiver for receiver in registry if receiver.listens_to(logical)]
    databases = {receiver.lane for receiver in listening} | {""}
    own = inbox.group_offsets(name, databases=databases)
    positions = {group: dict(offsets) for group, offsets in use.groups.items()}
    positions |= {receiver.group: {} for receiver in listening if receiver.group not in own}
    positions |= own
    return {
        group: sum(
            max(high - max(offsets.get(number, low), low), 0)
            for number, (low, high) in use.ends.items()
        )
        for group, offsets in positions.items()
    }


def enable_tenant(tenant: str, *, broker: Broker | None = None) -> set[str]:
    """Create a tenant's topics that do not exist; a second call changes nothing.

    Returns:
        The names of those that were created.

    Raises:
        InvalidTenantError: The tenant cannot be a segment of a topic.
        BrokerError: A topic could not be created.
    """
    broker = broker or get_broker()
    created = broker.create_topics(list(wanted_topics([tenant]).specs.values()))
    logger.info("enabled tenant %s: %s topics created", tenant, len(created))
    return created


def disable_tenant(tenant: str) -> None:
    """Note that a tenant no longer uses this module; its topics and events stay."""
    logger.info("disabled tenant %s: its topics stay", validate_tenant(tenant))


def purge_tenant(tenant: str, *, broker: Broker | None = None, by: Actor = None) -> set[str]:
    """Delete the topics of a tenant that this project publishes to, with all their records.

    Topics that only receivers name are another module's. Where tenants share topics, because
    tenancy is off or a tenant collection is on, nothing is deleted.

    Args:
        tenant: Its name.
        broker: Defaults to the setting BROKER.
        by: The user who does it.

    Returns:
        The names of those that were deleted.

    Raises:
        InvalidTenantError: The tenant cannot be a segment of a topic.
        BrokerError: A topic could not be deleted.
    """
    settings = get_settings()
    validate_tenant(tenant)
    if settings.TENANCY is None or settings.TENANT_COLLECTION:
        logger.info("purged tenant %s: its topics are others' too, and stay", tenant)
        return set()
    shared = {topic for topic in own_topics() if topic_options(topic).environment_only}
    wanted = wanted_topics([tenant], only=own_topics() - shared)
    return delete_topics(wanted.specs, broker or get_broker(), why=f"tenant {tenant}", by=by)


def delete_topics(names: Collection[str], broker: Broker, *, why: str, by: Actor) -> set[str]:
    """Delete topics and what this project knows of their offsets.

    Returns:
        The names of those that existed.

    Raises:
        BrokerError: A topic could not be deleted.
    """
    deleted = broker.delete_topics(names)
    # Of a topic that is created anew, offsets begin at 0 again.
    inbox.forget_topics(deleted, databases={receiver.lane for receiver in registry} | {""})
    if deleted:
        log_erasure(f"{len(deleted)} topics, {why}: {', '.join(sorted(deleted))}", by=by)
    return deleted
