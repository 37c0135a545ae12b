"""The topics of a project: which they are, how they grow, who may have them deleted."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from folio_events import declare_topic
from folio_events.brokers import get_broker
from folio_events.brokers.base import TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.consumer import Consumer
from folio_events.exceptions import (
    BrokerUnavailableError,
    InvalidStateError,
    InvalidTenantError,
    MissingTenantError,
)
from folio_events.message import Message
from folio_events.models import ConsumerOffset
from folio_events.provisioning import (
    compare,
    disable_tenant,
    enable_tenant,
    grow_partitions,
    known_tenants,
    named_topics,
    own_topics,
    purge_tenant,
    wanted_topics,
)
from folio_events.topics.declared import declared_topics
from tests.note_topic import note_receiver
from tests.unit.vectors import cases

pytestmark = pytest.mark.django_db

MEMORY = {"BACKEND": "folio_events.brokers.memory.MemoryBroker"}


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


def broker() -> MemoryBroker:
    found = get_broker()
    assert isinstance(found, MemoryBroker)
    return found


class TestNames:
    def test_own_topics_are_those_of_models_and_declarations(
        self, declare: Callable[..., None], folio_events: Callable[..., None]
    ) -> None:
        """What only a receiver or the setting TOPICS names is somebody else's."""
        declare("library.loan")
        folio_events(TOPICS={"other.topic": {"PARTITIONS": 3}, "library.loan": {"PARTITIONS": 9}})
        note_receiver("listener", topic="foreign.topic")
        note_receiver("pattern", topic="foreign.*")

        assert {"library.book", "library.loan"} <= own_topics()
        assert not {"foreign.topic", "other.topic"} & own_topics()
        assert "foreign.topic" in named_topics()
        assert "foreign.*" not in named_topics()

    def test_known_tenants_are_those_with_topics(
        self, declare: Callable[..., None], folio_events: Callable[..., None]
    ) -> None:
        """Of this project and this environment; what could be a tenant collection is none."""
        declare("DI_COMPLETED", namespace="Default")
        folio_events(TENANCY="folio", BROKER=MEMORY)
        names = ["folio.diku.library.book", "folio.Default.college.DI_COMPLETED"]
        others = ["folio.away.not.ours", "other.x.library.book", "folio.ALL.library.book"]
        broker().create_topics([TopicSpec(name, 1, 1) for name in [*names, *others]])

        assert known_tenants() == {"diku", "college"}


class TestWanted:
    def test_tenants_share_a_topic_under_a_collection(
        self, folio_events: Callable[..., None]
    ) -> None:
        """However many are named."""
        folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")

        specs = wanted_topics(["diku", "college"], only=["library.book"]).specs

        assert list(specs) == ["folio.ALL.library.book"]

    def test_without_tenants_nobody_knows_the_names(
        self, folio_events: Callable[..., None]
    ) -> None:
        """Where each tenant has topics of its own."""
        folio_events(TENANCY="folio")

        with pytest.raises(MissingTenantError):
            wanted_topics()

    @pytest.mark.parametrize("tenant", ["", "di.ku", "a b", "x" * 201])
    def test_a_tenant_that_cannot_be_is_refused(
        self, folio_events: Callable[..., None], tenant: str
    ) -> None:
        """Before the broker is asked."""
        folio_events(TENANCY="folio", BROKER=MEMORY)
        for call in (enable_tenant, disable_tenant, purge_tenant):
            with pytest.raises(InvalidTenantError):
                call(tenant)

    def test_a_namespace_is_no_tenant(
        self, declare: Callable[..., None], folio_events: Callable[..., None]
    ) -> None:
        """Its topics would be taken for others'."""
        declare("DI_COMPLETED", namespace="Default")
        folio_events(TENANCY="folio", BROKER=MEMORY)

        with pytest.raises(InvalidTenantError, match="stands for"):
            enable_tenant("Default")

    def test_tombstones_are_kept_for_thirty_days(self, declare: Callable[..., None]) -> None:
        """Of compacted topics alone, and unless the declaration says otherwise."""
        declare("library.state", cleanup_policy="compact")
        declare("library.short", cleanup_policy="compact,delete", delete_retention=60)
        declare("library.plain", cleanup_policy="delete")

        specs = wanted_topics(only=["library.state", "library.short", "library.plain"]).specs

        kept = {name: spec.config.get("delete.retention.ms") for name, spec in specs.items()}
        assert kept == {
            "folio.library.state": "2592000000",
            "folio.library.short": "60000",
            "folio.library.plain": None,
        }

    def test_what_only_receivers_name_is_compared_where_it_is_declared(
        self, folio_events: Callable[..., None]
    ) -> None:
        """Another module's topic may have as many partitions as that likes."""
        folio_events(BROKER=MEMORY, TOPIC_PARTITIONS=6)
        note_receiver("listener", topic="foreign.topic")
        broker().create_topics([TopicSpec("folio.foreign.topic", 50, 1)])

        assert compare(wanted_topics(only=["foreign.topic"]), broker()).drift == []

        log, configs = broker()._log, broker()._configs
        folio_events(TOPICS={"foreign.topic": {"PARTITIONS": 10}})
        broker()._log, broker()._configs = log, configs
        [drift] = compare(wanted_topics(only=["foreign.topic"]), broker()).drift
        assert str(drift) == "folio.foreign.topic: partitions is 50, declared 10"

    def test_the_order_of_policies_is_no_difference(
        self, declare: Callable[..., None], memory_broker: MemoryBroker
    ) -> None:
        """Kafka takes them as a set."""
        declare("library.state", cleanup_policy="compact,delete", partitions=1)
        config = {"cleanup.policy": "delete,compact", "delete.retention.ms": "2592000000"}
        memory_broker.create_topics([TopicSpec("folio.library.state", 1, 1, config)])

        assert compare(wanted_topics(only=["library.state"]), memory_broker).drift == []


