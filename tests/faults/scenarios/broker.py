"""What Kafka does: away, restarted, without replicas, refusing; and the network before it."""

from __future__ import annotations

import resource
from pathlib import Path

import psycopg
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.faults.harness import scenario
from tests.faults.scenarios.outbox import change_account
from tests.faults.stage import ACCOUNTS, Stage


def _resident(pid: int) -> float:
    """Megabytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@scenario("Kafka is down at the start")
def down_at_start(stage: Stage) -> None:
    stage.create_topics()
    stage.kafka.stop()
    stage.writer()
    stage.relay()
    stage.consumer()
    stage.write_until(0.5)
    stage.kafka.start()


@scenario("Kafka is down under load")
def down_under_load(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.2)
    before, at = stage.committed(), stage.published()
    stage.kafka.stop()
    stage.pause(20, 25) if stage.size >= 2000 else stage.pause(6, 8)
    memory = _resident(stage.one("relay").pid)
    written = stage.committed() - before
    stage.kafka.start()
    stage.remarks.append(f"{written} changes written meanwhile; relay at {memory:.0f} MB")
    stage.expect(written > 100, "writers were held up by Kafka's absence")
    stage.expect(memory < 300, "the relay's memory grew")
    stage.expect(stage.published() >= at, "publications went away")


@scenario("broker restarted under load")
def restarted(stage: Stage) -> None:
    stage.open()
    for _ in range(3 if stage.size >= 2000 else 1):
        stage.pause(1, 3)
        stage.kafka.restart()


@scenario("broker killed under load")
def killed(stage: Stage) -> None:
    stage.open()
    for _ in range(2 if stage.size >= 2000 else 1):
        stage.pause(1, 3)
        stage.kafka.kill()
        stage.pause(0, 1)
        stage.kafka.start()


@scenario("three brokers, one killed and another restarted", kafka="three")
def one_of_three_killed(stage: Stage) -> None:
    stage.open()
    victim, other = stage.chance.sample(stage.kafka.brokers, 2)
    stage.pause(2, 3)
    victim.kill()
    stage.write_until(0.7)
    victim.start()
    stage.pause(2, 3)
    other.restart()
    stage.pause(1, 2)


@scenario("three brokers, two killed: too few replicas for a while", kafka="three")
def too_few_replicas(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.3)
    first, second = stage.chance.sample(stage.kafka.brokers, 2)
    first.kill()
    second.kill()
    stage.pause(6, 8)
    first.launch()
    second.launch()
    first.await_ready()
    second.await_ready()


@scenario("a row too large for its topic, then released")
def oversize(stage: Stage) -> None:
    stage.create_topics(config={"max.message.bytes": "20000"})
    stage.writer()
    stage.relay()
    stage.consumer()
    stage.await_(lambda: stage.published() > 20, "the first publications")
    account = stage.chance.randint(1, ACCOUNTS)
    with psycopg.connect(stage.url) as session:
        change_account(session, account, "x" * 40_000)
    refused = "SELECT count(*) FROM folio_events_withheldmessage WHERE state = 'refused'"
    stage.await_(lambda: stage.execute(refused), "the refusal")
    before = stage.published()
    stage.write_until()
    stage.expect(stage.published() > before + 50, "other keys did not flow")
    behind = stage.execute(
        "SELECT count(*) FROM folio_events_publication p"
        " JOIN folio_events_outboxmessage o ON o.id = p.outbox_message_id"
        " JOIN folio_events_withheldmessage w ON w.key = o.key AND w.topic = o.topic"
        "  AND w.state = 'refused' AND o.id > w.outbox_message_id"
    )
    stage.expect(not behind, f"{behind} rows passed the refused one of their key")
    resource_ = ConfigResource(
        ResourceType.TOPIC,
        stage.topic("bank.account"),
        incremental_configs=[
            ConfigEntry("max.message.bytes", "1000000", incremental_operation=AlterConfigOpType.SET)
        ],
    )
    for future in stage.admin.incremental_alter_configs([resource_]).values():
        future.result(30)
    release(stage)


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
    for writer in stage.cast("writer"):
        writer.stop()
    stage.create_topics(("bank.entry",))
    stage.consumer()
    release(stage)


@scenario("network to Kafka cut again and again", kafka="behind")
def network_cut(stage: Stage) -> None:
    proxy = stage.parts.proxy
    assert proxy is not None
    stage.open()
    try:
        for _ in range(4 if stage.size >= 2000 else 2):
            stage.pause(0.5, 2)
            proxy.cut()
            stage.pause(0.5, 4)
            proxy.mend()
            stage.pause(0.5, 1.5)
            proxy.break_links()
    finally:
        proxy.mend()


@scenario("network to Kafka slow, then silent", kafka="behind")
def network_slow(stage: Stage) -> None:
    proxy = stage.parts.proxy
    assert proxy is not None
    stage.options.update({"socket.timeout.ms": 3000})
    stage.open()
    try:
        proxy.delay = 0.15
        stage.pause(4, 6)
        proxy.delay = 0.0
        stage.pause(0.5, 1)
        stage.expect(proxy.silence() > 0, "no connection was silenced")
        stage.pause(4, 6)
    finally:
        proxy.delay = 0.0
        # What was silenced never speaks again: clients give it up after their socket timeout.
        proxy.mend()
