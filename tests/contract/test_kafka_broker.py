"""What Kafka alone can do, or get wrong: options, limits of topics, brokers that go away."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from folio_events import receiver
from folio_events.brokers import get_broker
from folio_events.brokers.base import Acknowledgement, Broker, Report, TopicSpec
from folio_events.brokers.kafka import KafkaBroker, KafkaSubscription
from folio_events.consumer import Consumer
from folio_events.event import Event
from folio_events.exceptions import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    MessageTooLargeError,
    MissingTopicError,
)
from folio_events.message import Message
from tests.conftest import kafka_options
from tests.contract.conftest import IMPATIENT
from tests.contract.stage import (
    DEADLINE,
    Reader,
    Stage,
    message,
    publish,
    turns,
    values,
    values_by_key,
)
from tests.services import KafkaCluster, kafka

ROOT = Path(__file__).parents[2]
NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}


# Options


@pytest.mark.parametrize("value", [True, "true", "TRUE", "t", 1, "1"], ids=repr)
@pytest.mark.parametrize("option", ["enable.auto.commit", "enable.auto.offset.store"])
@pytest.mark.parametrize("where", ["common", "consumer"])
def test_auto_commit_is_refused(option: str, value: object, where: str) -> None:
    """However librdkafka spells true, an option that commits unhandled records is refused."""
    options: dict[str, Any] = {option: value} if where == "common" else {where: {option: value}}

    with pytest.raises(ConfigurationError, match=option):
        KafkaBroker({**NOWHERE, **options})


@pytest.mark.parametrize("value", [False, "false", "f", 0, "0"], ids=repr)
def test_auto_commit_may_be_said_to_be_off(value: object) -> None:
    """The options that the broker sets itself may be repeated."""
    broker = KafkaBroker({**NOWHERE, "enable.auto.commit": value, "acks": "-1"})

    assert broker.check() == []


@pytest.mark.parametrize("value", [0, 1, "1", "0"], ids=repr)
@pytest.mark.parametrize("where", ["common", "producer"])
def test_acks_other_than_all_are_refused(value: object, where: str) -> None:
    """An acknowledgement that one broker alone gave is none."""
    options: dict[str, Any] = {"acks": value} if where == "common" else {where: {"acks": value}}

    with pytest.raises(ConfigurationError, match="'acks'"):
        KafkaBroker({**NOWHERE, **options})


@pytest.mark.parametrize("value", [False, "false", 0, "f"], ids=repr)
@pytest.mark.parametrize("where", ["common", "producer"])
def test_a_producer_without_idempotence_is_refused(value: object, where: str) -> None:
    """Without it a retry can double events and change their order."""
    option = {"enable.idempotence": value}
    options: dict[str, Any] = option if where == "common" else {where: option}

    with pytest.raises(ConfigurationError, match=r"'enable\.idempotence'"):
        KafkaBroker({**NOWHERE, **options})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bootstrap.server": "x"}, "bootstrap.server"),
        ({"security.protocol": "TLS"}, "security.protocol"),
        ({"consumer": {"session.timeout.ms": "soon"}}, "session.timeout.ms"),
        ({"producer": {"request.required.acks": 1}}, "acks"),
        ({"consumer": {"group.protocol": "consumer", "session.timeout.ms": 9}}, "session.timeout"),
    ],
    ids=["unknown", "unknown value", "no number", "alias", "not of the group protocol"],
)
def test_an_option_that_librdkafka_refuses_is_refused_at_once(
    options: dict[str, Any], named: str
) -> None:
    """Not when the first message is published, and not as a broker that does not answer."""
    with pytest.raises(ConfigurationError, match=named):
        KafkaBroker({**NOWHERE, **options})


def test_a_broker_without_address_is_refused() -> None:
    """There is no default that could be right."""
    with pytest.raises(ConfigurationError, match=r"'bootstrap\.servers'"):
        KafkaBroker({})


@pytest.mark.kafka
def test_the_newer_group_protocol_works_too(kafka_stage: Stage) -> None:
    """With KIP-848 the options that it refuses are left out; commits are kept."""
    newer = {"group.protocol": "consumer", "topic.metadata.refresh.interval.ms": 300}
    broker = KafkaBroker(kafka_options(consumer=newer))
    stage = Stage(broker, lambda: broker, kafka_stage.closing)
    stage.closing.callback(broker.close)
    topic = stage.topic()
    publish(broker, [message(topic, b"one"), message(topic, b"two")])
    first = stage.member(f"{stage.prefix}-group", topic)
    turns([first], lambda: len(first.handled) == 2)
    first.close()
    publish(broker, [message(topic, b"three")])

    second = stage.member(f"{stage.prefix}-group", topic)
    turns([second], lambda: second.handled)

    assert values(second.handled) == [b"three"]


# Limits and refusals of a topic


def create_topic(stage: Stage, partitions: int = 1, **config: str) -> str:
    """Create a topic with settings of its own, such as ``max_message_bytes``."""
    name = stage.name(uuid.uuid4().hex[:8])
    # The client must outlive the future.
    client = AdminClient({"bootstrap.servers": str(kafka_options()["bootstrap.servers"])})
    settings = {key.replace("_", "."): value for key, value in config.items()}
    client.create_topics([NewTopic(name, partitions, config=settings)])[name].result(20)
    return name


def settle(broker: Broker, batch: Sequence[Message]) -> dict[int, Report]:
    """Publish a batch until each message is acknowledged or refused for good.

    As the relay does: who is refused is tried by itself, and stops the later ones of its key.
    """
    settled: dict[int, Report] = {}
    waiting = list(range(len(batch)))
    until = time.monotonic() + DEADLINE
    while waiting:
        assert time.monotonic() < until, f"{len(waiting)} messages are still not settled"
        reports = dict(
            zip(waiting, broker.publish([batch[i] for i in waiting], timeout=10), strict=True)
        )
        taken = {i: report for i, report in reports.items() if isinstance(report, Acknowledgement)}
        settled |= taken
        waiting = [i for i in waiting if i not in taken]
        guilty = [i for i in waiting if not getattr(reports[i], "retryable", True)]
        if guilty:
            (report,) = broker.publish([batch[guilty[0]]], timeout=10)
            settled[guilty[0]] = report
            waiting.remove(guilty[0])
            if not isinstance(report, Acknowledgement) and batch[guilty[0]].key is not None:
                waiting = [i for i in waiting if batch[i].key != batch[guilty[0]].key]
    return settled


@pytest.mark.kafka
def test_small_messages_are_never_refused_for_the_size_of_their_batch(kafka_stage: Stage) -> None:
    """A batch is no larger than the smallest topic takes."""
    topic = create_topic(kafka_stage, partitions=2, max_message_bytes="2000")

    publish(
        kafka_stage.other(),
        [message(topic, b"v" * 300, key=b"k%d" % (n % 9)) for n in range(500)],
    )


@pytest.mark.kafka
@pytest.mark.parametrize("partitions", [1, 3])
def test_one_message_above_the_topics_limit_costs_no_other_key_anything(
    kafka_stage: Stage, partitions: int
) -> None:
    """Nothing of its key comes after it; every message of other keys is there once, in order."""
    topic = create_topic(kafka_stage, partitions, max_message_bytes="2000")
    broker = kafka_stage.other()
    batch = [
        message(
            topic,
            b"%03d" % number + b"v" * (5000 if number == 52 else 300),
            key=b"k%d" % (number % 5),
        )
        for number in range(100)
    ]

    settled = settle(broker, batch)

    assert isinstance(settled[52], MessageTooLargeError)
    expected = [one for number, one in enumerate(batch) if number % 5 != 2 or number < 52]
    found = values_by_key(kafka_stage.reader(topic).read(len(expected)))
    assert found == values_by_key_of(expected)


@pytest.mark.kafka
@pytest.mark.parametrize("limit", [6000, 1_048_588])
@pytest.mark.parametrize("headers", [0, 7, 32])
def test_the_largest_message_that_fits_by_our_count_fits_into_kafkas(
    kafka_stage: Stage, limit: int, headers: int
) -> None:
    """The count leaves room for the lengths of all headers, which Kafka writes beside them."""
    topic = create_topic(kafka_stage, max_message_bytes=str(limit))
    broker = kafka_stage.other()
    most = broker.max_message_bytes(topic)
    assert most is not None
    pairs = [(f"header-{number:02}", b"v" * 90) for number in range(headers)]
    empty = message(topic, b"", headers=pairs)
    largest = empty._replace(value=b"x" * (most - empty.size))
    assert largest.size == most

    (report,) = broker.publish([largest], timeout=20)

    assert isinstance(report, Acknowledgement), report


@pytest.mark.kafka
def test_a_refused_message_is_reported_long_before_the_timeout(kafka_stage: Stage) -> None:
    """The producer is given up at once, with all answers that have come."""
    topic = create_topic(kafka_stage, max_message_bytes="2000")
    broker = kafka_stage.other()
    publish(broker, [message(topic, b"warm")])
    began = time.monotonic()

    reports = broker.publish(
        [message(topic, b"before"), message(topic, b"v" * 5000), message(topic, b"after")],
        timeout=30,
    )

    assert time.monotonic() - began < 10
    assert isinstance(reports[1], MessageTooLargeError)
    assert isinstance(reports[2], BrokerError)
    assert reports[2].retryable
    assert b"after" not in values(kafka_stage.reader(topic).read(1 + (reports[0] == (0, 1))))


@pytest.mark.kafka
@pytest.mark.parametrize("partitions", [1, 3])
def test_a_message_that_a_compacted_topic_refuses_costs_the_others_nothing(
    kafka_stage: Stage, partitions: int
) -> None:
    """Kafka refuses the whole batch for one record without key; all others come through."""
    topic = create_topic(kafka_stage, partitions, cleanup_policy="compact")
    batch = [
        message(topic, b"%03d" % number, key=None if number == 4 else b"k%d" % (number % 5))
        for number in range(30)
    ]

    settled = settle(kafka_stage.other(), batch)

    refusal = settled[4]
    assert isinstance(refusal, BrokerError)
    assert not refusal.retryable
    expected = [one for one in batch if one.key is not None]
    assert values_by_key(kafka_stage.reader(topic).read(29)) == values_by_key_of(expected)


def values_by_key_of(messages: Sequence[Message]) -> dict[bytes | None, list[bytes | None]]:
    found: dict[bytes | None, list[bytes | None]] = {}
    for one in messages:
        found.setdefault(one.key, []).append(one.value)
    return found


@pytest.mark.kafka
def test_a_name_that_kafka_does_not_take_is_named_and_spoils_no_other(kafka_stage: Stage) -> None:
    """The topic cannot be created, ever; those beside it are."""
    broker = kafka_stage.broker
    good, bad = kafka_stage.name("good"), kafka_stage.name("no good")

    with pytest.raises(BrokerError, match="no good") as caught:
        broker.create_topics([TopicSpec(bad, 1, 1), TopicSpec(good, 1, 1)])

    assert not caught.value.retryable
    assert broker.missing_topics([good, bad]) == {bad}


# Topics that are missing


@pytest.mark.kafka
def test_a_topic_that_is_gone_is_named_soon(kafka_stage: Stage) -> None:
    """Publishing to it is answered long before a relay's deadline; other topics go on."""
    topic, missing = kafka_stage.topic(), kafka_stage.name("missing")

    reports = kafka_stage.other().publish(
        [message(missing, b"lost"), message(topic, b"there")], timeout=20
    )

    assert isinstance(reports[0], MissingTopicError)
    assert missing in str(reports[0])
    assert isinstance(reports[1], Acknowledgement)


