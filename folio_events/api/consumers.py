"""Consumer groups: how far they are, and the reset of their offsets."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request

from folio_events.api.access import actor
from folio_events.api.problems import invalid
from folio_events.api.resource import LARGEST, Resource, Strict, operation, reading
from folio_events.models import ConsumerOffset
from folio_events.monitoring.broker_report import broker_report
from folio_events.operations.criteria import names_topic
from folio_events.operations.offsets import Target, reset_offsets
from folio_events.receivers import registry


class PositionQuery(Strict):
    """Which positions."""

    group = serializers.CharField(required=False, max_length=255)
    topic = serializers.CharField(
        required=False,
        max_length=249,
        help_text="Logical, with * for any characters; or as on the broker.",
    )
    start = serializers.IntegerField(
        default=0, min_value=0, max_value=10**6, help_text="How many to leave out."
    )
    limit = serializers.IntegerField(default=200, min_value=1, max_value=1000)


class PositionRow(serializers.Serializer[Any]):
    """How far a group is in a partition."""

    group = serializers.CharField()
    topic = serializers.CharField(help_text="On the broker.")
    partition = serializers.IntegerField()
    offset = serializers.IntegerField(
        allow_null=True, help_text="Next one that it handles; null: it has not begun."
    )
    lag = serializers.IntegerField(
        allow_null=True, help_text="Records that it has not handled; null: unknown."
    )
    moved_at = serializers.DateTimeField(allow_null=True, help_text="When it last handled a batch.")


class Positions(serializers.Serializer[Any]):
    """Positions by group, topic and partition, as the broker said a few seconds ago."""

    results = PositionRow(many=True)
    next = serializers.IntegerField(
        allow_null=True, help_text='What to give as "start"; null: there is no more.'
    )
    asked_at = serializers.DateTimeField(
        allow_null=True, help_text="When the broker was asked; null: it has not answered."
    )
    broker_error = serializers.CharField(
        allow_blank=True, help_text="Why lags are unknown; empty: they are not."
    )


class ResetBody(Strict):
    """Which offsets, and where to: one of end, time and offset."""

    group = serializers.CharField(max_length=255)
    end = serializers.ChoiceField(["earliest", "latest"], required=False)
    time = serializers.DateTimeField(
        required=False, help_text="To the first message published then or later."
    )
    offset = serializers.IntegerField(required=False, min_value=0, max_value=LARGEST)
    topic = serializers.CharField(
        required=False,
        max_length=249,
        help_text="Logical, with * for any characters; or as on the broker.",
    )
    partitions = serializers.ListField(
        child=serializers.IntegerField(min_value=0, max_value=2**31 - 1),
        required=False,
        min_length=1,
        max_length=1000,
    )
    again = serializers.BooleanField(
        default=False, help_text="Whether what has taken effect runs again, too."
    )
    reason = serializers.CharField(max_length=1000, help_text="Kept in Django's log.")
    dry_run = serializers.BooleanField(default=False, help_text="Only say what would move.")


class MoveRow(serializers.Serializer[Any]):
    """One partition of a reset, for the receivers of one database."""

    topic = serializers.CharField(source="place.topic", help_text="On the broker.")
    partition = serializers.IntegerField(source="place.partition")
    database = serializers.CharField(
        allow_blank=True, help_text="Of the receivers; empty: those without a transaction."
    )
    old = serializers.IntegerField(allow_null=True, help_text="Null: the group has not begun.")
    new = serializers.IntegerField()
    between = serializers.IntegerField(
        help_text="Offsets between the two: above 0 read again, below 0 passed over."
    )


class Moves(serializers.Serializer[Any]):
    """What moved, or would."""

    moves = MoveRow(many=True)


class ConsumersView(Resource):
    """Consumer groups."""

    @operation("view_consumeroffset", query=PositionQuery, answer=Positions)
    def get(self, request: Request, *, query: dict[str, Any]) -> dict[str, Any]:
        """List how far each group is in each partition, and what it has not handled."""
        found = broker_report(using=reading(ConsumerOffset))
        wanted = [
            place
            for place in found.positions
            if query.get("group") in (None, place.group)
            and names_topic(query.get("topic"), place.topic)
        ]
        start, end = query["start"], query["start"] + query["limit"]
        return {
            "results": wanted[start:end],
            "next": end if end < len(wanted) else None,
            "asked_at": found.at,
            "broker_error": found.error,
        }


class ResetView(Resource):
    """The reset of offsets."""

    @operation("reset_offsets", body=ResetBody, answer=Moves, refusals=(404, 409, 503))
    def post(self, request: Request, *, body: dict[str, Any]) -> dict[str, Any]:
        """Move the offsets of a group that does not run, in its databases and on the broker."""
        if not registry.in_group(body["group"]):
            known = ", ".join(registry.groups()) or "none"
            raise NotFound(f"No receiver is in this group. Groups with receivers: {known}.")
        try:
            moves = reset_offsets(
                body["group"],
                Target(**{name: body[name] for name in ("end", "time", "offset") if name in body}),
                topic=body.get("topic"),
                partitions=body.get("partitions"),
                again=body["again"],
                reason=body["reason"],
                dry_run=body["dry_run"],
                by=actor(request),
            )
        except ValueError as error:
            raise invalid("body", str(error)) from error
        return {"moves": moves}
