"""A producer that answers for each message of a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from folio_events.brokers.base import Acknowledgement, Report
from folio_events.brokers.kafka.clients import keep_after_fork, logger
from folio_events.brokers.kafka.errors import PURGED, translate
from folio_events.brokers.kafka.trouble import Trouble
from folio_events.exceptions import BrokerUnavailableError, PublishError
from folio_events.message import Message

#: librdkafka's own default for the largest message and the largest batch.
_DEFAULT_BYTES = 1_000_000


class BatchProducer:
    """A librdkafka producer, made anew when it is of no more use."""

    def __init__(self, options: Mapping[str, Any], trouble: Trouble, *, grows: bool) -> None:
        """Make the producer with the first batch.

        Args:
            options: librdkafka's.
            trouble: Told what goes wrong with the connections.
            grows: Whether a topic with a higher limit may raise ``message.max.bytes``.
        """
        self._options = options
        self._trouble = trouble
        self._grows = grows
        self._max_bytes = int(options.get("message.max.bytes", _DEFAULT_BYTES))
        self._batch_bytes = int(options.get("batch.size", _DEFAULT_BYTES))
        self._producer: Producer | None = None
        #: Whether the producer met a fatal error: it will not send any more.
        self._broken = False
        keep_after_fork(self)

    def fit(self, limit: int) -> None:
        """Send to a topic that takes record batches of so many bytes."""
        # A batch above a topic's limit is refused whole, small messages with it.
        if limit < self._batch_bytes:
            self._batch_bytes = limit
            self.discard()
        if limit > self._max_bytes and self._grows:
            self._max_bytes = limit
            self.discard()

    def _get(self) -> Producer:
        if self._producer is None:
            options = {
                **self._options,
                "message.max.bytes": self._max_bytes,
                "batch.size": self._batch_bytes,
                "error_cb": self._trouble,
            }
            self._producer = Producer(options, logger=logger)
            self._broken = False
        return self._producer

    def discard(self) -> None:
        """Give up what is under way; the next message gets a new producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(in_queue=True, in_flight=True, blocking=True)
            self._flush(producer, time.monotonic() + 1.0)

    def publish(self, messages: Sequence[Message], *, deadline: float) -> list[Report]:
        """Publish messages, and wait for the answers until ``time.monotonic()`` is there."""
        producer = self._get()
        reports: list[Report | None] = [None] * len(messages)
        answers: list[Any] = [None] * len(messages)

        def note(index: int, error: KafkaError | None, message: Any) -> None:
            # Looked at later: while a fatal error is being raised, every call into C fails.
            answers[index] = message if error is None else error

        refused: set[tuple[str, bytes | None]] = set()
        produce = producer.produce
        for index, message in enumerate(messages):
            if refused and (message.topic, message.key) in refused:
                reports[index] = PublishError("an earlier message of its key was refused")
                continue
            topic, key, value, headers = message
            on_delivery = partial(note, index)
            try:
                produce(topic, value, key, headers=headers, on_delivery=on_delivery)  # type: ignore[arg-type]  # lists are invariant
            except (BufferError, KafkaException):
                report = self._insist(producer, message, on_delivery, deadline)
                if report is not None:
                    reports[index] = report
                    if key is not None:
                        refused.add((topic, key))
        remaining = self._flush(producer, deadline)
        if remaining or any(isinstance(answer, KafkaError) for answer in answers):
            # It may have stopped before a gap; what it still has must not come later.
            self.discard()
        unanswered = BrokerUnavailableError(self._trouble.explain("Kafka does not acknowledge"))
        if not remaining:
            self._trouble.over()
        return [
            report or _report(answer, message.topic) or unanswered
            for report, answer, message in zip(reports, answers, messages, strict=True)
        ]

    def _flush(self, producer: Producer, deadline: float) -> int:
        """Wait for the answers; returns how many are missing."""
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            # What a broken producer has not sent, or wants to send again, it never will.
            if self._broken:
                producer.purge(in_queue=True, in_flight=False)
            # In short waits: flush() raises an error when it returns, not when it happens.
            missing = self._serve(producer.flush, min(left, 0.1))
            if not missing or not left:
                return missing

    def _serve(self, call: Callable[[float], int], seconds: float) -> int:
        try:
            return call(seconds)
        except (KafkaException, SystemError):
            # So, and once, librdkafka tells that the producer met a fatal error.
            self._broken = True
            return 1

    def _insist(
        self, producer: Producer, message: Message, on_delivery: Any, deadline: float
    ) -> Report | None:
        """Wait for room in the producer's queue, or say why it takes the message never."""
        while True:
            try:
                producer.produce(
                    message.topic,
                    value=message.value,
                    key=message.key,
                    headers=message.headers,  # type: ignore[arg-type]  # lists are invariant
                    on_delivery=on_delivery,
                )
            except BufferError:
                if time.monotonic() > deadline:
                    return BrokerUnavailableError("the producer's queue stayed full")
                self._serve(producer.poll, 0.05)
            except KafkaException as error:
                return translate(error.args[0])
            else:
                return None


def _report(answer: Any, topic: str) -> Report | None:
    if isinstance(answer, KafkaError):
        return None if answer.code() in PURGED else translate(answer, f"topic {topic}: ")
    return None if answer is None else Acknowledgement(answer.partition(), answer.offset())
