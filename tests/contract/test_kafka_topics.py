"""Topics on a real Kafka of three brokers: created as declared, compared, changed, deleted."""

from __future__ import annotations

import functools
import io
import math
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType
from django.core.management import CommandError, call_command

from folio_events import declare_topic
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.brokers.kafka import KafkaBroker
from folio_events.brokers.kafka import topics as kafka_topics
from folio_events.conf import KAFKA_BROKER
from folio_events.exceptions import BrokerError, BrokerUnavailableError
from folio_events.provisioning import enable_tenant, purge_tenant
from folio_events.topics.declared import declared_topics
from tests.contract.stage import message, publish
from tests.contract.test_kafka_durability import let_all_brokers_know
from tests.real_commands import RealCommand, environment
from tests.services import KafkaCluster, kafka
from tests.unit.vectors import cases


# All tests on them are marked django_db: those without a database run last, and the brokers would
# be started for them once more.
@pytest.fixture(scope="module")
def three_brokers() -> Iterator[KafkaCluster]:
    with kafka(brokers=3) as cluster:
        yield cluster
        admin.cache_clear()


@pytest.fixture
def on_three(
    three_brokers: KafkaCluster, folio_events: Callable[..., None], only_test_receivers: None
) -> Iterator[Broker]:
    """The setting BROKER names the three, with tenants, under an ENV of the test's own."""
    folio_events(
        ENV=f"t{uuid.uuid4().hex[:10]}",
        TENANCY="folio",
        GROUP="tests",
        BROKER={
            "BACKEND": KAFKA_BROKER,
            "OPTIONS": {"bootstrap.servers": three_brokers.bootstrap},
        },
    )
    broker = get_broker()
    yield broker
    broker.close()


@pytest.fixture
def declare() -> Iterator[Callable[..., None]]:
    """Declare topics for one test."""
    names: list[str] = []

    def add(name: str, **options: Any) -> None:
        declare_topic(name, **options)
        names.append(name)

    yield add
    for name in names:
        declared_topics.remove(name)


@functools.cache
def admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap})


def described(cluster: KafkaCluster, topic: str) -> tuple[int, int, dict[str, str]]:
    """Partitions, replicas and settings as Kafka's own tools would show them."""
    let_all_brokers_know(cluster)
    client = admin(cluster.bootstrap)
    partitions = client.list_topics(timeout=10).topics[topic].partitions
    resource = ConfigResource(ResourceType.TOPIC, topic)
    config = client.describe_configs([resource])[resource].result(10)
    values = {name: entry.value for name, entry in config.items()}
    return len(partitions), min(len(p.replicas) for p in partitions.values()), values


