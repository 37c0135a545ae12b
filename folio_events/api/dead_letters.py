"""Dead letters by cause, refused messages by topic, and what is done to all of a kind."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request

from folio_events.api.access import actor
from folio_events.api.content import MaskedText
from folio_events.api.paging import Limited, Page, PageQuery, list_of, page, page_of
from folio_events.api.problems import invalid
from folio_events.api.resource import Reason, Resource, Strict, number, operation, reading, writing
from folio_events.models import BulkAction, Delivery, WithheldMessage
from folio_events.operations import bulk_actions, dead_letters
from folio_events.operations.dead_letters import Group, RefusedGroup, Selection

_NOUNS = {BulkAction.Subject.DELIVERY: "delivery", BulkAction.Subject.WITHHELD: "withheldmessage"}


class SelectionQuery(Strict):
    """Which dead letters or refused messages; all of it must hold."""

    receiver = serializers.CharField(required=False, max_length=255)
    topic = serializers.CharField(
        required=False, max_length=249, help_text="Logical, or as on the broker."
    )
    tenant = serializers.CharField(required=False, max_length=255)
    event_type = serializers.CharField(required=False, max_length=100)
    error_class = serializers.CharField(source="error", required=False, max_length=255)
    fingerprint = serializers.CharField(required=False, max_length=16)
    since = serializers.DateTimeField(required=False, help_text="Failed or refused then or later.")
    until = serializers.DateTimeField(required=False, help_text="Failed or refused before.")


class GroupQuery(SelectionQuery, Limited):
    """Which groups of deliveries."""


class GroupRow(serializers.Serializer[Any]):
    """Open deliveries that failed for one cause."""

    fingerprint = serializers.CharField()
    receiver = serializers.CharField()
    topic = serializers.CharField(help_text="On the broker; one of them.")
    topics = serializers.IntegerField(help_text="How many topics.")
    tenant = serializers.CharField(allow_blank=True, help_text="One of them.")
    tenants = serializers.IntegerField(help_text="How many tenants.")
    dead = serializers.IntegerField()
    retrying = serializers.IntegerField()
    behind = serializers.IntegerField(help_text="How many wait behind them.")
    first_at = serializers.DateTimeField()
    last_at = serializers.DateTimeField(allow_null=True)
    sample = serializers.IntegerField(help_text="Id of the newest delivery.")
    error_class = serializers.CharField(allow_blank=True)
    error = MaskedText(allow_blank=True)


class RefusedGroupRow(serializers.Serializer[Any]):
    """Messages of one topic that the broker refused."""

    topic = serializers.CharField(help_text="Logical topic.")
    refused = serializers.IntegerField()
    waiting = serializers.IntegerField(help_text="How many wait behind them, or were released.")
    tenants = serializers.IntegerField(help_text="How many tenants.")
    first_at = serializers.DateTimeField()
    last_at = serializers.DateTimeField()
    error = MaskedText(allow_blank=True)


class BulkActionRow(serializers.ModelSerializer[BulkAction]):
    """What is done in the background to all rows that match."""

    class Meta:
        model = BulkAction
        fields: tuple[str, ...] = (
            "id", "subject", "action", "criteria", "state", "total", "done", "rate", "reason",
            "created_by", "created_at", "updated_at", "finished_at",
        )  # fmt: skip


class BulkActionDetail(BulkActionRow):
    """The same with what became of the deliveries."""

    outcome = serializers.SerializerMethodField(
        help_text="State of the deliveries to their number."
    )

    class Meta(BulkActionRow.Meta):
        fields = (*BulkActionRow.Meta.fields, "outcome")

    def get_outcome(self, row: BulkAction) -> dict[str, int]:
        return bulk_actions.outcome(row)


class BulkActionBody(Strict):
    """What is to be done to which rows."""

    subject = serializers.ChoiceField(
        BulkAction.Subject.choices, default=BulkAction.Subject.DELIVERY
    )
    action = serializers.ChoiceField(BulkAction.Action.choices)
    selection = SelectionQuery(help_text="Which rows; empty: all.")
    rate = serializers.FloatField(
        required=False,
        allow_null=True,
        min_value=0.01,
        max_value=1e6,
        help_text="Most rows a second.",
    )
    reason = serializers.CharField(max_length=1000, help_text="Kept with it and in Django's log.")


class DeadLetterGroupsView(Resource):
    """Dead letters by cause."""

    @operation("view_delivery", query=GroupQuery, answer=list_of(GroupRow))
    def get(self, request: Request, *, query: dict[str, Any]) -> list[Group]:
        """Group open deliveries by the fingerprint of their failure, the most dead first."""
        limit = query.pop("limit")
        return dead_letters.groups(Selection(**query), using=reading(Delivery), limit=limit)


class RefusedGroupsView(Resource):
    """Refused messages by topic."""

    @operation("view_withheldmessage", query=Limited, answer=list_of(RefusedGroupRow))
    def get(self, request: Request, *, query: dict[str, Any]) -> list[RefusedGroup]:
        """Group refused messages by topic, the most frequent first."""
        return dead_letters.refused_groups(using=reading(WithheldMessage), limit=query["limit"])


class BulkActionsView(Resource):
    """Bulk actions."""

    @operation("view_bulkaction", query=PageQuery, answer=page_of(BulkActionRow))
    def get(self, request: Request, *, query: dict[str, Any]) -> Page:
        """List bulk actions, the newest first."""
        return page(BulkAction.objects.using(reading(BulkAction)).all(), query)

    @operation(
        "run_bulkaction", body=BulkActionBody, answer=BulkActionRow, status=202, refusals=(409,)
    )
    def post(self, request: Request, *, body: dict[str, Any]) -> BulkAction:
        """Have all dead letters or refused messages that match settled in the background.

        Asks for the permissions to view the rows and to do that as well, such as
        ``view_delivery`` and ``retry_delivery``.
        """
        noun = _NOUNS[body["subject"]]
        self.require(request, f"view_{noun}", f"{body['action']}_{noun}")
        try:
            return bulk_actions.start(
                BulkAction.Action(body["action"]),
                Selection(**body["selection"]),
                reason=body["reason"],
                subject=BulkAction.Subject(body["subject"]),
                rate=body.get("rate"),
                by=actor(request),
                using=writing(Delivery),
            )
        except ValueError as error:
            raise invalid("body", str(error)) from error


class BulkActionView(Resource):
    """One bulk action."""

    @operation("view_bulkaction", answer=BulkActionDetail, refusals=(404,))
    def get(self, request: Request, id: str) -> BulkAction:
        """Show how far a bulk action is, and what became of the deliveries."""
        found = BulkAction.objects.using(reading(BulkAction)).filter(pk=number(id)).first()
        if found is None:
            raise NotFound(f"There is no bulk action {id}.")
        return found


class CancelBulkActionView(Resource):
    """The end of a bulk action."""

    @operation("run_bulkaction", body=Reason, answer=BulkActionRow, refusals=(404, 409))
    def post(self, request: Request, id: str, *, body: dict[str, Any]) -> BulkAction:
        """Settle no more; what was settled stays so."""
        return bulk_actions.cancel(
            number(id), reason=body["reason"], by=actor(request), using=writing(BulkAction)
        )
