"""Events: the search, and everything that is known of one."""

from __future__ import annotations

import uuid
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request

from folio_events.api.content import (
    Header,
    MaskedText,
    Payload,
    Shown,
    shown_headers,
    shown_payload,
)
from folio_events.api.resource import Resource, Strict, operation, reading
from folio_events.models import Attempt, Delivery, OutboxMessage, WithheldMessage
from folio_events.monitoring.history import History, Result, Run, history
from folio_events.monitoring.search import By, Hits, search


class EventQuery(Strict):
    """What to look for: one of these."""

    event_id = serializers.CharField(required=False, max_length=50)
    key = serializers.CharField(required=False, max_length=5000)
    tenant = serializers.CharField(
        required=False, max_length=255, help_text="Searched in pieces; see is_partial."
    )
    request_id = serializers.CharField(
        required=False, max_length=255, help_text="In X-Okapi-Request-Id; searched in pieces."
    )
    trace_id = serializers.CharField(
        required=False, max_length=255, help_text="In traceparent; searched in pieces."
    )
    before = serializers.RegexField(
        r"\A\d{1,18}\.\d{1,18}\Z", required=False, help_text='"next" of the page before.'
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        terms = [name for name in attrs if name != "before"]
        if len(terms) != 1:
            raise serializers.ValidationError(
                "Give one of event_id, key, tenant, request_id and trace_id."
            )
        return attrs


class EventHit(serializers.Serializer[Any]):
    """An event that was found."""

    event_id = serializers.UUIDField()
    topic = serializers.CharField(help_text="Logical topic.")
    event_type = serializers.CharField()
    tenant = serializers.CharField(help_text="Empty without tenancy.")
    key = serializers.CharField(allow_null=True)
    at = serializers.DateTimeField(
        help_text="When it was recorded, or published where somebody else recorded it."
    )
    is_own = serializers.BooleanField(help_text="Whether the outbox has it; else a delivery.")


class EventHits(serializers.Serializer[Any]):
    """A page of what was found, the newest first."""

    results = EventHit(source="hits", many=True)
    is_partial = serializers.BooleanField(
        help_text="Whether only a piece of the tables was looked at."
    )
    back_to = serializers.DateTimeField(
        allow_null=True, help_text="When the oldest row was recorded that was looked at."
    )
    next = serializers.CharField(
        allow_null=True, help_text='What to give as "before"; null: there is no more.'
    )


class Place(serializers.Serializer[Any]):
    """Where a message stands on the broker."""

    topic = serializers.CharField(help_text="On the broker.")
    partition = serializers.IntegerField()
    offset = serializers.IntegerField()
    at = serializers.DateTimeField()


class EventWithheld(serializers.Serializer[Any]):
    """That the broker refused the event, or one before it."""

    state = serializers.ChoiceField(WithheldMessage.State.choices)
    error = MaskedText(allow_blank=True)
    withheld_at = serializers.DateTimeField()
    resolved_at = serializers.DateTimeField(allow_null=True)
    reason = serializers.CharField(allow_blank=True)


class EventWritten(serializers.Serializer[Any]):
    """The event's row in the outbox."""

    id = serializers.IntegerField()
    occurred_at = serializers.DateTimeField()
    published = Place(allow_null=True)
    withheld = EventWithheld(allow_null=True)


class AttemptAnswer(serializers.Serializer[Any]):
    """One run of a delivery."""

    number = serializers.IntegerField(help_text="Counted from 1.")
    receiver = serializers.CharField()
    started_at = serializers.DateTimeField()
    duration = serializers.FloatField(
        allow_null=True, help_text="Seconds; null: nobody heard of its end."
    )
    outcome = serializers.ChoiceField(Attempt.Outcome.choices)
    error_class = serializers.CharField(allow_blank=True)
    error = MaskedText(allow_blank=True)
    traceback = MaskedText(allow_blank=True)


class EventDelivery(serializers.Serializer[Any]):
    """A delivery of the event."""

    id = serializers.IntegerField()
    state = serializers.ChoiceField(Delivery.State.choices)
    attempts = serializers.IntegerField(help_text="Runs so far.")
    is_running = serializers.BooleanField()
    created_at = serializers.DateTimeField()
    last_attempt_at = serializers.DateTimeField(allow_null=True)
    next_attempt_at = serializers.DateTimeField(allow_null=True)
    resolved_at = serializers.DateTimeField(allow_null=True)
    reason = serializers.CharField(allow_blank=True)
    held_behind = serializers.IntegerField(
        allow_null=True, help_text="Id of the delivery that it waits for."
    )
    holds = serializers.IntegerField(help_text="How many wait for it, counted up to 1000.")
    runs = AttemptAnswer(many=True)


class EventHandling(serializers.Serializer[Any]):
    """What one receiver made of the event, once or in a replay."""

    receiver = serializers.CharField()
    group = serializers.CharField(allow_blank=True)
    is_registered = serializers.BooleanField()
    replay = serializers.IntegerField(help_text="Number of the replay, or 0.")
    result = serializers.ChoiceField([result.value for result in Result])
    handled_at = serializers.DateTimeField(allow_null=True)
    delivery = EventDelivery(allow_null=True)


class EventStep(serializers.Serializer[Any]):
    """Something that happened to the event."""

    at = serializers.DateTimeField()
    what = serializers.CharField(help_text='Such as "written", "published", "failed".')
    receiver = serializers.CharField(allow_blank=True)
    attempt = serializers.SerializerMethodField(help_text="Number of the run, if it was one.")

    def get_attempt(self, step: Any) -> int | None:
        run: Run | None = step.run
        return None if run is None else run.number


class EventHistory(serializers.Serializer[Any]):
    """Everything that is known of one event."""

    event_id = serializers.UUIDField()
    topic = serializers.CharField(allow_blank=True, help_text="Logical topic.")
    event_type = serializers.CharField(allow_blank=True)
    tenant = serializers.CharField(allow_blank=True)
    key = serializers.CharField(allow_null=True)
    source = MaskedText(  # type: ignore[assignment]  # a field of the answer
        allow_blank=True, help_text="Who recorded it."
    )
    cause_id = MaskedText(allow_blank=True, help_text="Event whose receiver caused it.")
    request_id = MaskedText(allow_blank=True)
    trace_id = MaskedText(allow_blank=True)
    undecodable = MaskedText(
        allow_blank=True, help_text="Why the bytes are no event; empty: they are."
    )
    headers = Shown(Header(many=True))
    payload = Shown(Payload(allow_null=True))
    written = EventWritten(allow_null=True)
    places = Place(many=True)
    handlings = EventHandling(many=True)
    timeline = EventStep(many=True)

    def get_headers(self, found: History) -> list[dict[str, Any]]:
        return shown_headers(found.headers)

    def get_payload(self, found: History) -> dict[str, Any] | None:
        request = self.context["request"]
        return shown_payload(found.payload, found.topic, request)


class EventsView(Resource):
    """Events."""

    @operation("view_outboxmessage", "view_delivery", query=EventQuery, answer=EventHits)
    def get(self, request: Request, *, query: dict[str, Any]) -> Hits:
        """Search for events by id, key, tenant, request id or trace id."""
        before = query.pop("before", None)
        ((name, term),) = query.items()
        return search(term, By(name), before=before, using=reading(OutboxMessage))


class EventView(Resource):
    """One event."""

    @operation("view_outboxmessage", "view_delivery", answer=EventHistory, refusals=(404,))
    def get(self, request: Request, event_id: str) -> History:
        """Tell everything that is known of an event."""
        try:
            wanted = uuid.UUID(event_id)
        except ValueError as error:
            raise NotFound(f"{event_id[:50]!r} is no event id.") from error
        found = history(wanted, using=reading(OutboxMessage))
        if found is None:
            raise NotFound(f"Neither outbox, deliveries nor inbox know event {wanted}.")
        return found