def run(*arguments: str) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    call_command("create_topics", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.mark.kafka
@pytest.mark.django_db
class TestCreation:
    def test_a_tenants_topics_are_created_as_declared(
        self,
        three_brokers: KafkaCluster,
        on_three: Broker,
        declare: Callable[..., None],
        settings: Any,
    ) -> None:
        """Partitions, replicas, retention, policy, tombstones, size; a second run changes nothing."""
        declare(
            "library.loan",
            partitions=4,
            replication=3,
            retention=86_400,
            max_message_bytes=2_000_000,
        )
        declare("library.state", partitions=2, replication=2, cleanup_policy="compact")
        declare("library.log", retention=math.inf, cleanup_policy="compact,delete", delete_retention=3600)  # fmt: skip
        env = settings.FOLIO_EVENTS["ENV"]

        first = enable_tenant("diku")
        second = enable_tenant("diku")

        assert {f"{env}.diku.library.loan", f"{env}.diku.library.state"} <= first
        assert second == set()
        partitions, replicas, config = described(three_brokers, f"{env}.diku.library.loan")
        assert (partitions, replicas) == (4, 3)
        assert config["retention.ms"] == "86400000"
        assert config["max.message.bytes"] == "2000000"
        partitions, replicas, config = described(three_brokers, f"{env}.diku.library.state")
        assert (partitions, replicas, config["cleanup.policy"]) == (2, 2, "compact")
        # Thirty days: longer than a consumer may be away.
        assert config["delete.retention.ms"] == "2592000000"
        _partitions, _replicas, config = described(three_brokers, f"{env}.diku.library.log")
        assert config["retention.ms"] == "-1"
        assert set(config["cleanup.policy"].split(",")) == {"compact", "delete"}
        assert config["delete.retention.ms"] == "3600000"

    def test_a_declared_topic_is_there_before_the_first_publish(
        self,
        three_brokers: KafkaCluster,
        on_three: Broker,
        declare: Callable[..., None],
        settings: Any,
    ) -> None:
        """Registering an event for a tenant creates its topic; nothing stands in it."""
        declare("circulation.ITEM_CHECKED_OUT", partitions=1)
        name = f"{settings.FOLIO_EVENTS['ENV']}.diku.circulation.ITEM_CHECKED_OUT"

        run("--tenant", "diku")
        let_all_brokers_know(three_brokers)

        assert on_three.describe_use([name])[name].ends == {0: (0, 0)}

    def test_two_processes_may_create_the_same_topics_at_once(
        self,
        on_three: Broker,
        declare: Callable[..., None],
        settings: Any,
        tmp_path: Path,
    ) -> None:
        """Both end well, and every topic is there once."""
        env = environment()
        tenants = [f"t{number}" for number in range(15)]
        arguments = [word for tenant in tenants for word in ("--tenant", tenant)]
        both = [
            RealCommand(tmp_path, "create_topics", *arguments, env=env),
            RealCommand(tmp_path, "create_topics", *reversed_pairs(arguments), env=env),
        ]

        assert [command.wait(60) for command in both] == [0, 0], both[0].output + both[1].output

        lines = (both[0].output + both[1].output).splitlines()
        created = [line for line in lines if line.startswith("created ")]
        prefix = f"{settings.FOLIO_EVENTS['ENV']}."
        there = on_three.list_topics(prefix)
        assert len(created) == len(set(created)) == len(there)
        assert {f"{prefix}{tenant}.library.book" for tenant in tenants} <= there

    def test_a_replication_that_cannot_be_is_an_error(
        self, on_three: Broker, declare: Callable[..., None]
    ) -> None:
        """With the topic's name and what Kafka says."""
        declare("library.wide", replication=7)

        with pytest.raises(CommandError, match=r"library\.wide.*INVALID_REPLICATION_FACTOR"):
            run("--tenant", "diku")

    def test_a_tenants_purge_deletes_its_topics_alone(
        self,
        three_brokers: KafkaCluster,
        on_three: Broker,
        declare: Callable[..., None],
        settings: Any,
    ) -> None:
        """Other tenants', other environments' and other modules' topics stay."""
        declare("library.loan")
        env = settings.FOLIO_EVENTS["ENV"]
        enable_tenant("diku")
        enable_tenant("college")
        others = {f"{env}.diku.foreign.topic", f"{env}x.diku.library.loan"}
        on_three.create_topics([TopicSpec(name, 1, 1) for name in others])
        let_all_brokers_know(three_brokers)

        deleted = purge_tenant("diku")

        assert f"{env}.diku.library.loan" in deleted
        assert {name.split(".")[1] for name in deleted} == {"diku"}
        let_all_brokers_know(three_brokers)
        left = on_three.list_topics(env)
        assert others <= left
        assert f"{env}.college.library.loan" in left
        assert not deleted & left
        assert purge_tenant("diku") == set()


def reversed_pairs(arguments: list[str]) -> list[str]:
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    return [word for pair in reversed(pairs) for word in pair]


@pytest.mark.kafka
@pytest.mark.django_db
class TestDrift:
    @pytest.fixture
    def drifted(
        self,
        on_three: Broker,
        three_brokers: KafkaCluster,
        declare: Callable[..., None],
        settings: Any,
    ) -> str:
        """A topic that somebody made otherwise than declared; its name on the broker."""
        declare("library.loan", partitions=3, replication=3, retention=86_400, cleanup_policy="delete")  # fmt: skip
        name = f"{settings.FOLIO_EVENTS['ENV']}.diku.library.loan"
        made = NewTopic(name, 1, 2, config={"retention.ms": "1000"})
        admin(three_brokers.bootstrap).create_topics([made])[name].result(20)
        described(three_brokers, name)
        return name

    def test_a_check_names_every_difference_and_changes_nothing(
        self, drifted: str, three_brokers: KafkaCluster
    ) -> None:
        """With what is declared and what is found; settings that nobody declared are left out."""
        out = io.StringIO()
        with pytest.raises(CommandError, match=r"1 of .* topics are not as declared"):
            call_command("create_topics", "--tenant", "diku", "--check", stdout=out)

        lines = [line for line in out.getvalue().splitlines() if line.startswith(f"{drifted}:")]
        assert lines == [
            f"{drifted}: partitions is 1, declared 3",
            f"{drifted}: replication is 2, declared 3",
            f"{drifted}: retention.ms is 1000, declared 86400000",
        ]
        assert described(three_brokers, drifted)[2]["retention.ms"] == "1000"

    def test_a_run_creates_what_is_missing_and_alters_nothing(
        self, drifted: str, three_brokers: KafkaCluster
    ) -> None:
        """It says what it left, and which option would change it."""
        _out, err = run("--tenant", "diku")

        assert f"{drifted}: retention.ms is 1000, declared 86400000 (left so; --alter sets it)" in err  # fmt: skip
        assert "(left so; --grow adds them)" in err
        partitions, _replicas, config = described(three_brokers, drifted)
        assert (partitions, config["retention.ms"]) == (1, "1000")

    def test_settings_are_set_when_it_is_asked_for(
        self, drifted: str, three_brokers: KafkaCluster
    ) -> None:
        """Those that are declared; others and the partitions stay."""
        before = described(three_brokers, drifted)[2]

        out, _err = run("--tenant", "diku", "--alter")

        assert f"changed {drifted}: retention.ms from 1000 to 86400000\n" in out
        wanted = (1, 2, before | {"retention.ms": "86400000"})
        assert described(three_brokers, drifted) == wanted

    def test_partitions_grow_when_it_is_asked_for(
        self, drifted: str, three_brokers: KafkaCluster
    ) -> None:
        """To what is declared; settings stay."""
        run("--tenant", "diku", "--grow")

        partitions, _replicas, config = described(three_brokers, drifted)
        assert (partitions, config["retention.ms"]) == (3, "1000")

    def test_a_dry_run_changes_nothing(self, drifted: str, three_brokers: KafkaCluster) -> None:
        """It says what it would do."""
        out, _err = run("--tenant", "diku", "--dry-run", "--alter", "--grow")

        assert f"would have changed {drifted}: partitions from 1 to 3\n" in out
        assert f"would have changed {drifted}: retention.ms from 1000 to 86400000\n" in out
        partitions, _replicas, config = described(three_brokers, drifted)
        assert (partitions, config["retention.ms"]) == (1, "1000")

    def test_check_deploy_names_topics_that_are_not_as_declared(self, drifted: str) -> None:
        """W060, for the tenants that have topics."""
        err = io.StringIO()

        call_command("check", "--deploy", "--tag", "folio_events_topics", stderr=err)

        assert "folio_events.W060" in err.getvalue()
        assert f"{drifted}: partitions is 1, declared 3" in err.getvalue()


@pytest.mark.kafka
@pytest.mark.django_db
def test_use_is_read_without_groups_and_records(three_brokers: KafkaCluster) -> None:
    """Offsets of all partitions of several topics come back, each of its own topic."""
    broker = KafkaBroker({"bootstrap.servers": three_brokers.bootstrap})
    one, two = f"t{uuid.uuid4().hex}", f"t{uuid.uuid4().hex}"
    broker.create_topics([TopicSpec(one, 2, 3), TopicSpec(two, 1, 3)])
    let_all_brokers_know(three_brokers)
    publish(broker, [message(two), message(two)])

    found = broker.describe_use([one, two])

    broker.close()
    assert (found[one].ends, found[one].newest) == ({0: (0, 0), 1: (0, 0)}, None)
    assert found[two].ends == {0: (0, 2)}


class FakeAdmin:
    """Kafka's admin client as a case of FOLIO's tests has it answer."""

    def __init__(self, existing: list[str], results: list[str] | str) -> None:
        self.existing = set(existing)
        self.results = results
        self.lists = 0
        self.creates = 0
        self.made: list[NewTopic] = []

    def poll(self, _timeout: float) -> int:
        return 0

    def list_topics(self, timeout: float) -> Any:
        self.lists += 1
        return type("Metadata", (), {"topics": dict.fromkeys(self.existing)})()

    def create_topics(self, new: list[NewTopic], **_options: object) -> dict[str, Future[None]]:
        result = "TopicExists" if isinstance(self.results, str) else self.results[self.creates]
        self.creates += 1
        self.made = new
        return {topic.topic: self._answer(topic.topic, result) for topic in new}

    def _answer(self, name: str, result: str) -> Future[None]:
        future: Future[None] = Future()
        if result == "ok":
            self.existing.add(name)
            future.set_result(None)
        elif result.startswith("TopicExists"):
            if result.endswith("listed"):
                self.existing.add(name)
            future.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_ALREADY_EXISTS)))
        else:
            text = result.partition(": ")[2]
            future.set_exception(KafkaException(KafkaError(KafkaError.POLICY_VIOLATION, text)))
        return future


