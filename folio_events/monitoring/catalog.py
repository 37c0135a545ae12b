"""Catalog: who sends which events and who receives them, by declarations and by what was seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from django.db import DEFAULT_DB_ALIAS, connections

from folio_events import topics
from folio_events.brokers.base import Broker
from folio_events.conf import get_settings
from folio_events.declarations import events
from folio_events.models import BrokerPartition, ConsumerOffset, OutboxMessage
from folio_events.receivers import Receiver, broadcasts, registry
from folio_events.topics.declared import declared_topics

#: Outbox rows that are looked at: the newest, and as many spread over the table.
_SAMPLE = 5000

Gap = Literal["nobody sends", "nobody receives"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """A model whose writes are events of a topic."""

    model: str
    owner: str
    #: "signals" or "trigger".
    capture: str
    dialect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriber:
    """A receiver of this project."""

    name: str
    #: Empty: a broadcast receiver, which is in no group.
    group: str
    #: What it listens to; may be a pattern.
    pattern: str
    #: None: all types.
    types: tuple[str, ...] | None
    #: "transaction", "after_commit", "manual" or "broadcast".
    mode: str
    order: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenType:
    """An event type that was seen in a sample of the outbox."""

    type: str
    #: Of the rows that were looked at.
    first_at: datetime
    last_at: datetime
    messages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueTopic:
    """A topic, who sends to it and who receives from it.

    Attributes:
        name: Logical topic, or a receiver's pattern that matches none that is known.
        is_declared: Whether a model, ``declare_topic()`` or the setting TOPICS names it.
        senders: Models of this project.
        subscribers: Receivers of this project.
        groups: Consumer groups that were seen reading it, this project's among them.
        seen: Types that were seen in this project's outbox.
        on_broker: Whether the broker was seen to have it; None: nobody looked.
    """

    name: str
    is_declared: bool
    senders: tuple[Sender, ...] = ()
    subscribers: tuple[Subscriber, ...] = ()
    groups: tuple[str, ...] = ()
    seen: tuple[SeenType, ...] = ()
    on_broker: bool | None = None

    @property
    def owners(self) -> tuple[str, ...]:
        """The teams to ask, as its senders name them."""
        return tuple(sorted({sender.owner for sender in self.senders if sender.owner}))

    @property
    def gap(self) -> Gap | None:
        """What is missing of it in this project; it may be elsewhere."""
        if not (self.is_declared or self.senders or self.seen):
            return "nobody sends"
        return None if self.subscribers or self.groups else "nobody receives"


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All topics by name."""

    topics: tuple[CatalogueTopic, ...]
    #: How many outbox rows were looked at.
    sampled: int


@dataclass(slots=True)
class _Found:
    is_declared: bool = False
    senders: list[Sender] = field(default_factory=list)
    subscribers: list[Subscriber] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)
    seen: dict[str, SeenType] = field(default_factory=dict)
    on_broker: bool | None = None


def catalogue(
    *, observe: bool = True, broker: Broker | None = None, using: str = DEFAULT_DB_ALIAS
) -> Catalogue:
    """Say which topics there are, who sends to them and who receives.

    Args:
        observe: Whether to look at the outbox and at the offsets as well as at declarations. Of
            the outbox a sample of 10,000 rows at most, so rare types may be missing.
        broker: Asked for its topics and for the groups that read them, foreign ones too. None:
            nobody is asked.
        using: Database alias.

    Raises:
        BrokerError: The broker does not answer.
    """
    found: defaultdict[str, _Found] = defaultdict(_Found)
    _add_declared(found)
    sampled = 0
    if observe:
        sampled = _add_outbox(found, using)
        for group, topic in (
            ConsumerOffset.objects.using(using).values_list("group", "topic").distinct()
        ):
            found[_logical(topic)].groups.add(group)
        for topic in (
            BrokerPartition.objects.using(using).values_list("topic", flat=True).distinct()
        ):
            found[_logical(topic)].on_broker = True
    if broker is not None:
        _add_broker(found, broker)
    _add_subscribers(found)
    return Catalogue(
        topics=tuple(_topic(name, found[name]) for name in sorted(found)), sampled=sampled
    )


