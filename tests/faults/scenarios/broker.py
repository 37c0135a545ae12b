"""What Kafka does: away, restarted, without replicas, full, refusing; and the network before it."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import psycopg
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)

from tests.faults.harness import scenario
from tests.faults.parts import fill
from tests.faults.scenarios.outbox import change_account, quiet_account
from tests.faults.stage import Stage

_WAITS = "wait for the broker"
_REFUSED = "SELECT count(*) FROM folio_events_withheldmessage WHERE state = 'refused'"


def _resident(pid: int) -> float:
    """Megabytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@scenario("Kafka is down at the start")
def down_at_start(stage: Stage) -> None:
    stage.create_topics()
    stage.kafka.stop()
    stage.writer()
    relay = stage.relay()
    stage.consumer()
    stage.write_until(0.5)
    stage.await_word(relay, _WAITS)
    stage.expect(not stage.published(), "something was published")
    stage.remarks.append(f"{stage.committed()} changes waited for Kafka")
    stage.kafka.start()


@scenario("Kafka is down for two minutes under load", short_size=300, limit=420)
def down_under_load(stage: Stage) -> None:
    stage.open(writers=0)
    stage.writer(rate=60)
    stage.write_until(0.1)
    relay, before = stage.one("relay"), stage.committed()
    stage.kafka.stop()
    # What was acknowledged before is still to be noted.
    stage.await_word(relay, _WAITS)
    began, at = time.monotonic(), stage.published()
    stage.pause(120, 125) if stage.size >= 2000 else stage.pause(15, 16)
    memory, written = _resident(relay.pid), stage.committed() - before
    stage.expect(stage.published() == at, "something was published meanwhile")
    stage.happened(written, "changes written meanwhile", 1000)
    stage.happened(round(time.monotonic() - began), "seconds without Kafka", 15)
    stage.remarks.append(f"relay at {memory:.0f} MB")
    stage.expect(memory < 300, "the relay's memory grew")
    stage.kafka.start()


@scenario("broker restarted under load")
def restarted(stage: Stage) -> None:
    stage.open()
    rounds = 3 if stage.size >= 2000 else 1
    for _ in range(rounds):
        stage.pause(1, 3)
        stage.kafka.restart()
        stage.await_published(1)
    stage.happened(rounds, "restarts")


@scenario("broker killed under load")
def killed(stage: Stage) -> None:
    stage.open()
    rounds = 2 if stage.size >= 2000 else 1
    for _ in range(rounds):
        stage.pause(1, 3)
        stage.kafka.kill()
        stage.pause(0, 1)
        stage.kafka.start()
        stage.await_published(1)
    stage.happened(rounds, "kills")


@scenario("three brokers, one killed and another restarted", kafka="three")
def one_of_three_killed(stage: Stage) -> None:
    stage.open()
    victim, other = stage.chance.sample(stage.kafka.brokers, 2)
    stage.await_published(50)
    victim.kill()
    began = time.monotonic()
    stage.await_published(50)
    stage.remarks.append(f"publication went on after {time.monotonic() - began:.1f} s")
    stage.write_until(0.7)
    victim.start()
    stage.pause(2, 3)
    other.restart()
    stage.await_published(1)


@scenario("three brokers, two killed: too few replicas for a while", kafka="three")
def too_few_replicas(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.3)
    first, second = stage.chance.sample(stage.kafka.brokers, 2)
    first.kill()
    second.kill()
    began = time.monotonic()
    stage.pause(1, 2)
    at = stage.published()
    relay = stage.one("relay")
    stage.await_word(relay, _WAITS)
    stage.expect(stage.published() == at, "something was acknowledged by too few")
    stage.happened(round(time.monotonic() - began), "seconds without a quorum", 5)
    first.launch()
    second.launch()
    first.await_ready()
    second.await_ready()


@scenario("the broker's disk is full for a while", kafka="small")
def disk_full(stage: Stage) -> None:
    small = stage.parts.disk
    assert small is not None
    stage.open()
    stage.write_until(0.3)
    filler = fill(small)
    began, relay = time.monotonic(), stage.one("relay")
    stage.await_word(relay, _WAITS)
    stage.expect(stage.execute(_REFUSED) == 0, "a full disk was taken for a refusal")
    stage.happened(round(time.monotonic() - began), "seconds without space")
    filler.unlink()
    # A broker whose disk failed has ended itself; an operator starts it again.
    broker = stage.kafka.brokers[0]
    stage.remarks.append(
        f"the broker {'lived on' if broker.process and broker.process.running else 'ended itself'}"
    )
    broker.kill()
    broker.start()


@scenario("a topic's ACL denies writing, then it is allowed again")
def acl_denied(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.2)
    topic = stage.topic("bank.entry")

    def rule(operation: AclOperation, permission: AclPermissionType) -> AclBinding:
        return AclBinding(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*",
            operation, permission,
        )  # fmt: skip

    rules = [
        rule(AclOperation.ALL, AclPermissionType.ALLOW),
        rule(AclOperation.WRITE, AclPermissionType.DENY),
    ]
    for made in stage.admin.create_acls(rules).values():
        made.result(30)
    stage.await_(lambda: stage.execute(_REFUSED) > 10, "the refusals")
    denied = (
        "SELECT count(*) FROM folio_events_withheldmessage WHERE error LIKE '%%AUTHORIZATION%%'"
    )
    stage.happened(stage.execute(denied), "refusals for want of the right")
    stage.await_published(100)
    stage.write_until()
    stage.stop_writers()
    denial = AclBindingFilter(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*",
        AclOperation.WRITE, AclPermissionType.DENY,
    )  # fmt: skip
    for gone in stage.admin.delete_acls([denial]).values():
        gone.result(30)
    stage.await_(stage.relay_is_done, "the relay's way to the end")
    release(stage)


