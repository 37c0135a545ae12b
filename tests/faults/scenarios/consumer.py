"""What becomes of consumers and of the log they read."""

from __future__ import annotations

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from tests.faults.evidence import Evidence
from tests.faults.harness import scenario
from tests.faults.stage import PARTITIONS, ScenarioError, Stage, silent

_POINTS = ("consumer.polled", "consumer.worked", "consumer.committed", "consumer.told")


@scenario("consumer killed at four points of a batch", telling=True)
def killed(stage: Stage) -> None:
    stage.open(consumers=0, retries=True)
    for point in stage.chance.sample(_POINTS, len(_POINTS)):
        at = stage.chance.randint(1, 6)
        consumer = stage.consumer(f"{point}=kill@{at}", supervised=False)
        stage.await_end(consumer, f"the kill at {point}")
    stage.happened(len(_POINTS), "kills, each at its point")
    stage.consumer()


@scenario("two of three consumers killed at random, under a supervisor")
def killed_at_random(stage: Stage) -> None:
    stage.open(consumers=3, retries=True)
    for _ in range(5):
        stage.pause(1, 3)
        stage.chance.choice(stage.cast("consumer")).crash()
    stage.pause(0.5, 1)
    stage.happened(sum(actor.ends for actor in stage.cast("consumer")), "kills", 4)


@scenario("a frozen consumer wakes up after its inbox was purged")
def zombie(stage: Stage) -> None:
    stage.settings["INBOX_RETENTION"] = 1
    stage.open(consumers=0, relays=1)
    # It has seen its offsets, and has a batch in hand that is to begin there.
    frozen = stage.consumer("consumer.begun=stop@4", supervised=False)
    stage.await_freeze(frozen, "the consumer's stop")
    successor = stage.consumer()
    before = stage.effects()
    stage.await_(lambda: stage.effects() > before + 100, "the successor's work")
    stage.write_until()
    stage.stop_writers()
    evidence = Evidence(stage)
    try:
        stage.expect(not evidence.settle(), "the successor did not finish")
    finally:
        evidence.close()
    stage.pause(1.2, 1.4)
    stage.command("purge_events")
    entries = stage.execute("SELECT count(*) FROM folio_events_inboxentry")
    stage.expect(not entries, f"{entries} entries are left in the inbox")
    before = stage.effects()
    frozen.thaw()

    def is_through() -> bool:
        return frozen.said("another consumer of group") or stage.effects() > before

    stage.await_(is_through, "the zombie's end of its batch")
    stage.happened(int(frozen.said("another consumer of group")), "zombie fenced")
    # What the zombie has left behind is all there is: nobody corrects it.
    successor.kill()
    frozen.kill()
    stage.patience = 3


