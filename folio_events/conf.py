"""The settings: one dict, FOLIO_EVENTS, read when used."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from folio_events.exceptions import ConfigurationError

DATABASE_BROKER = "folio_events.brokers.database.DatabaseBroker"
KAFKA_BROKER = "folio_events.brokers.kafka.KafkaBroker"
DEFAULT_GROUP = "events"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One field per key of FOLIO_EVENTS; times are in seconds."""

    #: First segment of every topic; keeps deployments on one broker apart (FOLIO: ENV).
    ENV: str = "folio"
    #: Consumer group of receivers that name none. Kafka needs one of your own.
    GROUP: str = DEFAULT_GROUP
    #: CloudEvents ``source`` of this project's events; empty means "/" and the group.
    SOURCE: str = ""
    #: {"BACKEND": dotted path, "OPTIONS": {...}}; for Kafka the options are librdkafka's.
    BROKER: Mapping[str, Any] = field(default_factory=lambda: {"BACKEND": DATABASE_BROKER})
    #: None: no tenants. "folio": each event has a tenant, a segment of its topic.
    TENANCY: str | None = None
    #: Tenant of events that no context and no resolver names; None refuses them.
    DEFAULT_TENANT: str | None = None
    #: Dotted path of a function without arguments that returns the tenant or None.
    TENANT_RESOLVER: str | None = None
    #: Whose events are taken: {"ENTITLED": dotted path of a function that returns the entitled
    #: tenants, "TENANT_DISABLED": "SKIP", "ALL_TENANTS_DISABLED": "FAIL", "REFRESH": 60}.
    TENANT_FILTER: Mapping[str, Any] | None = None
    #: Whether the log line of a message without owner shows its body's first 1,000 bytes.
    ORPHAN_LOG_BODY: bool = False
    #: Whether log lines show the keys of messages; else a digest, the same for the same key.
    LOG_KEYS: bool = True
    #: Whether events carry the trace of their request, and relay and receivers have spans (extra
    #: "tracing").
    TRACING: bool = False
    #: One topic for all tenants: this qualifier stands for the tenant in topic names.
    TENANT_COLLECTION: str | None = None
    #: What is said of single topics, by logical name: {"inventory.item": {"PARTITIONS": 50}}.
    #: Wins over ``declare_topic()``; see docs/reference/topics.md.
    TOPICS: Mapping[str, Any] = field(default_factory=dict)
    #: Rule for the names of topics: None, "folio", "openedx", or the dotted path of a function.
    TOPIC_NAMING: str | None = None
    #: Pattern of topics on the broker; consumers read no others (KAFKA_EVENTS_CONSUMER_PATTERN).
    CONSUMER_PATTERN: str | None = None
    #: Dotted path of the REST framework permission that FOLIO's tenant call asks for.
    TENANT_API_PERMISSION: str = "folio_events.api.tenant.MayProvisionTenants"
    #: Dotted path of the REST framework permission that the rest of the REST API asks for.
    API_PERMISSION: str = "folio_events.api.access.MayOperate"
    #: Partitions of topics that folio_events creates.
    TOPIC_PARTITIONS: int = 6
    #: Replicas of topics that folio_events creates; -1 leaves it to the broker.
    TOPIC_REPLICATION: int = -1
    #: Whether relay and consumer create missing topics that this project declares.
    CREATE_TOPICS: bool = True
    #: Most rows that one drain reads.
    RELAY_BATCH_SIZE: int = 1000
    #: Longest wait for the acknowledgements of one batch.
    RELAY_DEADLINE: float = 30.0
    #: Pause of ``relay_events`` when the outbox is empty.
    RELAY_POLL_INTERVAL: float = 0.1
    #: Whether commits wake the relay up (PostgreSQL); one connection more for each process.
    WAKE_UP: bool = True
    #: Least time between two wake-ups of one process.
    WAKE_UP_INTERVAL: float = 0.03
    #: Seconds after which a run of the Celery task ``relay_events`` leaves the rest to the next.
    RELAY_SLOT: float = 0.8
    #: Most records in one transaction of the consumer.
    CONSUMER_BATCH_SIZE: int = 500
    #: Longest wait of one poll of the consumer.
    CONSUMER_POLL_INTERVAL: float = 1.0
    #: First pause after the consumer loop itself failed; grows with jitter up to 30 s.
    POLL_FAILURE_SLEEP: float = 1.0
    #: Errors in a row of the consumer loop itself after which it exits.
    CONSECUTIVE_ERRORS_LIMIT: int = 10
    #: Longest wait for the batch in hand before its partitions go to another consumer.
    REVOKE_WAIT: float = 30.0
    #: Open deliveries behind one key from which on its partition waits.
    MAX_HELD: int = 1000
    #: Open deliveries of a receiver whose breaker is open from which on its partitions wait.
    MAX_WAITING: int = 10_000
    #: Runs that an event gets of a receiver without a policy of its own, the first included.
    RETRY_ATTEMPTS: int = 5
    #: Pause before the second of them; each further one is twice as long.
    RETRY_BACKOFF: float = 1.0
    #: Most deliveries that one retry pass runs.
    RETRY_BATCH_SIZE: int = 100
    #: Unpublished rows from which on a warning is logged; None: never.
    OUTBOX_SOFT_LIMIT: int | None = None
    #: Unpublished rows from which on writes with events are refused; None: never.
    OUTBOX_HARD_LIMIT: int | None = None
    #: Seconds between two heartbeats of a relay or consumer; after three it counts as vanished.
    HEARTBEAT_INTERVAL: float = 10.0
    #: How old an event may be that no consumer has finished before it counts as overdue.
    OVERDUE_AFTER: float = 300.0
    #: How long published messages are kept.
    OUTBOX_RETENTION: float = 7 * 86_400
    #: How long it is known that an event took effect: longer than any topic's retention.
    INBOX_RETENTION: float = 30 * 86_400
    #: How long settled deliveries and orphans are kept, and what is known of replays, bulk
    #: actions and back-fills that ended.
    DELIVERY_RETENTION: float = 90 * 86_400
    #: How long the database broker keeps records that every group has read.
    BROKER_RETENTION: float = 7 * 86_400
    #: Most rows that a purge deletes in one transaction.
    PURGE_BATCH_SIZE: int = 1000


@functools.cache
def get_settings() -> Settings:
    """Read FOLIO_EVENTS.

    Raises:
        ConfigurationError: FOLIO_EVENTS is no dict, or has an unknown key.
    """
    given = getattr(django_settings, "FOLIO_EVENTS", {})
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"FOLIO_EVENTS must be a dict, not {type(given).__name__}.")
    known = [f.name for f in fields(Settings)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(known)}."
            raise ConfigurationError(f"FOLIO_EVENTS has an unknown key {name!r}.{hint}")
    return Settings(**given)


def _forget_settings(*, setting: str, **_kwargs: object) -> None:
    if setting == "FOLIO_EVENTS":
        get_settings.cache_clear()


setting_changed.connect(_forget_settings, dispatch_uid="folio_events.conf")
