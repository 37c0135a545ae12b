"""A memory broker with the faults that a test plants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from folio_events.brokers.base import Report, TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.exceptions import BrokerError, BrokerUnavailableError, PublishError
from folio_events.message import Message


def _nothing() -> None:
    pass


class AbsentBroker(MemoryBroker):
    """Never there; for processes that the test cannot reach into."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.available = False


class FaultyBroker(MemoryBroker):
    """Answers as its attributes say."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        #: Whether the broker answers a message at all.
        self.acknowledges: Callable[[Message], bool] = lambda _message: True
        #: Whether it refuses a message for good.
        self.refuses: Callable[[Message], bool] = lambda _message: False
        #: Whether it refuses all of a batch for one message in it, as Kafka may.
        self.refuses_whole_batches = False
        #: Topics that it takes nothing for, by the error it gives.
        self.closed: dict[str, BrokerError] = {}
        #: Topics that it does not create, by the error it gives.
        self.uncreatable: dict[str, PublishError] = {}
        self.before_publish: Callable[[], None] = _nothing
        #: Called when the messages are in the log and nobody knows it yet.
        self.after_publish: Callable[[], None] = _nothing
        #: Sizes of the batches that were published.
        self.batches: list[int] = []

    def create_topics(self, specs: Iterable[TopicSpec]) -> set[str]:
        created: set[str] = set()
        for spec in specs:
            if spec.name in self.uncreatable:
                raise self.uncreatable[spec.name]
            created |= super().create_topics([spec])
        return created

    def publish(self, messages: Sequence[Message], *, timeout: float) -> list[Report]:
        self.before_publish()
        self.batches.append(len(messages))
        if self.refuses_whole_batches and any(map(self.refuses, messages)):
            return [PublishError("the batch is refused", retryable=False)] * len(messages)
        stopped: set[tuple[str, bytes]] = set()
        reports: list[Report] = []
        for message in messages:
            chain = None if message.key is None else (message.topic, message.key)
            if message.topic in self.closed:
                report: Report = self.closed[message.topic]
            elif chain in stopped:
                report = PublishError("an earlier message of its key is not there")
            elif self.refuses(message):
                report = PublishError("it is refused", retryable=False)
            elif not self.acknowledges(message):
                report = BrokerUnavailableError("no answer")
            else:
                reports += super().publish([message], timeout=timeout)
                continue
            reports.append(report)
            if chain is not None:
                stopped.add(chain)
        self.after_publish()
        return reports
