"""Dead letters and refused messages as a person looks at them: by cause, and what waits behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Min, OuterRef, Q, QuerySet, Subquery

from folio_events import topics
from folio_events.models import Delivery, WithheldMessage

#: Followers are counted no further.
MOST_COUNTED = 10_000
_TIMES = ("since", "until")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters or refused messages; what is None does not matter."""

    #: Name of the receiver.
    receiver: str | None = None
    #: Logical, or as on the broker.
    topic: str | None = None
    tenant: str | None = None
    event_type: str | None = None
    #: Class of the error, with its module.
    error: str | None = None
    #: See ``fingerprints.fingerprint()``.
    fingerprint: str | None = None
    #: Failed, or were refused, then or later.
    since: datetime | None = None
    #: Failed, or were refused, before.
    until: datetime | None = None

    def criteria(self) -> dict[str, str]:
        """What matters, in values that JSON has."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {
            name: value.isoformat() if name in _TIMES else value for name, value in given.items()
        }

    @classmethod
    def of(cls, criteria: Mapping[str, str]) -> Selection:
        """The inverse of ``criteria()``.

        Raises:
            ValueError: A name is none of a selection's, or a time is none.
        """
        given: dict[str, Any] = dict(criteria)
        if unknown := sorted(given.keys() - cls.__slots__):
            raise ValueError(f"A selection has no {', '.join(unknown)}.")
        for name in _TIMES:
            if name in given:
                given[name] = datetime.fromisoformat(given[name])
        return cls(**given)

    def dead(self, *, using: str) -> QuerySet[Delivery]:
        """The dead letters that match."""
        return self.open(using=using).filter(state=Delivery.State.DEAD)

    def open(self, *, using: str) -> QuerySet[Delivery]:
        """The open deliveries that match, also those that will be tried again."""
        rows = Delivery.objects.using(using).filter(state__in=Delivery.OPEN)
        wanted: dict[str, object] = {
            "receiver": self.receiver,
            "tenant": self.tenant,
            "event_type": self.event_type,
            "error_class": self.error,
            "fingerprint": self.fingerprint,
            "last_attempt_at__gte": self.since,
            "last_attempt_at__lt": self.until,
        }
        if self.topic is not None:
            names = rows.order_by().values_list("topic", flat=True).distinct()
            wanted["topic__in"] = [name for name in names if self._is_topic(name)]
        return rows.filter(**_given(wanted))

    def refused(self, *, using: str) -> QuerySet[WithheldMessage]:
        """The refused messages that match.

        Raises:
            ValueError: It names what only deliveries have.
        """
        if not (self.receiver is self.event_type is self.error is self.fingerprint is None):
            raise ValueError(
                "Withheld messages are chosen by topic, tenant and time: they have no receiver, "
                "event type, error class or fingerprint."
            )
        wanted = {
            "topic": self.topic,
            "tenant": self.tenant,
            "withheld_at__gte": self.since,
            "withheld_at__lt": self.until,
        }
        rows = WithheldMessage.objects.using(using).filter(state=WithheldMessage.State.REFUSED)
        return rows.filter(**_given(wanted))

    def _is_topic(self, wire_topic: str) -> bool:
        return self.topic in (wire_topic, topics.parse_wire_topic(wire_topic).topic)


def _given(wanted: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in wanted.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Open deliveries of one fingerprint.

    Attributes:
        dead: How many are dead.
        retrying: How many will be tried again.
        first_at: When the first of them was recorded.
        last_at: When one of them failed last.
        tenants: How many have some.
        tenant: One of them.
        behind: How many deliveries that were never tried wait behind them; not counted beyond
            ``MOST_COUNTED``.
        sample: Id of the newest.
    """

    fingerprint: str
    receiver: str
    topic: str
    topics: int
    tenant: str
    tenants: int
    dead: int
    retrying: int
    first_at: datetime
    last_at: datetime
    behind: int
    sample: int
    error_class: str
    error: str