class TestGrowth:
    @pytest.fixture
    def small(
        self, declare: Callable[..., None], folio_events: Callable[..., None]
    ) -> MemoryBroker:
        """A topic of one partition that is declared to have three; it holds two records."""
        folio_events(BROKER=MEMORY)
        declare("library.note", partitions=3)
        name = "folio.library.note"
        broker().create_topics([TopicSpec(name, 1, 1)])
        message = Message(name, b"key", b"{}", [])
        broker().publish([message, message], timeout=5)
        return broker()

    def test_a_topic_with_unread_records_does_not_grow(self, small: MemoryBroker) -> None:
        """Later records of a key could overtake them; the groups are named with their lag."""
        note_receiver("slow", topic="library.note", group="slow")
        drift = compare(wanted_topics(only=["library.note"]), small).drift

        with pytest.raises(InvalidStateError, match=r"folio\.library\.note \(slow: 2\)"):
            grow_partitions(drift, small)

        assert small.describe_topics(["folio.library.note"])["folio.library.note"].partitions == 1

    def test_a_topic_grows_when_all_is_read(self, small: MemoryBroker) -> None:
        """By what the groups' receivers have committed."""
        note_receiver("quick", topic="library.note", group="quick")
        drift = compare(wanted_topics(only=["library.note"]), small).drift
        consumer = Consumer("quick")
        assert consumer.step() == 2
        consumer.close()

        assert grow_partitions(drift, small) == drift

        assert small.describe_topics(["folio.library.note"])["folio.library.note"].partitions == 3

    def test_a_foreign_group_counts_too(self, small: MemoryBroker) -> None:
        """As far as the broker knows it."""
        from folio_events.message import TopicPartition

        small._committed["foreign", TopicPartition("folio.library.note", 0)] = 1
        drift = compare(wanted_topics(only=["library.note"]), small).drift

        with pytest.raises(InvalidStateError, match="foreign: 1"):
            grow_partitions(drift, small)

    def test_the_order_may_be_given_up(self, small: MemoryBroker) -> None:
        """By an option of its own."""
        note_receiver("slow", topic="library.note", group="slow")

        with pytest.raises(CommandError, match="slow: 2"):
            call_command("create_topics", "--grow", stdout=io.StringIO())
        out = io.StringIO()
        call_command("create_topics", "--grow", "--even-unread", stdout=out)

        assert "changed folio.library.note: partitions from 1 to 3" in out.getvalue()

    def test_a_compacted_topic_never_grows(
        self, declare: Callable[..., None], memory_broker: MemoryBroker
    ) -> None:
        """The last record of a key that moved would stay in its old partition for ever."""
        declare("library.state", partitions=3, cleanup_policy="compact")
        config = {"cleanup.policy": "compact"}
        memory_broker.create_topics([TopicSpec("folio.library.state", 1, 1, config)])
        drift = compare(wanted_topics(only=["library.state"]), memory_broker).drift

        with pytest.raises(InvalidStateError, match=r"folio\.library\.state"):
            grow_partitions(drift, memory_broker, even_unread=True)

    def test_more_partitions_than_declared_stay(
        self, small: MemoryBroker, declare: Callable[..., None]
    ) -> None:
        """Partitions only ever grow."""
        small.grow_topics({"folio.library.note": 9})
        drift = compare(wanted_topics(only=["library.note"]), small).drift

        assert [str(one) for one in drift] == ["folio.library.note: partitions is 9, declared 3"]
        assert grow_partitions(drift, small) == []


