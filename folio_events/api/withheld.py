"""Withheld messages, to be released or discarded."""

from __future__ import annotations

from typing import Any

from django.db.models import OuterRef, Q, Subquery
from rest_framework import serializers
from rest_framework.request import Request

from folio_events import withheld
from folio_events.api.access import actor
from folio_events.api.content import MaskedText
from folio_events.api.paging import Page, PageQuery, page, page_of
from folio_events.api.resource import (
    Ids,
    IdsAndReason,
    Resource,
    Settled,
    operation,
    reading,
    settled,
    writing,
)
from folio_events.models import OutboxMessage, WithheldMessage


class WithheldQuery(PageQuery):
    """Which withheld messages."""

    state = serializers.ChoiceField(
        [("open", "refused or waiting"), *WithheldMessage.State.choices], required=False
    )
    topic = serializers.CharField(required=False, max_length=249, help_text="Logical topic.")
    tenant = serializers.CharField(required=False, max_length=255)
    key = serializers.CharField(required=False, max_length=5000)


class WithheldRow(serializers.ModelSerializer[WithheldMessage]):
    """A withheld message."""

    id = serializers.IntegerField(source="pk", help_text="Of the outbox message.")
    error = MaskedText(help_text="Why the broker refused it; empty of those behind such a one.")
    event_id = serializers.UUIDField(allow_null=True, help_text="Null: the message was purged.")
    event_type = serializers.CharField(allow_null=True)

    class Meta:
        model = WithheldMessage
        fields = (
            "id", "state", "topic", "event_type", "tenant", "key", "event_id", "error",
            "withheld_at", "resolved_at", "reason",
        )  # fmt: skip


class WithheldMessagesView(Resource):
    """Withheld messages."""

    @operation("view_withheldmessage", query=WithheldQuery, answer=page_of(WithheldRow))
    def get(self, request: Request, *, query: dict[str, Any]) -> Page:
        """List withheld messages, the newest first."""
        # The outbox row may have been purged: no join.
        message = OutboxMessage.objects.filter(pk=OuterRef("pk"))
        rows = WithheldMessage.objects.using(reading(WithheldMessage)).annotate(
            event_id=Subquery(message.values("event_id")[:1]),
            event_type=Subquery(message.values("event_type")[:1]),
        )
        rest = Q(**{name: query[name] for name in ("topic", "tenant", "key") if name in query})
        state = query.get("state")
        if state in ("open", *WithheldMessage.OPEN):
            rows = rows.filter(state__in=WithheldMessage.OPEN)
        if state not in (None, "open"):
            rest &= Q(state=state)
        return page(rows, query, rest)


class ReleaseView(Resource):
    """The release of withheld messages."""

    @operation("release_withheldmessage", body=Ids, answer=Settled, refusals=(404, 409))
    def post(self, request: Request, *, body: dict[str, Any]) -> dict[str, int]:
        """Have refused messages tried again by the next drain, their followers behind them."""
        ids = body["ids"]
        done = withheld.release(ids, by=actor(request), using=writing(WithheldMessage))
        return settled(done, ids)


class DiscardView(Resource):
    """The discarding of withheld messages."""

    @operation("discard_withheldmessage", body=IdsAndReason, answer=Settled, refusals=(404, 409))
    def post(self, request: Request, *, body: dict[str, Any]) -> dict[str, int]:
        """Give refused messages up; their followers are published by the next drain."""
        ids = body["ids"]
        done = withheld.discard(
            ids, reason=body["reason"], by=actor(request), using=writing(WithheldMessage)
        )
        return settled(done, ids)