def _topic(name: str, found: _Found) -> CatalogueTopic:
    return CatalogueTopic(
        name=name,
        is_declared=found.is_declared,
        senders=tuple(sorted(found.senders, key=lambda sender: sender.model)),
        subscribers=tuple(sorted(found.subscribers, key=lambda one: (one.group, one.name))),
        groups=tuple(sorted(found.groups)),
        seen=tuple(found.seen[kind] for kind in sorted(found.seen)),
        on_broker=found.on_broker,
    )


def _add_declared(found: defaultdict[str, _Found]) -> None:
    for declaration in events:
        topic = found[declaration.topic]
        topic.is_declared = True
        topic.senders.append(
            Sender(
                model=declaration.model._meta.label,
                owner=declaration.owner,
                capture=declaration.capture,
                dialect=declaration.dialect,
            )
        )
    for declared in declared_topics:
        found[declared.name].is_declared = True


def _add_subscribers(found: defaultdict[str, _Found]) -> None:
    for receiver in [*registry, *broadcasts]:
        subscriber = _subscriber(receiver, is_broadcast=broadcasts.get(receiver.name) is receiver)
        known = [name for name in list(found) if receiver.listens_to(name)]
        for name in known or [receiver.topic]:
            found[name].subscribers.append(subscriber)


def _subscriber(receiver: Receiver, *, is_broadcast: bool) -> Subscriber:
    return Subscriber(
        name=receiver.name,
        group="" if is_broadcast else receiver.group,
        pattern=receiver.topic,
        types=None if receiver.types is None else tuple(sorted(receiver.types)),
        mode="broadcast" if is_broadcast else receiver.mode,
        order=receiver.order,
    )


def _add_outbox(found: defaultdict[str, _Found], using: str) -> int:
    sampled = 0
    for topic, kind, first, last, count in _sample(using):
        sampled += count
        types = found[topic].seen
        before = types.get(kind)
        types[kind] = SeenType(
            type=kind,
            first_at=min(first, before.first_at) if before else first,
            last_at=max(last, before.last_at) if before else last,
            messages=count + (before.messages if before else 0),
        )
    return sampled


def _sample(using: str) -> Iterator[tuple[str, str, datetime, datetime, int]]:
    """Types of the newest rows, and of as many places evenly spread over the others' ids."""
    rows = OutboxMessage.objects.using(using)
    fields = ("topic", "event_type", "occurred_at")
    newest = list(rows.order_by("-id").values_list("id", *fields)[:_SAMPLE])
    if not newest:
        return
    sample = [values[1:] for values in newest]
    lowest, oldest = newest[-1][0], rows.order_by("id").values_list("id", flat=True).first() or 0
    if lowest > oldest:
        stride = max((lowest - oldest) // _SAMPLE, 1)
        ids = list(range(oldest, lowest, stride))[:_SAMPLE]
        step = connections[using].features.max_query_params or 1000
        for start in range(0, len(ids), min(step, 1000)):
            part = ids[start : start + min(step, 1000)]
            sample += rows.filter(id__in=part).values_list(*fields)
    grouped: defaultdict[tuple[str, str], list[datetime]] = defaultdict(list)
    for topic, kind, at in sample:
        grouped[topic, kind].append(at)
    for (topic, kind), moments in grouped.items():
        yield topic, kind, min(moments), max(moments), len(moments)


def _add_broker(found: defaultdict[str, _Found], broker: Broker) -> None:
    names = broker.list_topics(f"{get_settings().ENV}.")
    for topic in found.values():
        topic.on_broker = False
    for name, use in broker.describe_use(names).items():
        topic = found[_logical(name)]
        topic.on_broker = True
        topic.groups |= set(use.groups)


def _logical(wire_topic: str) -> str:
    return topics.parse_wire_topic(wire_topic).topic


def edges(seen: Catalogue) -> Iterable[tuple[str, str, str]]:
    """The graph: from, to and label of each arrow, once each.

    Models point to topics, topics to receivers, and to groups of which no receiver is here.
    """
    for topic in seen.topics:
        for sender in topic.senders:
            yield sender.model, topic.name, sender.owner
        for one in topic.subscribers:
            yield topic.name, one.name, ", ".join(one.types or ())
        here = {one.group for one in topic.subscribers}
        for group in topic.groups:
            if group not in here:
                yield topic.name, f"group {group}", ""