@pytest.fixture
def broker_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeAdmin], KafkaBroker]:
    """A Kafka broker object with another admin client; the pauses are short."""
    monkeypatch.setattr(kafka_topics, "_CREATE_PAUSE", 0.001)

    def make(client: FakeAdmin) -> KafkaBroker:
        broker = KafkaBroker({"bootstrap.servers": "127.0.0.1:1"})
        broker._topics._client = client  # type: ignore[assignment]
        return broker

    return make


@pytest.mark.parametrize(
    "case", [case for case in cases("topic_admin") if "op" not in case.values[0]["input"]]
)
def test_creation_ends_as_in_folios_wrapper(
    case: dict[str, Any], broker_of: Callable[[FakeAdmin], KafkaBroker]
) -> None:
    """A topic that exists and is not listed is tried 30 times; other errors are told at once."""
    given, expected = case["input"], case["expected"]
    topic = given.get("topic", {})
    config = {
        name: str(topic[key])
        for name, key in (
            ("retention.ms", "retention_ms"),
            ("max.message.bytes", "max_message_bytes"),
        )
        if key in topic
    }
    client = FakeAdmin(given["existing"], given.get("create_results", ["ok"]))
    spec = TopicSpec(topic.get("name", "new"), 1, 1, config)
    broker = broker_of(client)

    if expected.get("result") in ("ok", None):
        assert broker.create_topics([spec]) == {spec.name}
    else:
        with pytest.raises(BrokerError) as refusal:
            broker.create_topics([spec])
        assert expected["result"].removeprefix("error: ") in (
            "TopicExistsException"
            if isinstance(refusal.value, BrokerUnavailableError)
            else str(refusal.value)
        )

    if "create_calls" in expected:
        assert client.creates == expected["create_calls"]
        # Once more, to see that the new topic is known.
        assert client.lists == expected["list_calls"] + 1
    if "retries" in expected:
        assert client.creates == expected["retries"] + 1
    if isinstance(given.get("create_results"), str):
        assert client.creates == 30
    if "config" in expected:
        assert client.made[0].config == expected["config"]
    broker.close()
    assert (broker._topics._client is None) is expected.get("client_closed", True)


def test_a_topic_that_another_process_created_is_done_at_once(
    broker_of: Callable[[FakeAdmin], KafkaBroker],
) -> None:
    """FOLIO's wrapper lists and creates all of its topics again; ours sees it listed and goes on."""
    client = FakeAdmin([], ["TopicExists, and is listed"])
    broker = broker_of(client)

    assert broker.create_topics([TopicSpec("new", 1, 1)]) == set()

    assert client.creates == 1
    broker.close()


def test_many_topics_are_created_in_portions(
    broker_of: Callable[[FakeAdmin], KafkaBroker],
) -> None:
    """Kafka's controller refuses a request with thousands of partitions whole."""
    client = FakeAdmin([], ["ok"] * 3)
    broker = broker_of(client)
    names = [f"t{number}" for number in range(5)]

    assert broker.create_topics([TopicSpec(name, 400, 1) for name in names]) == set(names)

    assert client.creates == 3
    broker.close()
