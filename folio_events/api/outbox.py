"""Outbox messages, and how far they got."""

from __future__ import annotations

from typing import Any

from django.db.models import Q, QuerySet
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request

from folio_events.api.content import Header, Payload, Shown, shown_headers, shown_payload
from folio_events.api.events import Place
from folio_events.api.paging import Page, PageQuery, page, page_of
from folio_events.api.resource import Resource, number, operation, reading
from folio_events.models import OutboxMessage
from folio_events.operations.retention import of_progress
from folio_events.sending import headers_of


class OutboxQuery(PageQuery):
    """Which outbox messages."""

    event_id = serializers.UUIDField(required=False)
    key = serializers.CharField(required=False, max_length=5000)
    state = serializers.ChoiceField(
        ["waiting", "published", "withheld"],
        required=False,
        help_text="Those that were discarded are among the withheld messages.",
    )
    topic = serializers.CharField(required=False, max_length=249, help_text="Logical topic.")
    event_type = serializers.CharField(required=False, max_length=100)
    tenant = serializers.CharField(required=False, max_length=255)


class PublicationRow(Place):
    """Where a message stands on the broker."""

    at = serializers.DateTimeField(source="published_at")


class OutboxRow(serializers.ModelSerializer[OutboxMessage]):
    """An outbox message."""

    state = serializers.CharField(source="progress")
    published = PublicationRow(
        source="publication", allow_null=True, help_text="Where; null: it is not yet."
    )

    class Meta:
        model = OutboxMessage
        fields: tuple[str, ...] = (
            "id", "event_id", "topic", "event_type", "tenant", "key", "occurred_at", "state",
            "published",
        )  # fmt: skip


class OutboxDetail(OutboxRow):
    """An outbox message with what it holds."""

    headers = Shown(Header(many=True))
    payload = Shown(Payload(allow_null=True))

    class Meta(OutboxRow.Meta):
        fields = (*OutboxRow.Meta.fields, "headers", "payload")

    def get_headers(self, row: OutboxMessage) -> list[dict[str, Any]]:
        return shown_headers(headers_of(row))

    def get_payload(self, row: OutboxMessage) -> dict[str, Any] | None:
        return shown_payload(row.payload, row.topic, self.context["request"])


def _rows() -> QuerySet[OutboxMessage]:
    rows = OutboxMessage.objects.using(reading(OutboxMessage))
    return rows.select_related("publication", "withheldmessage")


class OutboxView(Resource):
    """The outbox."""

    @operation("view_outboxmessage", query=OutboxQuery, answer=page_of(OutboxRow))
    def get(self, request: Request, *, query: dict[str, Any]) -> Page:
        """List outbox messages, the newest first."""
        rows = _rows().defer("payload", "repeating_headers", "own_headers")
        exact = {name: query[name] for name in ("event_id", "key") if name in query}
        rest = Q(**{n: query[n] for n in ("topic", "event_type", "tenant") if n in query})
        if "state" in query:
            served, more = of_progress(OutboxMessage.Progress(query["state"]), using=rows.db)
            rows, rest = rows.filter(served), rest & more
        return page(rows.filter(**exact), query, rest)


class OutboxMessageView(Resource):
    """One outbox message."""

    @operation("view_outboxmessage", answer=OutboxDetail, refusals=(404,))
    def get(self, request: Request, id: str) -> OutboxMessage:
        """Show an outbox message with its headers and payload."""
        found = _rows().filter(pk=number(id)).first()
        if found is None:
            raise NotFound(f"There is no outbox message {id}; it may have been purged.")
        return found
