"""The variables that FOLIO's modules read, and what each of them means here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable that is read; texts are Markdown."""

    name: str
    #: Names under which FOLIO's modules find the same value, in the order of their weight.
    others: tuple[str, ...] = ()
    #: The key of FOLIO_EVENTS, or the option of the broker.
    becomes: str
    #: What holds where it is not set: here, and in FOLIO's modules.
    unset: str
    unset_in_folio: str
    meaning: str
    #: Which values are refused.
    refused: str = ""


_ABOVE_0 = "all but a whole number above 0"

VARIABLES = (
    Variable(
        name="KAFKA_HOST",
        others=("kafka-host",),
        becomes="`BROKER`, with `bootstrap.servers`",
        unset="the database broker",
        unset_in_folio="`localhost`",
        meaning="Where Kafka is. May be a list with commas, each member with or without a port.",
        refused="a list without a host",
    ),
    Variable(
        name="KAFKA_PORT",
        others=("kafka-port",),
        becomes="`bootstrap.servers`",
        unset="`9092`",
        unset_in_folio="`9092`",
        meaning="The port of hosts that have none.",
        refused="all but a port: Kubernetes sets `tcp://...` for a service with the name `kafka`",
    ),
    Variable(
        name="ENV",
        others=("env", "environment"),
        becomes="`ENV`",
        unset="`folio`",
        unset_in_folio="`folio`",
        meaning="The first segment of every topic.",
        refused="all but letters, digits, `-` and `_`",
    ),
    Variable(
        name="REPLICATION_FACTOR",
        becomes="`TOPIC_REPLICATION`",
        unset="the broker's default",
        unset_in_folio="`1`",
        meaning="Replicas of topics that are created.",
        refused=_ABOVE_0,
    ),
    Variable(
        name="NUMBER_OF_PARTITIONS",
        others=("kafka.number_of_partitions",),
        becomes="`TOPIC_PARTITIONS`",
        unset="`6`",
        unset_in_folio="`1`, in some modules 10 or 50",
        meaning="Partitions of topics that are created and have no variable of their own.",
        refused=_ABOVE_0,
    ),
    Variable(
        name="MAX_REQUEST_SIZE",
        becomes="`message.max.bytes` of the producer",
        unset="the largest that a topic takes",
        unset_in_folio="`1048576`, in mod-circulation `4000000`",
        meaning="The largest message in bytes.",
        refused="all but a whole number from 1000 to 1000000000",
    ),
    Variable(
        name="KAFKA_PRODUCER_TENANT_COLLECTION",
        becomes="`TENANT_COLLECTION`, and `TENANCY` `folio`",
        unset="a topic for each tenant",
        unset_in_folio="a topic for each tenant",
        meaning="Stands for the tenant in the topics that are published to.",
        refused="what does not match `[A-Z][A-Z0-9]{0,30}`",
    ),
    Variable(
        name="KAFKA_EVENTS_CONSUMER_PATTERN",
        becomes="`CONSUMER_PATTERN`",
        unset="all topics that receivers listen to",
        unset_in_folio="the module's own",
        meaning="Narrows the topics that are listened to, by the whole name on the broker.",
        refused="what is no regular expression (`manage.py check`)",
    ),
    Variable(
        name="KAFKA_SECURITY_PROTOCOL",
        others=("security.protocol", "spring.kafka.security.protocol"),
        becomes="`security.protocol`",
        unset="`PLAINTEXT`",
        unset_in_folio="`PLAINTEXT`",
        meaning="How to speak with Kafka. FOLIO has no variables for SASL: put `sasl.mechanism`, "
        "`sasl.username` and `sasl.password` into the broker's options.",
        refused="all but `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT`, `SASL_SSL`",
    ),
    Variable(
        name="KAFKA_SSL_TRUSTSTORE_LOCATION",
        others=("ssl.truststore.location", "spring.kafka.ssl.trust-store-location"),
        becomes="`ssl.ca.location`",
        unset="the authorities of the system",
        unset_in_folio="those of Java",
        meaning="The authorities by which Kafka is known: a PEM file.",
        refused="JKS, PKCS#12 and DER, with the command that converts them",
    ),
    Variable(
        name="KAFKA_SSL_TRUSTSTORE_TYPE",
        others=("ssl.truststore.type", "spring.kafka.ssl.trust-store-type"),
        becomes="nothing, where the file can be read",
        unset="what the file begins with",
        unset_in_folio="`JKS`",
        meaning="The file itself says what it is; this only helps the error if it cannot be read.",
    ),
    Variable(
        name="KAFKA_SSL_KEYSTORE_LOCATION",
        others=("ssl.keystore.location", "spring.kafka.ssl.key-store-location"),
        becomes="PKCS#12: `ssl.keystore.location`; PEM: `ssl.certificate.location` and "
        "`ssl.key.location`",
        unset="no client certificate",
        unset_in_folio="no client certificate",
        meaning="The client's certificate and key.",
        refused="JKS and DER, with the command that converts them; a file that cannot be read",
    ),
    Variable(
        name="KAFKA_SSL_KEYSTORE_PASSWORD",
        others=("ssl.keystore.password", "spring.kafka.ssl.key-store-password"),
        becomes="PKCS#12: `ssl.keystore.password`; PEM: `ssl.key.password`",
        unset="none",
        unset_in_folio="none",
        meaning="The key store's password. No error and no log line contains it.",
        refused="none at all for PKCS#12",
    ),
    Variable(
        name="KAFKA_SSL_KEYSTORE_TYPE",
        others=("ssl.keystore.type", "spring.kafka.ssl.key-store-type"),
        becomes="nothing, where the file can be read",
        unset="what the file begins with",
        unset_in_folio="`JKS`",
        meaning="As `KAFKA_SSL_TRUSTSTORE_TYPE`.",
    ),
    Variable(
        name="ssl.key.password",
        others=("spring.kafka.ssl.key-password",),
        becomes="PEM: `ssl.key.password`",
        unset="`KAFKA_SSL_KEYSTORE_PASSWORD`",
        unset_in_folio="none",
        meaning="The password of the key in a PEM file.",
    ),
    Variable(
        name="ssl.endpoint.identification.algorithm",
        others=("spring.kafka.properties.ssl.endpoint.identification.algorithm",),
        becomes="the option of that name",
        unset="`https`",
        unset_in_folio="`https`",
        meaning="Whether the broker's name is looked for in its certificate. An empty one does "
        "not turn that off, `none` does.",
        refused="all but `https` and `none`",
    ),
    Variable(
        name="KAFKA_CONSUMER_MAX_POLL_RECORDS",
        others=("kafka.consumer.max.poll.records", "spring.kafka.consumer.max-poll-records"),
        becomes="`CONSUMER_BATCH_SIZE`",
        unset="`500`",
        unset_in_folio="`100`, in mod-search 200",
        meaning="Most records that are in hand at once: one transaction of the consumer.",
        refused=_ABOVE_0,
    ),
    Variable(
        name="KAFKA_RETRY_INTERVAL_MS",
        becomes="`RETRY_BACKOFF`",
        unset="`1` second",
        unset_in_folio="`1000`, in mod-search 2000",
        meaning="Milliseconds before the second run of a receiver that failed and has no "
        "`RetryPolicy` of its own. Each further pause is twice as long; in FOLIO's modules all "
        "are the same.",
        refused=_ABOVE_0,
    ),
    Variable(
        name="KAFKA_RETRY_DELIVERY_ATTEMPTS",
        becomes="`RETRY_ATTEMPTS`",
        unset="`5`",
        unset_in_folio="`5`, in mod-search 6",
        meaning="Runs of such a receiver, the first included, until the event is a dead letter.",
        refused=_ABOVE_0,
    ),
    Variable(
        name="DOMAIN_EVENTS_ENABLED",
        becomes="nothing",
        unset="`true`",
        unset_in_folio="`true`",
        meaning="Events are part of the transaction that writes, and cannot be turned off from "
        "outside: leave models unregistered, or write within `suppress_events()`.",
        refused="`false`, and all but a truth value",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A variable of FOLIO's modules that is not read."""

    name: str
    why: str


IGNORED = (
    Ignored(
        name="OKAPI_URL",
        why="folio_events calls nobody. `x-okapi-url` of an event is that of the request in "
        "which it was recorded. An event recorded outside one has neither address nor token: "
        "with the address alone nobody could call back.",
    ),
    Ignored(
        name="KAFKA_EVENTS_CONCURRENCY",
        why="Threads that one module has for one topic. Here they are processes: start that "
        "many `consume_events`.",
    ),
    Ignored(
        name="KAFKA_AUTHORITIES_CONSUMER_PATTERN",
        why="mod-search's second pattern. `KAFKA_EVENTS_CONSUMER_PATTERN` is for all receivers.",
    ),
    Ignored(
        name="KAFKA_REINDEX_PRODUCER_MAX_REQUEST_SIZE_BYTES",
        why="One producer publishes to all topics, and takes what the largest of them takes.",
    ),
    Ignored(
        name="KAFKA_SSL_TRUSTSTORE_PASSWORD",
        why="A PEM file of authorities has no password.",
    ),
    Ignored(
        name="ssl.protocol",
        why="OpenSSL agrees with the broker on the newest version of TLS that both have.",
    ),
    Ignored(
        name="kafka.producer.delivery.timeout.ms",
        why="The relay's deadline is `RELAY_DEADLINE`; a second one would cut a key in two.",
    ),
    Ignored(
        name="SYSTEM_USER_NAME",
        why="folio_events logs in nowhere. Nor are `SYSTEM_USER_PASSWORD`, `SYSTEM_USER_CREATE` "
        "and `SYSTEM_USER_ENABLED` read.",
    ),
    Ignored(
        name="pubsub.delivery.retry.number",
        why="mod-pubsub's. Here: `KAFKA_RETRY_DELIVERY_ATTEMPTS`.",
    ),
    Ignored(
        name="event.payload.audit.enabled",
        why="mod-pubsub's. The outbox keeps every event for `OUTBOX_RETENTION`.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicVariable:
    """A variable for certain topics: a key of their entries in TOPICS."""

    name: str
    #: Logical topics.
    topics: tuple[str, ...]
    option: Literal["PARTITIONS", "RETENTION", "MAX_MESSAGE_BYTES"]
    #: What FOLIO's modules take where it is not set.
    unset_in_folio: int

    def convert(self, number: int) -> float:
        """Its value in TOPICS: retention is in milliseconds there, in seconds here."""
        return number / 1000 if self.option == "RETENTION" else number


def _inventory(*kinds: str) -> tuple[str, ...]:
    return tuple(f"inventory.{kind}" for kind in kinds)


#: Source: mod-inventory-storage, InventoryKafkaTopic.
TOPIC_VARIABLES = (
    TopicVariable(
        name="KAFKA_DOMAIN_TOPIC_NUM_PARTITIONS",
        topics=_inventory(
            "async-migration", "bound-with", "holdings-record", "instance", "instance-contribution",
            "item", "service-point",
        ),
        option="PARTITIONS",
        unset_in_folio=50,
    ),
    *(
        TopicVariable(
            name=f"KAFKA_{kind.upper().replace('-', '_')}_TOPIC_NUM_PARTITIONS",
            # Upstream's own variable for dates is that of subject sources.
            topics=_inventory(kind, *(["instance-date-type"] if kind == "subject-source" else [])),
            option="PARTITIONS",
            unset_in_folio=1,
        )
        for kind in (
            "classification-type", "call-number-type", "location", "library", "loan-type", "campus",
            "institution", "subject-type", "subject-source", "material-type", "setting",
        )
    ),
    TopicVariable(
        name="KAFKA_REINDEX_RECORDS_TOPIC_NUM_PARTITIONS",
        topics=_inventory("reindex-records"),
        option="PARTITIONS",
        unset_in_folio=16,
    ),
    TopicVariable(
        name="KAFKA_REINDEX_FILE_READY_TOPIC_NUM_PARTITIONS",
        topics=_inventory("reindex.file-ready"),
        option="PARTITIONS",
        unset_in_folio=16,
    ),
    TopicVariable(
        name="KAFKA_REINDEX_RECORDS_TOPIC_MESSAGE_RETENTION",
        topics=_inventory("reindex-records"),
        option="RETENTION",
        unset_in_folio=86_400_000,
    ),
    TopicVariable(
        name="KAFKA_REINDEX_RECORDS_TOPIC_MAX_MESSAGE_SIZE",
        topics=_inventory("reindex-records"),
        option="MAX_MESSAGE_BYTES",
        unset_in_folio=10_485_760,
    ),
)  # fmt: skip

#: A data-import event's variable is its name and this, e.g. DI_COMPLETED_PARTITIONS.
DI_SUFFIX = "_PARTITIONS"
#: Upstream has no variable for it: every process reads all of it.
DI_SINGLE = "DI_JOB_CANCELLED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProperty:
    """A property that FOLIO's Kafka wrapper gives to its clients, and what stands for it here."""

    role: Literal["producer", "consumer"]
    #: Java's name of it.
    java: str
    folio: str
    #: librdkafka's option, or the key of FOLIO_EVENTS in capitals; empty: there is none.
    option: str = ""
    ours: str = ""
    why: str = ""
    #: The wrapper's property of Spring's kind, by which it is read too.
    spring: str = ""
    #: Whether it is taken from the environment as an option of that client.
    taken: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The variables by which it is set."""
        return (f"kafka.{self.role}.{self.java}", f"spring.kafka.{self.role}.{self.spring}")


#: Source: folio-kafka-wrapper, KafkaConfig and SpringKafkaProperties.
CLIENT_PROPERTIES = (
    ClientProperty(
        role="producer", java="enable.idempotence", folio="true",
        option="enable.idempotence", ours="true", taken=False,
    ),
    *(
        ClientProperty(
            role="producer", java=f"{part}.serializer", folio="StringSerializer", taken=False,
            why="Key and body are bytes since the event was recorded.",
        )
        for part in ("key", "value")
    ),
    ClientProperty(
        role="producer", java="interceptor.classes", folio="TenantIdCheckInterceptor",
        why="An event without a tenant is refused when it is recorded; the interceptor only logs.",
        taken=False,
    ),
    ClientProperty(
        role="producer", java="compression.type", folio="gzip", spring="compression-type",
        option="compression.type", ours="none",
        why="[Decision 0013](../decisions/0013-compression.md); every consumer reads any.",
    ),
    ClientProperty(
        role="producer", java="linger.ms", folio="0", spring="linger.ms",
        option="linger.ms", ours="5",
        why="The relay publishes batches; its last message waits no longer, since it is flushed.",
    ),
    ClientProperty(
        role="producer", java="batch.size", folio="16384", spring="batch.size",
        option="batch.size", ours="1000000",
        why="Lowered to the smallest topic's limit. Large batches are what makes one relay enough.",
    ),
    ClientProperty(
        role="producer", java="request.timeout.ms", folio="30000", spring="request.timeout.ms",
        option="request.timeout.ms", ours="30000",
    ),
    ClientProperty(
        role="producer", java="delivery.timeout.ms", folio="120000", spring="delivery.timeout.ms",
        option="message.timeout.ms", ours="0", taken=False,
        why="`RELAY_DEADLINE` is the one deadline: librdkafka must not give up in the midst of a "
        "key.",
    ),
    ClientProperty(
        role="producer", java="retry.backoff.ms", folio="100", spring="retry.backoff.ms",
        option="retry.backoff.ms", ours="100",
    ),
    ClientProperty(
        role="producer", java="max.in.flight.requests.per.connection", folio="5",
        spring="max.in.flight.requests.per.connection",
        option="max.in.flight.requests.per.connection", ours="1000000",
        why="librdkafka lowers it to 5 by itself, since idempotence is on.",
    ),
    ClientProperty(
        role="producer", java="max.request.size", folio="`MAX_REQUEST_SIZE`, if above 0",
        option="message.max.bytes", ours="1000000", taken=False,
        why="Raised to the largest topic's limit, unless `MAX_REQUEST_SIZE` is set.",
    ),
    ClientProperty(
        role="consumer", java="enable.auto.commit", folio="false",
        option="enable.auto.commit", ours="false", taken=False,
    ),
    *(
        ClientProperty(
            role="consumer", java=f"{part}.deserializer", folio="StringDeserializer", taken=False,
            why="Bytes are kept as they came, also those that are no event.",
        )
        for part in ("key", "value")
    ),
    ClientProperty(
        role="consumer", java="max.poll.records", folio="100",
        option="CONSUMER_BATCH_SIZE", ours="500", taken=False,
        why="A batch is one transaction; a larger one costs less for each record. librdkafka takes "
        "the name and does nothing with it.",
    ),
    ClientProperty(
        role="consumer", java="max.poll.interval.ms", folio="600000",
        spring="properties.max.poll.interval.ms",
        option="max.poll.interval.ms", ours="600000",
    ),
    ClientProperty(
        role="consumer", java="auto.offset.reset", folio="earliest", spring="auto-offset-reset",
        option="auto.offset.reset", ours="earliest",
    ),
    ClientProperty(
        role="consumer", java="metadata.max.age.ms", folio="30000",
        spring="properties.metadata.max.age.ms",
        option="topic.metadata.refresh.interval.ms", ours="30000",
        why="librdkafka's own `metadata.max.age.ms` is about its cache alone.",
    ),
    ClientProperty(
        role="consumer", java="session.timeout.ms", folio="45000",
        spring="properties.session.timeout.ms",
        option="session.timeout.ms", ours="45000",
    ),
    ClientProperty(
        role="consumer", java="heartbeat.interval.ms", folio="3000",
        spring="properties.heartbeat.interval.ms",
        option="heartbeat.interval.ms", ours="3000",
    ),
)  # fmt: skip
