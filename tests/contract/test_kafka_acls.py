"""The rights that ``topic_acls`` prints suffice for relay and consumer, and give no others."""

from __future__ import annotations

import io
import itertools
import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from django.core.management import CommandError, call_command
from django.db import transaction
from django.utils import timezone

from folio_events import declare_topic, publish, receiver, tenant_context
from folio_events.brokers import get_broker
from folio_events.brokers.kafka import KafkaBroker
from folio_events.conf import KAFKA_BROKER
from folio_events.consumer import Consumer
from folio_events.event import Event
from folio_events.models import WithheldMessage
from folio_events.operations.acls import acls
from folio_events.provisioning import wanted_topics
from folio_events.receivers import registry
from folio_events.relay import drain
from folio_events.topics.declared import declared_topics
from tests.services import KafkaCluster, kafka

TOPIC = "library.note"
DEADLINE = timedelta(seconds=60)


@pytest.fixture
def note(only_test_receivers: None) -> Iterator[list[str | None]]:
    """A declared topic with a receiver in a group of its own; the tenants it was called for."""
    declare_topic(TOPIC, partitions=1)
    got: list[str | None] = []

    @receiver(TOPIC, name="acl-reader", group=f"reader-{uuid.uuid4().hex[:8]}")
    def read(event: Event) -> None:
        got.append(event.tenant)

    yield got
    declared_topics.remove(TOPIC)


def printed(*arguments: str) -> list[list[str]]:
    out = io.StringIO()
    call_command("topic_acls", "--principal", "User:mysite", *arguments, stdout=out)
    return [shlex.split(line) for line in out.getvalue().splitlines()]


