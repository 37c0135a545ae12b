"""Topics that a change of topology left behind: which they are, who has yet to read, their end."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from django.utils import timezone

from folio_events import topics
from folio_events.audit import Actor
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.conf import get_settings
from folio_events.provisioning import delete_topics, lag_of, own_topics
from folio_events.topics.declared import topic_options

#: For how long nothing may have come before a topic counts as left.
DEFAULT_IDLE = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OldTopic:
    """A topic of this environment that this project no longer publishes to."""

    #: On the broker.
    name: str
    partitions: int
    #: When its newest record was written; None: it has none.
    newest: datetime | None
    #: By known group: how many records it has not read.
    unread: Mapping[str, int]
    #: Whether nothing has come for long enough.
    idle: bool

    @property
    def drained(self) -> bool:
        """Whether nothing comes any more, and every known group has read to the end."""
        return self.idle and not any(self.unread.values())


def old_topics(
    *,
    left: Collection[str] = (),
    idle: timedelta = DEFAULT_IDLE,
    broker: Broker | None = None,
) -> list[OldTopic]:
    """List the topics that this project published to in another topology.

    With a tenant collection on these are the topics of all tenants and other collections; with
    tenancy on, those without tenant. Nothing else is known to be ours: topics that only
    receivers name are other modules', and of another environment nothing is listed.

    Args:
        left: Tenants and tenant collections whose topics were left too.
        idle: How long nothing may have come for a topic to count as drained.
        broker: Defaults to the setting BROKER.

    Returns:
        By name.

    Raises:
        BrokerError: The broker does not answer, or does not tell.
    """
    broker = broker or get_broker()
    names = broker.list_topics(f"{get_settings().ENV}.")
    before = timezone.now() - idle
    found = []
    for name, use in sorted(broker.describe_use(_left_behind(names, left)).items()):
        newest = None if use.newest is None else datetime.fromtimestamp(use.newest / 1000, UTC)
        found.append(
            OldTopic(
                name=name,
                partitions=len(use.ends),
                newest=newest,
                unread=lag_of(name, use),
                idle=newest is None or newest <= before,
            )
        )
    return found


def _left_behind(names: Collection[str], left: Collection[str]) -> set[str]:
    settings = get_settings()
    own = {one for one in own_topics() if not topic_options(one).environment_only}
    plain = {topics.wire_topic(one, None, replace(settings, TENANCY=None)) for one in own}
    with_tenants = replace(settings, TENANCY="folio")
    found: set[str] = set()
    for name in names:
        part = topics.parse_wire_topic(name, with_tenants)
        if part.tenant and part.topic in own:
            # Without a collection a tenant's topics are in use, and those without tenancy
            # might be another system's: they have to be named.
            others = settings.TENANT_COLLECTION not in (None, part.tenant)
            if others or (part.tenant in left and name not in plain):
                found.add(name)
        elif name in plain and settings.TENANCY is not None:
            found.add(name)
    return found


def delete_drained(
    *,
    left: Collection[str] = (),
    idle: timedelta = DEFAULT_IDLE,
    broker: Broker | None = None,
    by: Actor = None,
) -> set[str]:
    """Delete the old topics that are drained, and no others.

    Args:
        left: As for ``old_topics()``.
        idle: As for ``old_topics()``.
        broker: Defaults to the setting BROKER.
        by: The user who does it.

    Returns:
        The names of those that were deleted.

    Raises:
        BrokerError: The broker does not answer, does not tell, or does not delete.
    """
    broker = broker or get_broker()
    # Looked at anew: the list that somebody agreed to may be old.
    drained = {one.name for one in old_topics(left=left, idle=idle, broker=broker) if one.drained}
    return delete_topics(drained, broker, why="left by a change of topology", by=by)
