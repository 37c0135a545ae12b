"""Event: a fact as code sees it, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A fact about a model, or one that ``publish()`` was told."""

    #: Made once, when the outbox row is written; a repeated delivery keeps it.
    id: UUID
    #: Logical topic, such as ``inventory.item``: without environment and tenant.
    topic: str
    #: ``CREATE``, ``UPDATE``, ``MOVE``, ``DELETE`` or ``DELETE_ALL``, whatever the dialect's
    #: own word for it, or any other name.
    type: str
    #: What orders the event: events of one topic and key keep their order. None has no order.
    key: str | None
    #: Whose event it is; None where tenancy is off.
    tenant: str | None
    #: When the change was recorded, with zone.
    occurred_at: datetime
    #: The body without its metadata; for a model change ``{"old": {...}, "new": {...}}``.
    payload: Mapping[str, Any]
    #: Whether it is a message without body, by which a compacted topic forgets its key: a
    #: "DELETE" without payload.
    is_tombstone: bool = False
    #: What a mod-pubsub Event says of itself, such as ``correlationId``; empty elsewhere.
    metadata: Mapping[str, Any] = field(default_factory=dict)
    #: All headers of the message as text, names in lower case.
    headers: Mapping[str, str] = field(default_factory=dict)
    #: The topic on the broker, with environment and tenant; None before it was published.
    wire_topic: str | None = None
    #: Where it stands in the topic; None before it was published.
    partition: int | None = None
    offset: int | None = None

    @property
    def old(self) -> Mapping[str, Any] | None:
        """What the database held before the change; None for a creation."""
        return self.payload.get("old")

    @property
    def new(self) -> Mapping[str, Any] | None:
        """What the change left; None for a deletion."""
        return self.payload.get("new")

    @property
    def request_id(self) -> str | None:
        """The request that caused the event, from header ``x-okapi-request-id``."""
        return self.headers.get("x-okapi-request-id")

    @property
    def cause_id(self) -> str | None:
        """The id of the event whose receiver caused this one, if any."""
        return self.headers.get("ce_causationid")

    def __str__(self) -> str:
        # Never the payload: this text lands in logs and tracebacks.
        return f"{self.topic} {self.type} {self.id}"

    def __repr__(self) -> str:
        return f"<Event {self}>"