@scenario("consumers come and go while receivers work")
def rebalances(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "slow/0.004"
    stage.environment["FAULTS_KAFKA_LOG"] = "INFO"
    stage.open(consumers=2)
    for _ in range(4 if stage.size >= 2000 else 2):
        newcomer = stage.consumer()
        stage.await_word(newcomer, "assigned")
        stage.pause(1, 3)
        stage.chance.choice([newcomer, stage.cast("consumer")[0]]).stop()
        if len(stage.cast("consumer")) < 2:
            stage.consumer()
    members = [actor for actor in stage.actors if actor.role == "consumer"]
    stage.happened(sum(actor.count("assigned") for actor in members), "assignments", 6)


@scenario("pg_terminate_backend strikes the consumer")
def terminated(stage: Stage) -> None:
    stage.open(consumers=2)
    struck = 0
    for _ in range(10):
        stage.pause(0.3, 0.9)
        struck += stage.terminate_backends("consumer")
    stage.happened(struck, "connections ended", 10)


@scenario("events stand in the log twice")
def duplicates(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.5)
    reader = Consumer(
        {"bootstrap.servers": stage.kafka.bootstrap, "group.id": f"{stage.id}-copy"}, logger=silent
    )
    producer = Producer({"bootstrap.servers": stage.kafka.bootstrap}, logger=silent)
    copied = 0
    for topic in ("bank.account", "bank.entry"):
        for partition in range(PARTITIONS):
            reader.assign([TopicPartition(stage.topic(topic), partition, 0)])
            for message in reader.consume(100, 2):
                producer.produce(
                    stage.topic(topic),
                    value=message.value(),
                    key=message.key(),
                    headers=message.headers(),
                    partition=partition,
                )
                copied += 1
    producer.flush(30)
    reader.close()
    stage.happened(copied, "records copied", 100)


def _stop_consumers(stage: Stage) -> None:
    for consumer in stage.cast("consumer"):
        consumer.stop()


def _positions(stage: Stage) -> list[TopicPartition]:
    return [
        TopicPartition(topic, partition, offset)
        for topic, partition, offset in stage.rows(
            'SELECT topic, partition, min("offset") FROM folio_events_consumeroffset'
            " GROUP BY topic, partition"
        )
    ]


def _commit_from_outside(stage: Stage, places: list[TopicPartition]) -> None:
    tool = Consumer(
        {"bootstrap.servers": stage.kafka.bootstrap, "group.id": stage.id}, logger=silent
    )
    tool.commit(offsets=places, asynchronous=False)
    tool.close()


@scenario("the group's offsets are reset from outside")
def offsets_reset(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.5)
    stage.await_(lambda: stage.effects() > 100, "some effects")
    _stop_consumers(stage)
    places = _positions(stage)
    _commit_from_outside(stage, [TopicPartition(p.topic, p.partition, 0) for p in places])
    consumer = stage.consumer()
    stage.await_word(consumer, "another tool has set")
    before = stage.effects()
    stage.pause(2, 3)
    stage.expect(stage.effects() == before, "a partition with a foreign offset was read")
    stage.happened(len(places), "partitions set back")
    consumer.stop()
    _commit_from_outside(stage, places)
    stage.consumer()


@scenario("the consumer group is deleted")
def group_deleted(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.5)
    stage.await_(lambda: stage.effects() > 100, "some effects")
    _stop_consumers(stage)
    # Kafka lets go of members a moment after they have left.
    stage.await_(lambda: _delete_group(stage), "the group's end", 20)
    stage.consumer()


def _delete_group(stage: Stage) -> bool:
    try:
        for future in stage.admin.delete_consumer_groups([stage.id]).values():
            future.result(30)
    except KafkaException:
        return False
    return True


@scenario("a topic is deleted and created anew under a running consumer")
def topic_recreated(stage: Stage) -> None:
    _recreate(stage, while_running=True)


@scenario("a topic is deleted and created anew while the consumer is away")
def topic_recreated_while_away(stage: Stage) -> None:
    _recreate(stage, while_running=False)


def _recreate(stage: Stage, *, while_running: bool) -> None:
    stage.open(writers=0)
    writer = stage.writer()
    stage.write_until()
    writer.stop()
    evidence = Evidence(stage)
    stage.expect(not evidence.settle(), "the first topic was not read to its end")
    committed, breaches = evidence.breaches()
    evidence.close()
    stage.expect(not breaches, f"breaches before the topic went: {breaches[:3]}")
    consumer = stage.one("consumer")
    if not while_running:
        consumer.stop()
    for future in stage.admin.delete_topics([stage.topic("bank.entry")]).values():
        future.result(30)
    stage.pause(1, 2)
    stage.create_topics(("bank.entry",))
    if not while_running:
        consumer = stage.consumer()
    kept = _offsets(stage)
    before = stage.execute("SELECT count(*) FROM bank_entry")
    writer = stage.writer()
    stage.await_(
        lambda: stage.execute("SELECT count(*) FROM bank_entry") > before + 40, "new entries"
    )
    writer.stop()
    named = ("created anew", "records were lost")
    try:
        stage.await_(lambda: any(map(consumer.said, named)), "the stop by name", 40)
    except ScenarioError as error:
        stage.failures.append(str(error))
    stage.pause(1, 2)
    stage.remarks.append(f"{committed} changes before the topic went")
    stage.expect(_offsets(stage) == kept, "offsets of the old topic were moved in the new one")
    # What stood in the old topic is gone with it, and the new one waits for a person.
    stage.forgiven |= {"offsets", "lost"}


def _offsets(stage: Stage) -> dict[int, int]:
    return dict(
        stage.rows(
            'SELECT partition, "offset" FROM folio_events_consumeroffset WHERE topic = %s',
            stage.topic("bank.entry"),
        )
    )


@scenario("bytes that are no event stand among the others")
def poison(stage: Stage) -> None:
    stage.open(retries=True)
    producer = Producer({"bootstrap.servers": stage.kafka.bootstrap}, logger=silent)
    # A tombstone among them, which the receiver did not ask for, is no failure.
    bodies = [
        None,
        *(stage.chance.choice([b"{", b"\xff\xfe", b"[]", b"{" * 5000]) for _ in range(20)),
    ]
    for number, body in enumerate(bodies):
        stage.pause(0.02, 0.1)
        producer.produce(stage.topic("bank.entry"), value=body, key=f"poison-{number}".encode())
    producer.flush(30)
    stage.write_until()
    dead = "SELECT count(*) FROM folio_events_delivery WHERE state = 'dead'"
    stage.await_(lambda: stage.execute(dead) == 20, "20 dead letters")
    stage.happened(20, "records that are no events")
    stage.command(
        "shell",
        "-c",
        "from folio_events import deliveries; from folio_events.models import Delivery;"
        "deliveries.discard(list(Delivery.objects.filter(state='dead')"
        ".values_list('pk', flat=True)), reason='no events')",
    )