def values(words: Sequence[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(words) if name == option]


class TestNames:
    """Which rights there are, in each topology."""

    def test_tenants_of_their_own_topics_can_be_told_apart(
        self, folio_events: Callable[..., None], note: list[str | None]
    ) -> None:
        """Literal names of the tenants that are named, for each role what it does."""
        folio_events(TENANCY="folio", ENV="prod")

        producer, consumer, group = acls(["producer", "consumer"], tenants=["diku", "college"])

        assert "prod.diku.library.note" in producer.names
        assert {name.split(".")[1] for name in producer.names} == {"diku", "college"}
        assert (producer.pattern, producer.operations) == ("literal", ("Write", "Describe", "DescribeConfigs"))  # fmt: skip
        assert consumer.names == ("prod.college.library.note", "prod.diku.library.note")
        assert (consumer.pattern, consumer.operations) == ("literal", ("Read", "Describe"))
        assert (group.resource, len(group.names)) == ("group", 1)

    def test_tenants_to_come_need_the_whole_environment(
        self, folio_events: Callable[..., None], note: list[str | None]
    ) -> None:
        """Their topics have no names yet."""
        folio_events(TENANCY="folio", ENV="prod")

        producer, consumer, _group = acls(["producer", "consumer"])

        for acl in (producer, consumer):
            assert (acl.pattern, acl.names) == ("prefixed", ("prod.",))

    def test_under_a_collection_no_right_is_one_tenants(
        self, folio_events: Callable[..., None], note: list[str | None]
    ) -> None:
        """Whoever may read the topic reads all tenants."""
        folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")

        one = acls(["producer", "consumer"], tenants=["diku"])

        assert one == acls(["producer", "consumer"])
        assert one[1].names == ("folio.ALL.library.note",)

    def test_a_pattern_needs_a_prefix(
        self, folio_events: Callable[..., None], note: list[str | None]
    ) -> None:
        """What stands before its star."""
        receiver("circulation.ITEM_*", name="star")(lambda _event: None)
        folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")

        _literal, prefixed, _group = acls(["consumer"])

        assert (prefixed.pattern, prefixed.names) == ("prefixed", ("folio.ALL.circulation.ITEM_",))

    def test_the_command_prints_calls_of_kafkas_tool(
        self, folio_events: Callable[..., None], note: list[str | None]
    ) -> None:
        """One line each, to be pasted into a shell."""
        folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")

        [topic, group] = printed("--role", "consumer", "--bootstrap-server", "kafka:9092")

        assert topic[:4] == ["kafka-acls.sh", "--bootstrap-server", "kafka:9092", "--add"]
        assert values(topic, "--allow-principal") == ["User:mysite"]
        assert values(topic, "--operation") == ["Read", "Describe"]
        assert values(topic, "--topic") == ["folio.ALL.library.note"]
        assert values(topic, "--resource-pattern-type") == ["literal"]
        assert len(values(group, "--group")) == 1

    def test_a_tenant_that_cannot_be_is_refused(
        self, folio_events: Callable[..., None], note: list[str | None]
    ) -> None:
        """As everywhere."""
        folio_events(TENANCY="folio")
        with pytest.raises(CommandError, match="no tenant"):
            printed("--tenant", "di.ku")


@pytest.fixture(scope="module")
def guarded() -> Iterator[KafkaCluster]:
    """A broker that asks for rights; whoever comes without a name may do all."""
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    settings = {"authorizer.class.name": authorizer, "super.users": "User:ANONYMOUS"}
    with kafka(secured=True, settings=settings) as cluster:
        yield cluster


TOPOLOGIES = [
    pytest.param({"TENANCY": "folio"}, ["--tenant", "diku"], id="a tenant that is named"),
    pytest.param({"TENANCY": "folio"}, [], id="all tenants"),
    pytest.param({"TENANCY": "folio", "TENANT_COLLECTION": "ALL"}, [], id="collection"),
    pytest.param({}, [], id="no tenancy"),
]


@pytest.mark.kafka
@pytest.mark.django_db
@pytest.mark.parametrize(("topology", "arguments"), TOPOLOGIES)
def test_relay_and_consumer_work_with_the_rights_that_are_printed(
    guarded: KafkaCluster,
    folio_events: Callable[..., None],
    note: list[str | None],
    topology: dict[str, Any],
    arguments: list[str],
) -> None:
    """From the outbox to the receiver; a tenant that was not named is refused."""
    assert guarded.security is not None
    folio_events(
        ENV=f"t{uuid.uuid4().hex[:8]}",
        CREATE_TOPICS=False,
        BROKER={
            "BACKEND": KAFKA_BROKER,
            "OPTIONS": guarded.security.with_password("SCRAM-SHA-512"),
        },
        **topology,
    )
    tenants = ["diku", "college"] if topology.get("TENANCY") else []
    owner = KafkaBroker({"bootstrap.servers": guarded.bootstrap})
    owner.create_topics(list(wanted_topics(tenants, only=[TOPIC]).specs.values()))
    owner.close()
    give(guarded, printed(*arguments))

    for tenant in tenants or [""]:
        with tenant_context(tenant or None), transaction.atomic():
            publish(TOPIC, key="k", payload={}, type="NOTE")
    result = drain()
    consumer = Consumer(registry.groups()[0])
    until = timezone.now() + DEADLINE
    while len(note) < result.published:
        assert timezone.now() < until
        consumer.step()
    consumer.close()
    get_broker().close()

    if arguments:
        assert (result.published, note) == (1, ["diku"])
        [refused] = WithheldMessage.objects.all()
        # Kafka does not even say that the topic exists.
        assert "does not exist" in refused.error
    else:
        assert (result.published, result.withheld) == (len(tenants) or 1, 0)


def give(cluster: KafkaCluster, commands: list[list[str]]) -> None:
    """Do what kafka-acls.sh would do; the jars that we fetch do not have it."""
    bindings = {
        AclBinding(
            ResourceType[kind.upper()],
            name,
            ResourcePatternType[values(words, "--resource-pattern-type")[0].upper()],
            principal,
            "*",
            AclOperation[_constant(operation)],
            AclPermissionType.ALLOW,
        )
        for words in commands
        for principal in values(words, "--allow-principal")
        for kind in ("topic", "group")
        for name in values(words, f"--{kind}")
        for operation in values(words, "--operation")
    }
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})
    for future in client.create_acls(list(bindings)).values():
        future.result(20)


def _constant(operation: str) -> str:
    return {"DescribeConfigs": "DESCRIBE_CONFIGS", "AlterConfigs": "ALTER_CONFIGS"}.get(
        operation, operation.upper()
    )
