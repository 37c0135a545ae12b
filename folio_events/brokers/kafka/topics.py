"""What Kafka says about topics, and their creation."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from folio_events.brokers.base import TopicSpec
from folio_events.brokers.kafka.clients import keep_after_fork, logger
from folio_events.brokers.kafka.durability import Durability
from folio_events.brokers.kafka.errors import GONE, NO_TOPIC, translate
from folio_events.brokers.kafka.trouble import Trouble
from folio_events.exceptions import BrokerError, BrokerUnavailableError, MissingTopicError

#: Seconds for one call of the admin client.
ADMIN_TIMEOUT = 15.0
#: Seconds for which the limits of a topic are believed.
_LIMITS_LIFETIME = 300.0


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

    def create(self, specs: Iterable[TopicSpec]) -> set[str]:
        new = [
            NewTopic(spec.name, num_partitions=spec.partitions, replication_factor=spec.replication)
            for spec in specs
        ]
        created: set[str] = set()
        if not new:
            return created
        for name, future in self._admin.create_topics(new, request_timeout=ADMIN_TIMEOUT).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._explained(error.args[0]) from error
            else:
                created.add(name)
        self._await(created)
        return created

    def _await(self, names: set[str]) -> None:
        # A topic is created before every broker has heard of it.
        pause = threading.Event()
        until = time.monotonic() + ADMIN_TIMEOUT
        while names and self.missing(names) and time.monotonic() < until:
            pause.wait(0.05)

    def durability(self, names: Collection[str]) -> dict[str, Durability]:
        """How topics are kept; without those that do not exist or are not to be described."""
        found: dict[str, Durability] = {}
        configs = self._configs(names) if names else {}
        for topic, description in self._descriptions(configs).items():
            config = {name: entry.value for name, entry in configs[topic].items()}
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
