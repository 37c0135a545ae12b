"""Deliveries, to be retried, discarded, re-pointed or edited."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.db.models import Q, QuerySet
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request

from folio_events import deliveries, topics
from folio_events.api.access import actor, may_see_private
from folio_events.api.content import (
    Header,
    MaskedText,
    Payload,
    Shown,
    shown_headers,
    shown_payload,
)
from folio_events.api.events import AttemptAnswer
from folio_events.api.paging import Page, PageQuery, page, page_of
from folio_events.api.problems import Conflict, invalid
from folio_events.api.resource import (
    Ids,
    IdsAndReason,
    Reason,
    Resource,
    Settled,
    number,
    operation,
    reading,
    settled,
    writing,
)
from folio_events.exceptions import DecodingError
from folio_events.masking import private_members
from folio_events.message import decode_headers
from folio_events.models import Attempt, Delivery
from folio_events.operations import editing
from folio_events.schemas import Comparison

#: Filters that no index serves but together with others.
_REST = (
    "receiver", "group", "topic", "tenant", "event_type", "error_class", "fingerprint", "replay",
)  # fmt: skip


class DeliveryQuery(PageQuery):
    """Which deliveries."""

    state = serializers.ChoiceField(
        [("open", "retrying or dead"), *Delivery.State.choices], required=False
    )
    event_id = serializers.UUIDField(required=False)
    key = serializers.CharField(required=False, max_length=5000)
    receiver = serializers.CharField(required=False, max_length=255)
    group = serializers.CharField(required=False, max_length=255)
    topic = serializers.CharField(required=False, max_length=249, help_text="On the broker.")
    tenant = serializers.CharField(required=False, max_length=255)
    event_type = serializers.CharField(required=False, max_length=100)
    error_class = serializers.CharField(
        required=False, max_length=255, help_text='With its module, such as "builtins.KeyError".'
    )
    fingerprint = serializers.CharField(
        required=False, max_length=16, help_text="Failures of one cause share it."
    )
    replay = serializers.IntegerField(
        required=False, min_value=0, max_value=2**31 - 1, help_text="0: of no replay."
    )


class DeliveryRow(serializers.ModelSerializer[Delivery]):
    """A delivery."""

    is_running = serializers.BooleanField(
        source="unfinished", help_text="A run has been begun and has not told of an end."
    )
    held_behind = serializers.IntegerField(
        allow_null=True, help_text="Id of the delivery that it waits for."
    )
    error = MaskedText()

    class Meta:
        model = Delivery
        fields: tuple[str, ...] = (
            "id", "state", "receiver", "group", "event_id", "replay", "attempts", "is_running",
            "held_behind", "next_attempt_at", "topic", "partition", "offset", "tenant",
            "event_type", "key", "published_at", "error_class", "error", "fingerprint",
            "created_at", "last_attempt_at", "resolved_at", "reason",
        )  # fmt: skip


class DifferenceRow(serializers.Serializer[Any]):
    """A place where a payload does not fit a schema."""

    path = serializers.CharField(
        allow_blank=True, help_text='JSON pointer into the payload; "" is all of it.'
    )
    reason = serializers.CharField(help_text="What is wrong, without the value.")


class ComparisonAnswer(serializers.Serializer[Any]):
    """A payload held against the schema that its receiver expects."""

    origin = serializers.CharField(
        allow_blank=True, help_text="Who says what it should be; blank: nobody."
    )
    differences = DifferenceRow(many=True)
    is_partial = serializers.BooleanField(help_text="Whether there are more differences.")
    obstacle = serializers.CharField(
        allow_blank=True, help_text="Why it was not compared; blank where it was."
    )


class DeliveryDetail(DeliveryRow):
    """A delivery with its runs and what it holds."""

    traceback = MaskedText()
    runs = Shown(AttemptAnswer(many=True), help_text="As far as they are kept, oldest first.")
    headers = Shown(Header(many=True))
    payload = Shown(Payload(allow_null=True))
    original_payload = Shown(
        Payload(allow_null=True), help_text="As it was read; null: nobody has edited it."
    )
    comparison = Shown(
        ComparisonAnswer(allow_null=True),
        help_text="With the schema that the receiver expects; null of a settled one.",
    )
    version = serializers.SerializerMethodField(
        help_text="Of the message; an edit takes it, so that nobody overwrites what he has not seen."
    )

    class Meta(DeliveryRow.Meta):
        fields = (
            *DeliveryRow.Meta.fields, "traceback", "runs", "headers", "payload", "edited_at",
            "original_payload", "comparison", "version",
        )  # fmt: skip

    def get_runs(self, row: Delivery) -> QuerySet[Attempt]:
        return Attempt.objects.using(row._state.db).filter(delivery=row.pk).order_by("id")

    def get_headers(self, row: Delivery) -> list[dict[str, Any]]:
        return shown_headers(decode_headers(bytes(row.headers)))

    def get_payload(self, row: Delivery) -> dict[str, Any] | None:
        return self._shown(row, row.payload)

    def get_original_payload(self, row: Delivery) -> dict[str, Any] | None:
        if row.edited_at is None:
            return None
        return self._shown(row, editing.original_of(row).payload)

    def get_comparison(self, row: Delivery) -> Comparison | None:
        request = self.context["request"]
        topic = topics.parse_wire_topic(row.topic).topic
        hidden = frozenset() if may_see_private(request) else private_members(topic)
        return editing.compare(row, hidden=hidden)

    def get_version(self, row: Delivery) -> str:
        return editing.version_of(row)

    def _shown(self, row: Delivery, payload: bytes | memoryview | None) -> dict[str, Any] | None:
        topic = topics.parse_wire_topic(row.topic).topic
        return shown_payload(payload, topic, self.context["request"])


class EditBody(Reason):
    """What a message is to be; what is left out stays, and so do the headers."""

    key = serializers.CharField(
        required=False, allow_null=True, allow_blank=True, trim_whitespace=False, max_length=10_000
    )
    payload = serializers.CharField(
        required=False, allow_null=True, allow_blank=True, trim_whitespace=False
    )
    version = serializers.CharField(
        required=False, max_length=64, help_text="Of the message that was looked at."
    )
    retry = serializers.BooleanField(
        default=False, help_text="Whether it runs at the next retry pass."
    )


class Edited(serializers.Serializer[Any]):
    """What an edit did."""

    changed = serializers.ListField(
        child=serializers.CharField(), help_text='Of "key" and "payload" those that changed.'
    )


class IdsAndReceiver(Ids):
    """Which deliveries, and who takes them on."""

    receiver = serializers.CharField(max_length=255, help_text="Name of a registered receiver.")


def _rows(using: str) -> QuerySet[Delivery]:
    return deliveries.with_held_behind(Delivery.objects.using(using))


def _find(text: str, *, using: str) -> Delivery:
    found = _rows(using).filter(pk=number(text)).first()
    if found is None:
        raise NotFound(f"There is no delivery {text}; it may have been purged.")
    return found


class DeliveriesView(Resource):
    """Deliveries."""

    @operation("view_delivery", query=DeliveryQuery, answer=page_of(DeliveryRow))
    def get(self, request: Request, *, query: dict[str, Any]) -> Page:
        """List deliveries, the newest first."""
        rows = _rows(reading(Delivery)).defer(
            "payload", "headers", "traceback", "raw_key", "original_payload", "original_headers",
            "original_raw_key",
        )  # fmt: skip
        rest = Q(**{name: query[name] for name in _REST if name in query})
        rows = rows.filter(**{name: query[name] for name in ("event_id", "key") if name in query})
        state = query.get("state")
        if state in ("open", *Delivery.OPEN):
            rows = rows.filter(state__in=Delivery.OPEN if state == "open" else [state])
        elif state is not None:
            rest &= Q(state=state)
        return page(rows, query, rest)


class DeliveryView(Resource):
    """One delivery."""

    @operation("view_delivery", answer=DeliveryDetail, refusals=(404,))
    def get(self, request: Request, id: str) -> Delivery:
        """Show a delivery with its runs, traceback, headers and payload."""
        return _find(id, using=reading(Delivery))


class RetryView(Resource):
    """The retrying of deliveries."""

    @operation("retry_delivery", body=Ids, answer=Settled, refusals=(404, 409))
    def post(self, request: Request, *, body: dict[str, Any]) -> dict[str, int]:
        """Have open deliveries run again at the next retry pass."""
        ids = body["ids"]
        return settled(deliveries.retry(ids, by=actor(request), using=writing(Delivery)), ids)


class DiscardView(Resource):
    """The discarding of deliveries."""

    @operation("discard_delivery", body=IdsAndReason, answer=Settled, refusals=(404, 409))
    def post(self, request: Request, *, body: dict[str, Any]) -> dict[str, int]:
        """Close open deliveries without running them; those that waited behind them go on."""
        ids = body["ids"]
        done = deliveries.discard(
            ids, reason=body["reason"], by=actor(request), using=writing(Delivery)
        )
        return settled(done, ids)


class RepointView(Resource):
    """The re-pointing of deliveries."""

    @operation("repoint_delivery", body=IdsAndReceiver, answer=Settled, refusals=(404, 409))
    def post(self, request: Request, *, body: dict[str, Any]) -> dict[str, int]:
        """Hand open deliveries of receivers that are no more to a registered one."""
        ids = body["ids"]
        done = deliveries.repoint(
            ids, receiver=body["receiver"], by=actor(request), using=writing(Delivery)
        )
        return settled(done, ids)


class EditView(Resource):
    """The edit of a delivery."""

    @operation("edit_delivery", "view_delivery", body=EditBody, answer=Edited, refusals=(404, 409))
    def post(self, request: Request, id: str, *, body: dict[str, Any]) -> dict[str, Any]:
        """Give an open delivery another key or payload; the first one is kept.

        With ``retry`` it asks for ``retry_delivery`` as well. A payload that the user is shown
        masked cannot be edited: the mask would take the place of what it hides.
        """
        if body["retry"]:
            self.require(request, "retry_delivery")
        delivery = _find(id, using=writing(Delivery))
        content = editing.content_of(delivery)
        if "payload" in body:
            topic = topics.parse_wire_topic(delivery.topic).topic
            shown = shown_payload(delivery.payload, topic, request)
            if shown is not None and shown["is_masked"]:
                raise Conflict("The payload holds private fields or a token that you do not see.")
            content = replace(content, payload=_bytes(body["payload"]))
        if "key" in body:
            content = replace(content, key=_bytes(body["key"]))
        try:
            changed = editing.edit(
                delivery.pk,
                content,
                reason=body["reason"],
                # What is left out stays as it was looked at just now.
                seen=body.get("version") or editing.version_of(delivery),
                retry=body["retry"],
                by=actor(request),
                using=writing(Delivery),
            )
        except DecodingError as error:
            raise invalid("body", f"The new message is no event: {error}") from error
        return {"changed": changed}


class RestoreView(Resource):
    """The end of an edit."""

    @operation("edit_delivery", "view_delivery", body=Reason, answer=Settled, refusals=(404, 409))
    def post(self, request: Request, id: str, *, body: dict[str, Any]) -> dict[str, int]:
        """Give an open delivery the message back with which it was read."""
        using = writing(Delivery)
        pk = _find(id, using=using).pk
        editing.restore(pk, reason=body["reason"], by=actor(request), using=using)
        return {"changed": 1}


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