@pytest.mark.kafka
def test_a_subscription_to_a_missing_topic_names_it(kafka_stage: Stage) -> None:
    """A consumer of a topic that went away hears of it instead of waiting for ever."""
    missing = kafka_stage.name("missing")
    reader = kafka_stage.reader(missing)

    with pytest.raises(MissingTopicError, match=missing):
        reader.read(1)


@pytest.mark.kafka
@pytest.mark.django_db
def test_a_missing_topic_stops_the_start_of_a_consumer(
    kafka_broker: Broker, folio_events: Callable[..., None], only_test_receivers: None
) -> None:
    """``Consumer.start()`` names the topic that nobody declares, and the group."""

    @receiver("nowhere.seen", name="tests.lost", group="lost")
    def lost(event: Event) -> None: ...

    with pytest.raises(MissingTopicError, match=r"'lost'.*\.nowhere\.seen"):
        Consumer("lost", broker=kafka_broker).start()


# Errors beside records


class StandIn:
    """A librdkafka consumer whose next messages are given."""

    def __init__(self, *messages: Any) -> None:
        self.messages = list(messages)

    def poll(self, _timeout: float) -> Any:
        return self.messages.pop(0) if self.messages else None

    def consume(self, number: int, _timeout: float) -> list[Any]:
        taken, self.messages = self.messages[:number], self.messages[number:]
        return taken

    def assignment(self) -> list[Any]:
        return []

    def close(self) -> None: ...


