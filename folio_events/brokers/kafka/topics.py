"""What Kafka says about topics, and their creation."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from folio_events.brokers.base import TopicSpec, TopicState, TopicUse
from folio_events.brokers.kafka.clients import keep_after_fork, logger
from folio_events.brokers.kafka.durability import Durability
from folio_events.brokers.kafka.errors import GONE, NO_LEADER, NO_TOPIC, translate
from folio_events.brokers.kafka.trouble import Trouble
from folio_events.brokers.kafka.use import read_use
from folio_events.exceptions import BrokerError, BrokerUnavailableError, MissingTopicError

#: Seconds for one call of the admin client.
ADMIN_TIMEOUT = 15.0
#: Seconds for which the limits of a topic are believed.
_LIMITS_LIFETIME = 300.0
#: How often, and how many seconds apart, a topic is tried to be created while Kafka says that
#: it exists and does not list it. Source: folio-kafka-wrapper, KafkaAdminClientService.
_CREATE_ATTEMPTS = 30
_CREATE_PAUSE = 0.1
#: Most partitions of the topics in one request; the controller refuses some thousands.
_MOST_PARTITIONS = 1000
#: How often, and how many seconds apart, a topic is asked about while one broker
#: lists it and another does not know it.
_DESCRIBE_ATTEMPTS = 10
_DESCRIBE_PAUSE = 0.2


class Topics:
    """The topics of a cluster, by its admin client."""

    def __init__(self, options: Mapping[str, Any], trouble: Trouble) -> None:
        self._options = options
        self._client: AdminClient | None = None
        self._trouble = trouble
        #: By topic: until when the limit is believed, and the limit.
        self._limits: dict[str, tuple[float, int | None]] = {}
        self._unreachable_until = 0.0
        keep_after_fork(self)

    @property
    def _admin(self) -> AdminClient:
        if self._client is None:
            options: dict[str, Any] = {**self._options, "error_cb": self._trouble}
            self._client = AdminClient(options, logger=logger)
        # What it has to log and to tell would pile up.
        self._client.poll(0)
        return self._client

    def missing(self, names: Collection[str]) -> set[str]:
        try:
            known = self._admin.list_topics(timeout=ADMIN_TIMEOUT).topics
        except KafkaException as error:
            raise self._explained(error.args[0]) from error
        self._trouble.over()
        return set(names) - set(known)

    def _explained(self, error: KafkaError) -> BrokerError:
        if error.code() not in GONE:
            return translate(error)
        self._admin.poll(0)  # has it tell what happened
        return BrokerUnavailableError(self._trouble.explain("Kafka does not answer"))

    def ping(self, timeout: float) -> None:
        try:
            self._admin.describe_cluster(request_timeout=timeout).result()
        except KafkaException as error:
            if error.args[0].code() in GONE:
                raise self._explained(error.args[0]) from error
        # A refusal is an answer.
        self._trouble.over()

    def names(self, prefix: str) -> set[str]:
        try:
            known = self._admin.list_topics(timeout=ADMIN_TIMEOUT).topics
        except KafkaException as error:
            raise self._explained(error.args[0]) from error
        return {name for name in known if name.startswith(prefix)}

    def create(self, specs: Iterable[TopicSpec]) -> set[str]:
        created: set[str] = set()
        for portion in _portions(specs):
            created |= self._create(portion)
        return created

    def _create(self, specs: Iterable[TopicSpec]) -> set[str]:
        wanted = {spec.name: spec for spec in specs}
        created: set[str] = set()
        pause = threading.Event()
        for _ in range(_CREATE_ATTEMPTS):
            missing = self.missing(wanted) if wanted else set()
            if not missing:
                return created
            made, refused = self._try_to_create([wanted[name] for name in sorted(missing)])
            created |= made
            if not refused:
                self._await(made)
                return created
            # Somebody else is creating it, or deleting it: one of the two will show.
            pause.wait(_CREATE_PAUSE)
        raise BrokerUnavailableError(
            f"Kafka says that {', '.join(sorted(refused))} exists, but does not list it: it may "
            "be about to be deleted. Try again."
        )

    def _try_to_create(self, specs: Iterable[TopicSpec]) -> tuple[set[str], set[str]]:
        """Create topics; the names that were created, and those that are said to exist."""
        new = [
            NewTopic(
                spec.name,
                num_partitions=spec.partitions,
                replication_factor=spec.replication,
                config=dict(spec.config),
            )
            for spec in specs
        ]
        created: set[str] = set()
        existing: set[str] = set()
        futures = self._admin.create_topics(new, request_timeout=ADMIN_TIMEOUT)
        for name, error in self._outcomes(futures).items():
            if error is None:
                created.add(name)
            elif error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                existing.add(name)
            else:
                raise self._refusal("created", name, error)
        return created, existing

    @staticmethod
    def _outcomes(futures: Mapping[Any, Any]) -> dict[Any, KafkaError | None]:
        """What became of each, when all are settled."""
        found: dict[Any, KafkaError | None] = {}
        for key, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                found[key] = error.args[0]
            else:
                found[key] = None
        return found

    def _refusal(self, done: str, topic: str, error: KafkaError) -> BrokerError:
        if error.code() in GONE:
            return self._explained(error)
        return translate(error, about=f"Topic {topic!r} was not {done}. ")

    def _await(self, names: set[str]) -> None:
        # A topic is created before every broker has heard of it.
        pause = threading.Event()
        until = time.monotonic() + ADMIN_TIMEOUT
        while names and self.missing(names) and time.monotonic() < until:
            pause.wait(0.05)

    def describe(self, names: Collection[str]) -> dict[str, TopicState]:
        existing = self._existing(names)
        descriptions = self._patiently(self._descriptions, existing)
        configs = self._patiently(self._configs, descriptions)
        return {
            topic: TopicState(
                partitions=len(description.partitions),
                replication=min(len(partition.replicas) for partition in description.partitions),
                config=_values(configs[topic]) if topic in configs else None,
            )
            for topic, description in descriptions.items()
        }

    @staticmethod
    def _patiently(
        ask: Callable[[Collection[str]], dict[str, Any]], topics: Collection[str]
    ) -> dict[str, Any]:
        """Ask about topics that exist; one broker may hear of a new topic later than another."""
        found: dict[str, Any] = {}
        pause = threading.Event()
        for _ in range(_DESCRIBE_ATTEMPTS):
            found |= ask(set(topics) - found.keys()) if topics else {}
            if len(found) == len(topics):
                break
            pause.wait(_DESCRIBE_PAUSE)
        return found

    def _existing(self, names: Collection[str]) -> set[str]:
        # Kafka is not asked about those it does not have: each would be a warning.
        return set(names) - self.missing(names) if names else set()

    def grow(self, partitions: Mapping[str, int]) -> None:
        if not partitions:
            return
        new = [NewPartitions(topic, count) for topic, count in partitions.items()]
        futures = self._admin.create_partitions(new, request_timeout=ADMIN_TIMEOUT)
        for topic, error in self._outcomes(futures).items():
            if error is not None:
                raise self._refusal("given more partitions", topic, error)

    def configure(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        if not configs:
            return
        resources = [
            ConfigResource(
                ResourceType.TOPIC,
                topic,
                incremental_configs=[
                    ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                    for name, value in config.items()
                ],
            )
            for topic, config in configs.items()
        ]
        futures = self._admin.incremental_alter_configs(resources, request_timeout=ADMIN_TIMEOUT)
        for resource, error in self._outcomes(futures).items():
            if error is not None:
                raise self._refusal("changed", resource.name, error)
        self.forget_limits()

    def delete(self, names: Collection[str]) -> set[str]:
        existing = self._existing(names)
        if not existing:
            return set()
        futures = self._admin.delete_topics(sorted(existing), request_timeout=ADMIN_TIMEOUT)
        deleted: set[str] = set()
        for topic, error in self._outcomes(futures).items():
            if error is None:
                deleted.add(topic)
            elif error.code() not in NO_TOPIC:  # else another was quicker
                raise self._refusal("deleted", topic, error)
        self.forget_limits()
        return deleted

    def use(self, names: Collection[str]) -> dict[str, TopicUse]:
        existing = self._existing(names)
        descriptions = self._patiently(self._descriptions, existing)
        if untold := existing - descriptions.keys():
            raise BrokerUnavailableError(
                f"Kafka does not describe {', '.join(sorted(untold))}; it may be new, or want the "
                "right Describe."
            )
        places = [
            TopicPartition(topic, partition.id)
            for topic, description in descriptions.items()
            for partition in description.partitions
        ]
        pause, deadline = threading.Event(), time.monotonic() + ADMIN_TIMEOUT
        while True:
            try:
                return read_use(self._admin, places, ADMIN_TIMEOUT)
            except KafkaException as error:
                if error.args[0].code() not in NO_LEADER or time.monotonic() > deadline:
                    raise self._explained(error.args[0]) from error
            pause.wait(_DESCRIBE_PAUSE)  # leaders are being elected

    def durability(self, names: Collection[str]) -> dict[str, Durability]:
        """How topics are kept; without those that do not exist or are not to be described."""
        found: dict[str, Durability] = {}
        configs = self._configs(names) if names else {}
        for topic, description in self._descriptions(configs).items():
            config = _values(configs[topic])
            found[topic] = Durability(
                replicas=min(len(partition.replicas) for partition in description.partitions),
                # A service may keep its settings to itself.
                min_insync=int(config.get("min.insync.replicas") or 2),
                unclean_election=config.get("unclean.leader.election.enable") == "true",
            )
        return found

    def _configs(self, topics: Collection[str]) -> dict[str, Any]:
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        futures = self._admin.describe_configs(resources, request_timeout=ADMIN_TIMEOUT)
        return self._known({resource.name: future for resource, future in futures.items()})

    def _descriptions(self, topics: Collection[str]) -> dict[str, Any]:
        if not topics:
            return {}
        asked = TopicCollection(list(topics))
        return self._known(self._admin.describe_topics(asked, request_timeout=ADMIN_TIMEOUT))

    def _known(self, futures: Mapping[str, Any]) -> dict[str, Any]:
        """What Kafka says of topics; without those it does not tell."""
        found = {}
        for topic, future in futures.items():
            try:
                found[topic] = future.result()
            except KafkaException as error:
                if error.args[0].code() in GONE:
                    raise self._explained(error.args[0]) from error
                logger.warning("Kafka does not describe topic %s: %s", topic, error.args[0].str())
        return found

    def ids(self, topics: Collection[str]) -> dict[str, str]:
        """The ids that Kafka gave these topics; without those it does not tell."""
        described = self._descriptions(topics)
        return {topic: str(description.topic_id) for topic, description in described.items()}

    def limit(self, topic: str, timeout: float = math.inf) -> int | None:
        """The largest record batch in bytes that a topic takes; None: not known."""
        until, limit = self._limits.get(topic, (0.0, None))
        now = time.monotonic()
        # While Kafka is away, one topic's wait is enough.
        if until > now or self._unreachable_until > now:
            return limit
        try:
            limit = self._read_limit(topic, min(max(timeout, 0.1), ADMIN_TIMEOUT))
        except BrokerUnavailableError:
            self._unreachable_until = time.monotonic() + ADMIN_TIMEOUT
        except MissingTopicError:
            limit = None  # asked for again: it may have been created a moment ago
        else:
            self._limits[topic] = (time.monotonic() + _LIMITS_LIFETIME, limit)
        return limit

    def _read_limit(self, topic: str, timeout: float) -> int | None:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            future = self._admin.describe_configs([resource], request_timeout=timeout)[resource]
            return int(future.result()["max.message.bytes"].value)
        except (KafkaException, KeyError, TypeError, ValueError) as error:
            if isinstance(error, KafkaException) and error.args[0].code() in (*GONE, *NO_TOPIC):
                raise self._explained(error.args[0]) from error
            # Describing needs a right of its own; without it the broker's refusal decides.
            logger.warning("Kafka does not tell the limit of topic %s: %s", topic, error)
            return None

    def forget_limits(self) -> None:
        self._limits.clear()

    def close(self) -> None:
        self._client = None


def _values(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: entry.value for name, entry in config.items() if entry.value is not None}


def _portions(specs: Iterable[TopicSpec]) -> Iterator[list[TopicSpec]]:
    """Topics in portions that one request takes."""
    portion: list[TopicSpec] = []
    partitions = 0
    for spec in specs:
        if portion and partitions + spec.partitions > _MOST_PARTITIONS:
            yield portion
            portion, partitions = [], 0
        portion.append(spec)
        partitions += spec.partitions
    if portion:
        yield portion
