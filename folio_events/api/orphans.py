"""Orphans, to be assigned to a tenant or discarded."""

from __future__ import annotations

from typing import Any

from django.db.models import Q
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request

from folio_events import orphans, topics
from folio_events.api.access import actor
from folio_events.api.content import (
    Header,
    MaskedText,
    Payload,
    Shown,
    shown_headers,
    shown_payload,
)
from folio_events.api.paging import Page, PageQuery, page, page_of
from folio_events.api.resource import (
    Ids,
    IdsAndReason,
    Resource,
    Settled,
    number,
    operation,
    reading,
    settled,
    writing,
)
from folio_events.message import decode_headers
from folio_events.models import Orphan


class OrphanQuery(PageQuery):
    """Which orphans."""

    state = serializers.ChoiceField(Orphan.State.choices, required=False)
    fault = serializers.ChoiceField(Orphan.Fault.choices, required=False)
    topic = serializers.CharField(required=False, max_length=249, help_text="On the broker.")
    key = serializers.CharField(required=False, max_length=5000)


class OrphanRow(serializers.ModelSerializer[Orphan]):
    """An orphan."""

    error = MaskedText(help_text="Why it has no owner.")

    class Meta:
        model = Orphan
        fields: tuple[str, ...] = (
            "id", "state", "fault", "error", "topic", "partition", "offset", "key",
            "published_at", "found_at", "tenant", "resolved_at", "reason",
        )  # fmt: skip


class OrphanDetail(OrphanRow):
    """An orphan with what it holds."""

    headers = Shown(Header(many=True))
    payload = Shown(Payload(allow_null=True))

    class Meta(OrphanRow.Meta):
        fields = (*OrphanRow.Meta.fields, "headers", "payload")

    def get_headers(self, row: Orphan) -> list[dict[str, Any]]:
        return shown_headers(decode_headers(bytes(row.headers)))

    def get_payload(self, row: Orphan) -> dict[str, Any] | None:
        topic = topics.parse_wire_topic(row.topic).topic
        return shown_payload(row.payload, topic, self.context["request"])


class IdsAndTenant(Ids):
    """Which orphans, and whose they are."""

    tenant = serializers.CharField(max_length=200)


class OrphansView(Resource):
    """Orphans."""

    @operation("view_orphan", query=OrphanQuery, answer=page_of(OrphanRow))
    def get(self, request: Request, *, query: dict[str, Any]) -> Page:
        """List orphans, the newest first."""
        rows = Orphan.objects.using(reading(Orphan)).defer("payload", "headers", "raw_key")
        rest = Q(**{name: query[name] for name in ("fault", "topic") if name in query})
        if "key" in query:
            rows = rows.filter(key=query["key"])
        state = query.get("state")
        if state == Orphan.State.OPEN:
            rows = rows.filter(state=state)
        elif state is not None:
            rest &= Q(state=state)
        return page(rows, query, rest)


class OrphanView(Resource):
    """One orphan."""

    @operation("view_orphan", answer=OrphanDetail, refusals=(404,))
    def get(self, request: Request, id: str) -> Orphan:
        """Show an orphan with its headers and payload."""
        found = Orphan.objects.using(reading(Orphan)).filter(pk=number(id)).first()
        if found is None:
            raise NotFound(f"There is no orphan {id}; it may have been purged.")
        return found


class AssignView(Resource):
    """The assignment of orphans."""

    @operation("assign_orphan", body=IdsAndTenant, answer=Settled, refusals=(404, 409))
    def post(self, request: Request, *, body: dict[str, Any]) -> dict[str, int]:
        """Give open orphans a tenant and hand them to their receivers as deliveries."""
        ids = body["ids"]
        done = orphans.assign(ids, tenant=body["tenant"], by=actor(request), using=writing(Orphan))
        return settled(done, ids)


class DiscardView(Resource):
    """The discarding of orphans."""

    @operation("discard_orphan", body=IdsAndReason, answer=Settled, refusals=(404, 409))
    def post(self, request: Request, *, body: dict[str, Any]) -> dict[str, int]:
        """Close open orphans: no receiver ever gets them."""
        ids = body["ids"]
        done = orphans.discard(ids, reason=body["reason"], by=actor(request), using=writing(Orphan))
        return settled(done, ids)