def groups(selection: Selection, *, using: str, limit: int = 100) -> list[Group]:
    """What has failed, by cause: the most frequent first.

    Deliveries of an older version are missing until a retry pass gave them a fingerprint.
    """
    tried: Any = selection.open(using=using).exclude(Q(fingerprint=None) | Q(fingerprint=""))
    found: list[dict[str, Any]] = list(
        tried.values("fingerprint")
        .annotate(
            dead=Count("id", filter=Q(state=Delivery.State.DEAD)),
            retrying=Count("id", filter=Q(state=Delivery.State.RETRYING)),
            first_at=Min("created_at"),
            last_at=Max("last_attempt_at"),
            tenants=Count("tenant", distinct=True, filter=~Q(tenant="")),
            topics=Count("topic", distinct=True),
            sample=Max("id"),
        )
        .order_by("-dead", "-last_at", "fingerprint")[:limit]
    )
    rows = Delivery.objects.using(using).only("receiver", "topic", "tenant", "error_class", "error")
    samples = rows.in_bulk([group["sample"] for group in found])
    held = _behind_causes(using)
    return [
        Group(
            **group,
            behind=held[group["fingerprint"]],
            receiver=sample.receiver,
            topic=sample.topic,
            tenant=sample.tenant,
            error_class=sample.error_class,
            error=sample.error,
        )
        for group in found
        if (sample := samples.get(group["sample"])) is not None  # settled since
    ]


def _behind_causes(using: str) -> Counter[str]:
    """How many deliveries wait behind those of each fingerprint, without a run of their own."""
    rows = Delivery.objects.using(using)
    held = rows.filter(state=Delivery.State.RETRYING, order="key", fingerprint="").exclude(key=None)
    head = rows.filter(
        state__in=Delivery.OPEN,
        order="key",
        receiver=OuterRef("receiver"),
        topic=OuterRef("topic"),
        key=OuterRef("key"),
        id__lt=OuterRef("id"),
    ).order_by("id")
    causes = held.annotate(cause=Subquery(head.values("fingerprint")[:1]))
    counted = causes.order_by("id").values_list("cause", flat=True)[:MOST_COUNTED]
    return Counter(cause for cause in counted if cause)


def followers(delivery: Delivery) -> QuerySet[Delivery]:
    """The open deliveries that wait until one is settled, in their order; none if it is settled."""
    rows = Delivery.objects.using(delivery._state.db or "default")
    value = {"key": delivery.key, "partition": delivery.partition}.get(delivery.order)
    if value is None or delivery.state not in Delivery.OPEN:
        return rows.none()
    return rows.filter(
        state__in=Delivery.OPEN,
        order=delivery.order,
        receiver=delivery.receiver,
        topic=delivery.topic,
        id__gt=delivery.pk,
        **{delivery.order: value},
    ).order_by("id")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedGroup:
    """Refused messages of one topic.

    Attributes:
        waiting: How many messages of the topic wait behind refused ones, or were released.
        error: What the broker said of the newest.
    """

    topic: str
    refused: int
    waiting: int
    tenants: int
    first_at: datetime
    last_at: datetime
    error: str


def refused_groups(*, using: str, limit: int = 100) -> list[RefusedGroup]:
    """What the broker refused, by topic: the most frequent first."""
    rows: Any = WithheldMessage.objects.using(using).filter(state__in=WithheldMessage.OPEN)
    refused = Q(state=WithheldMessage.State.REFUSED)
    found: list[dict[str, Any]] = list(
        rows.values("topic")
        .annotate(
            refused=Count("pk", filter=refused),
            waiting=Count("pk", filter=~refused),
            tenants=Count("tenant", distinct=True, filter=~Q(tenant="")),
            first_at=Min("withheld_at"),
            last_at=Max("withheld_at"),
            sample=Max("pk", filter=refused),
        )
        .filter(refused__gt=0)
        .order_by("-refused", "topic")[:limit]
    )
    errors = dict(
        rows.filter(pk__in=[group["sample"] for group in found]).values_list("pk", "error")
    )
    return [RefusedGroup(error=errors.get(group.pop("sample"), ""), **group) for group in found]