class Fetched:
    """What librdkafka hands out: a record, or an error in a record's place."""

    def __init__(self, offset: int, error: KafkaError | None = None) -> None:
        self._offset, self._error = offset, error

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> None: ...

    def headers(self) -> None: ...

    def timestamp(self) -> tuple[int, int]:
        return 1, 0

    def value(self) -> bytes:
        return b"%d" % self._offset


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_between_records_costs_none_of_them(place: int) -> None:
    """librdkafka would not bring the records again: they come first, then the error."""
    gone = Fetched(0, KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    fetched = [Fetched(5), Fetched(6)]
    fetched.insert(place, gone)
    subscription = KafkaBroker(NOWHERE).subscribe("group", ["t"], lambda _places: {})
    assert isinstance(subscription, KafkaSubscription)
    subscription.close()
    subscription._consumer = StandIn(*fetched)  # type: ignore[assignment]  # an error path

    assert values(subscription.poll(10, 0.1)) == [b"5", b"6"]
    with pytest.raises(MissingTopicError):
        subscription.poll(10, 0.1)
    assert subscription.poll(10, 0.1) == []


def test_a_seek_that_fails_while_a_batch_is_in_hand_is_raised_by_the_next_poll() -> None:
    """Raised at once it would leave the batch alone; lost, it would pass over a record."""

    class JustAssigned(StandIn):
        def pause(self, _places: object) -> None: ...

        def seek(self, _place: object) -> None:
            raise KafkaException(KafkaError(KafkaError._STATE, "Erroneous state"))

    broker = KafkaBroker(NOWHERE)
    subscription = broker.subscribe("group", ["t"], lambda _places: {})
    assert isinstance(subscription, KafkaSubscription)
    real = subscription._consumer
    subscription._consumer = JustAssigned(Fetched(5))  # type: ignore[assignment]  # an error path

    subscription.keep_alive()
    with pytest.raises(BrokerError, match="Erroneous state") as caught:
        subscription.poll(10, 0)

    assert caught.value.retryable
    real.close()


def test_a_new_producer_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """librdkafka's word on the gapless guarantee is left out; what else it says is kept."""
    broker = KafkaBroker({**NOWHERE, "group.id": "of no use to a producer"})

    broker.publish([message("t")], timeout=0.5)

    said = [record.getMessage() for record in caplog.records if record.name == "folio_events.kafka"]
    broker.close()
    assert any("CONFWARN" in text and "group.id" in text for text in said)
    assert not any("gapless" in text for text in said)


def test_the_end_of_a_partition_is_no_error() -> None:
    """An operator may have turned ``enable.partition.eof`` on."""
    end = Fetched(0, KafkaError(KafkaError._PARTITION_EOF))
    subscription = KafkaBroker(NOWHERE).subscribe("group", ["t"], lambda _places: {})
    assert isinstance(subscription, KafkaSubscription)
    subscription.close()
    subscription._consumer = StandIn(end, Fetched(5), end)  # type: ignore[assignment]  # as above

    assert values(subscription.poll(10, 0.1)) == [b"5"]
    assert subscription.poll(10, 0.1) == []


# A broker that goes away


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[KafkaCluster]:
    """One broker of the module's own, which tests may stop."""
    with kafka(private=True) as cluster:
        yield cluster


@pytest.fixture
def mortal(own_cluster: KafkaCluster) -> Iterator[KafkaCluster]:
    """The module's own cluster; it runs again after the test."""
    yield own_cluster
    process = own_cluster.brokers[0].process
    assert process is not None
    if process.running:
        os.kill(process.pid, signal.SIGCONT)
    else:
        own_cluster.start()


@pytest.fixture
def one_broker(mortal: KafkaCluster) -> Iterator[KafkaBroker]:
    broker = KafkaBroker({"bootstrap.servers": mortal.bootstrap, "consumer": IMPATIENT})
    yield broker
    broker.close()


def new_topic(broker: Broker) -> str:
    name = f"t{uuid.uuid4().hex[:10]}"
    broker.create_topics([TopicSpec(name, 1, 1)])
    return name


def read_until(broker: Broker, topic: str, last: bytes) -> list[bytes | None]:
    """All values of a topic of one partition, up to the one that was published last."""
    reader = Reader(broker, [topic])
    try:
        found: list[bytes | None] = []
        while last not in found:
            found += values(reader.read(1))
        return found + values(reader.poll())
    finally:
        reader.close()


@pytest.mark.kafka
def test_a_broker_that_is_down_is_reported_within_the_timeout(
    mortal: KafkaCluster, one_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishing says so for each message, to topics it knows and to those it does not."""
    known, unknown = new_topic(one_broker), new_topic(one_broker)
    publish(one_broker, [message(known)])
    mortal.brokers[0].stop()
    monkeypatch.setattr("folio_events.brokers.kafka.topics.ADMIN_TIMEOUT", 3.0)

    for topics in ([known], [unknown], [known, unknown]):
        began = time.monotonic()
        reports = one_broker.publish([message(topic) for topic in topics * 3], timeout=2)
        assert time.monotonic() - began < 2 + 2
        assert [type(report) for report in reports] == [BrokerUnavailableError] * 3 * len(topics)
    began = time.monotonic()
    assert one_broker.max_message_bytes(known) is not None
    assert [one_broker.max_message_bytes(f"other-{number}") for number in range(5)] == [None] * 5
    assert time.monotonic() - began < 3 + 2, "it is asked for each topic anew"
    with pytest.raises(BrokerUnavailableError):
        one_broker.missing_topics([known])
    with pytest.raises(BrokerUnavailableError):
        one_broker.create_topics([TopicSpec("new", 1, 1)])


@pytest.mark.kafka
def test_a_broker_that_was_down_is_published_to_again(
    mortal: KafkaCluster, one_broker: KafkaBroker
) -> None:
    """The same object finds it; nothing of a batch that was given up arrives later."""
    topic = new_topic(one_broker)
    publish(one_broker, [message(topic, b"1"), message(topic, b"2")])
    mortal.brokers[0].stop()
    given_up = [message(topic, b"given up %d" % number) for number in range(5)]
    assert not any(
        isinstance(report, Acknowledgement) for report in one_broker.publish(given_up, timeout=2)
    )

    mortal.start()
    publish(one_broker, [message(topic, b"3")])
    publish(one_broker, [message(topic, b"4")])

    assert read_until(one_broker, topic, b"4") == [b"1", b"2", b"3", b"4"]


@pytest.mark.kafka
def test_a_broker_that_hung_keeps_the_order_of_first_arrivals(
    mortal: KafkaCluster, one_broker: KafkaBroker
) -> None:
    """What it had received may be there twice, but never a later message before an earlier."""
    topic = new_topic(one_broker)
    publish(one_broker, [message(topic, b"0")])
    process = mortal.brokers[0].process
    assert process is not None
    batch = [message(topic, b"%d" % number) for number in range(1, 6)]

    os.kill(process.pid, signal.SIGSTOP)
    reports = one_broker.publish(batch, timeout=2)
    assert [type(report) for report in reports] == [BrokerUnavailableError] * 5
    os.kill(process.pid, signal.SIGCONT)
    publish(one_broker, [*batch, message(topic, b"last")])

    first_arrivals = list(dict.fromkeys(read_until(one_broker, topic, b"last")))
    assert first_arrivals == [b"0", b"1", b"2", b"3", b"4", b"5", b"last"]


@pytest.mark.kafka
def test_a_subscription_outlives_a_broker_that_was_down(
    mortal: KafkaCluster, one_broker: KafkaBroker
) -> None:
    """Polls find nothing, or say that it is away, and read on once it is back."""
    topic = new_topic(one_broker)
    publish(one_broker, [message(topic, b"before")])
    reader = Reader(one_broker, [topic])
    assert values(reader.read(1)) == [b"before"]

    mortal.brokers[0].stop()
    with contextlib.suppress(BrokerUnavailableError):
        assert reader.poll(timeout=1.0) == []
    mortal.start()
    publish(one_broker, [message(topic, b"after")])

    assert values(reader.read(1)) == [b"after"]
    reader.close()


# Processes


FORK = """
import os, sys
from django.conf import settings
servers, topic = sys.argv[1:]
settings.configure(FOLIO_EVENTS={"BROKER": {
    "BACKEND": "folio_events.brokers.kafka.KafkaBroker",
    "OPTIONS": {"bootstrap.servers": servers},
}})
from folio_events.brokers import get_broker
from folio_events.brokers.base import Acknowledgement
from folio_events.message import Message

def publish(value):
    (report,) = get_broker().publish([Message(topic, b"key", value, [])], timeout=20)
    assert isinstance(report, Acknowledgement), repr(report)

publish(b"parent 1")
of_parent = get_broker()
child = os.fork()
if not child:
    assert get_broker() is not of_parent
    publish(b"child 1")
    publish(b"child 2")
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert get_broker() is of_parent
publish(b"parent 2")
"""


@pytest.mark.kafka
def test_a_forked_process_has_a_producer_of_its_own(kafka_stage: Stage) -> None:
    """Both go on publishing after the fork, and the child ends as it wants to."""
    topic = kafka_stage.topic()
    servers = str(kafka_options()["bootstrap.servers"])

    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, servers, topic],
        cwd=ROOT, timeout=60, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = values(kafka_stage.reader(topic).read(4))
    assert found == [b"parent 1", b"child 1", b"child 2", b"parent 2"]


@pytest.mark.kafka
def test_the_broker_of_the_settings_is_one_for_the_process(kafka_broker: Broker) -> None:
    """Its producer takes half a second to start: relay runs share it."""
    assert get_broker() is kafka_broker