@scenario("the producer meets a fatal error: a limit is lowered under it")
def fatal_error(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.3)
    stage.await_published(50)
    # The relay believes in the old limit for minutes: it is the broker that refuses.
    set_limit(stage, 500_000)
    _publish_oversized(stage, 600_000, times=3)
    fatal = stage.one("relay").count("Fatal error")
    stage.happened(fatal, "producers given up after a fatal error", 3)
    stage.write_until()
    set_limit(stage, 1_000_000)
    release(stage)


@scenario("the producer's queue is full again and again")
def queue_full(stage: Stage) -> None:
    stage.options["producer"] = {"queue.buffering.max.messages": 20}
    stage.create_topics()
    stage.writer(rate=600)
    stage.write_until(0.5)
    stage.relay()
    stage.consumer()
    stage.remarks.append("200 messages in each batch, 20 in the queue")


@scenario("rows too large for their topic, then released", short_size=300)
def oversize(stage: Stage) -> None:
    stage.create_topics(config={"max.message.bytes": "20000"})
    stage.writer()
    stage.relay()
    stage.consumer()
    stage.await_(lambda: stage.published() > 20, "the first publications")
    _publish_oversized(stage, 40_000, times=8)
    stage.await_published(50)
    stage.write_until()
    behind = stage.execute(
        "SELECT count(*) FROM folio_events_publication p"
        " JOIN folio_events_outboxmessage o ON o.id = p.outbox_message_id"
        " JOIN folio_events_withheldmessage w ON w.key = o.key AND w.topic = o.topic"
        "  AND w.state = 'refused' AND o.id > w.outbox_message_id"
    )
    stage.expect(not behind, f"{behind} rows passed the refused one of their key")
    set_limit(stage, 1_000_000)
    release(stage)


def _publish_oversized(stage: Stage, size: int, *, times: int) -> None:
    """Have rows refused that others of their key follow, and wait for both."""

    def passed() -> int:
        return int(stage.execute("SELECT position FROM folio_events_relaycursor"))

    with psycopg.connect(stage.url, autocommit=True) as session:
        for _ in range(times):
            account, refused = quiet_account(stage), stage.execute(_REFUSED) + 1
            change_account(session, account, "x" * size)
            stage.await_(lambda n=refused: stage.execute(_REFUSED) >= n, "the refusal")  # type: ignore[misc]
            change_account(session, account)
            change_account(session, account)
            last = stage.execute("SELECT max(id) FROM folio_events_outboxmessage")
            stage.await_(lambda n=last: passed() >= n, "its followers")  # type: ignore[misc]
    stage.happened(times, "refused rows with followers")


def set_limit(stage: Stage, size: int) -> None:
    """Change the largest batch that the accounts' topic takes."""
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(
        ResourceType.TOPIC, stage.topic("bank.account"), incremental_configs=[entry]
    )
    for future in stage.admin.incremental_alter_configs([topic]).values():
        future.result(30)


def release(stage: Stage) -> None:
    """Have every refused message tried again, as a person would."""
    stage.command(
        "shell",
        "-c",
        "from folio_events import withheld; from folio_events.models import WithheldMessage;"
        "withheld.release(list(WithheldMessage.objects.filter(state='refused')"
        ".values_list('pk', flat=True)))",
    )


@scenario("a topic does not exist and may not be created, then it is")
def topic_missing(stage: Stage) -> None:
    stage.settings["CREATE_TOPICS"] = False
    stage.create_topics(("bank.account", "bank.notice"))
    stage.writer()
    stage.relay()
    refused = "SELECT count(*) FROM folio_events_withheldmessage WHERE topic = 'bank.entry'"
    stage.await_(lambda: stage.execute(refused) > 20, "the refusals")
    before = stage.published()
    stage.await_(lambda: stage.published() > before + 50, "the other topic's flow")
    stage.write_until()
    stage.stop_writers()
    stage.happened(stage.execute(refused), "withheld messages")
    stage.create_topics(("bank.entry",))
    stage.consumer()
    release(stage)


@scenario("network to Kafka cut again and again", kafka="behind")
def network_cut(stage: Stage) -> None:
    proxy = stage.parts.proxy
    assert proxy is not None
    stage.ended.callback(proxy.mend)
    stage.open()
    stage.await_published(1)
    rounds, links = 4 if stage.size >= 2000 else 2, 0
    for _ in range(rounds):
        stage.pause(0.5, 2)
        links += proxy.cut()
        stage.pause(0.5, 4)
        proxy.mend()
        stage.await_published(1)
        stage.pause(0.5, 1.5)
        links += proxy.break_links()
    stage.happened(links, "connections broken", rounds)


@scenario("network to Kafka slow, then silent", kafka="behind")
def network_slow(stage: Stage) -> None:
    proxy = stage.parts.proxy
    assert proxy is not None
    stage.ended.callback(proxy.mend)
    stage.options.update({"socket.timeout.ms": 3000})
    stage.open()
    stage.await_published(1)
    proxy.delay = 0.15
    stage.pause(4, 6)
    proxy.delay = 0.0
    stage.pause(0.5, 1)
    # What was silenced never speaks again: clients give it up after their socket timeout.
    stage.happened(proxy.silence(), "connections silenced")
    stage.await_published(1)