class TestTenant:
    def test_enabling_creates_and_again_changes_nothing(
        self, folio_events: Callable[..., None]
    ) -> None:
        """All topics of the project, before anything is published."""
        folio_events(TENANCY="folio", BROKER=MEMORY)

        created = enable_tenant("diku")

        assert created == set(wanted_topics(["diku"]).specs)
        assert "folio.diku.library.book" in created
        assert enable_tenant("diku") == set()

    def test_disabling_keeps_everything(self, folio_events: Callable[..., None]) -> None:
        """The tenant may come back."""
        folio_events(TENANCY="folio", BROKER=MEMORY)
        created = enable_tenant("diku")

        disable_tenant("diku")

        assert broker().missing_topics(created) == set()

    def test_a_purge_deletes_the_tenants_own_topics_and_says_so(
        self, folio_events: Callable[..., None], caplog: pytest.LogCaptureFixture, admin_user: Any
    ) -> None:
        """With who did it, in Django's log; what only receivers name is another module's."""
        folio_events(TENANCY="folio", BROKER=MEMORY)
        note_receiver("listener", topic="foreign.topic")
        enable_tenant("diku")
        kept = enable_tenant("college") | {"folio.diku.foreign.topic"}
        caplog.set_level(logging.INFO, "folio_events")

        deleted = purge_tenant("diku", by=admin_user)

        assert "folio.diku.library.book" in deleted
        assert broker().missing_topics(kept) == set()
        assert f"by user {admin_user.pk}" in caplog.text
        assert "tenant diku" in caplog.text
        assert purge_tenant("diku") == set()

    def test_a_purged_tenant_that_comes_back_is_read_from_its_beginning(
        self, folio_events: Callable[..., None]
    ) -> None:
        """Offsets of the deleted topic are forgotten: they would stop the new one's partitions."""
        folio_events(TENANCY="folio", BROKER=MEMORY)
        note_receiver("reader", topic="library.book", group="reader")
        message = Message("folio.diku.library.book", b"key", b"{}", [("folio.tenantId", b"diku")])
        enable_tenant("diku")
        broker().publish([message, message], timeout=5)
        consumer = Consumer("reader")
        assert consumer.step() == 2
        purge_tenant("diku")
        assert not ConsumerOffset.objects.filter(topic=message.topic).exists()
        consumer.close()

        enable_tenant("diku")
        broker().publish([message], timeout=5)

        again = Consumer("reader")
        assert again.step() == 1
        again.close()

    @pytest.mark.parametrize("shared", [{"TENANCY": "folio", "TENANT_COLLECTION": "ALL"}, {}], ids=["collection", "no tenancy"])  # fmt: skip
    def test_topics_that_tenants_share_are_never_purged(
        self, folio_events: Callable[..., None], shared: dict[str, object]
    ) -> None:
        """They are the others' too."""
        folio_events(BROKER=MEMORY, **shared)
        created = enable_tenant("diku")
        assert created

        assert purge_tenant("diku") == set()

        assert broker().missing_topics(created) == set()

    def test_a_topic_of_the_environment_is_never_purged(
        self, folio_events: Callable[..., None], declare: Callable[..., None]
    ) -> None:
        """One that all tenants have together, whatever the topology."""
        declare("library.shared", environment_only=True)
        folio_events(TENANCY="folio", BROKER=MEMORY)
        assert "folio.library.shared" in enable_tenant("diku")

        assert "folio.library.shared" not in purge_tenant("diku")

    def test_a_broker_that_is_away_is_an_error(self, folio_events: Callable[..., None]) -> None:
        """Trying again helps."""
        folio_events(TENANCY="folio", BROKER=MEMORY)
        broker().available = False

        for call in (enable_tenant, purge_tenant):
            with pytest.raises(BrokerUnavailableError):
                call("diku")

    @pytest.mark.parametrize(
        "case",
        [case for case in cases("topic_admin") if case.values[0]["input"].get("op") == "delete"],
    )
    def test_a_purge_deletes_what_folios_helpers_delete(
        self, case: dict[str, Any], folio_events: Callable[..., None], declare: Callable[..., None]
    ) -> None:
        """The tenant's topics that this module declares and that exist."""
        given, expected = case["input"], case["expected"]["deleted"]
        prefix = f"folio.{given['tenant']}."
        folio_events(TENANCY="folio", BROKER=MEMORY)
        for topic in given.get("topics") or [name.removeprefix(prefix) for name in expected]:
            declare(topic)
        existing = {*given.get("existing", expected), f"{prefix}not.declared"}
        broker().create_topics([TopicSpec(name, 1, 1) for name in existing])

        assert purge_tenant(given["tenant"]) == set(expected)

        assert broker().list_topics("") == existing - set(expected)


class TestCommand:
    def test_all_tenants_that_have_topics_are_checked(
        self, folio_events: Callable[..., None]
    ) -> None:
        """Without naming them."""
        folio_events(TENANCY="folio", BROKER=MEMORY, TOPIC_PARTITIONS=2)
        names = enable_tenant("diku")
        lost = "folio.diku.library.book"
        broker().delete_topics([lost])

        out = io.StringIO()
        with pytest.raises(CommandError, match=f"1 of {len(names)} topics are missing"):
            call_command("create_topics", "--all-tenants", "--check", stdout=out)

        assert out.getvalue() == f"{lost}\n"

    def test_a_dry_run_creates_nothing(self, memory_broker: MemoryBroker) -> None:
        """It lists what it would."""
        out = io.StringIO()
        call_command("create_topics", "--dry-run", stdout=out)

        assert "would have created folio.library.book\n" in out.getvalue()
        assert memory_broker.list_topics("") == set()
