"""How everything fares, and which processes are at work."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request

from folio_events.api.access import OVERVIEW
from folio_events.api.content import MaskedText
from folio_events.api.paging import list_of
from folio_events.api.resource import Resource, Strict, operation, reading
from folio_events.models import OutboxMessage, Process
from folio_events.monitoring.health import Health, health
from folio_events.monitoring.overview import Level, overview
from folio_events.processes import is_vanished

#: Most processes that are listed.
MOST = 1000


class StatusQuery(Strict):
    """How far to look."""

    ask_broker = serializers.BooleanField(
        default=False, help_text="Whether the broker is asked, which may take seconds."
    )


class HealthAnswer(serializers.Serializer[Any]):
    """A verdict and what it rests on."""

    state = serializers.ChoiceField([level.name.lower() for level in Level])
    reasons = serializers.ListField(child=MaskedText(), help_text="The worst first.")


class OpenDeliveries(serializers.Serializer[Any]):
    """How many deliveries of a receiver are open in a state."""

    receiver = serializers.CharField()
    state = serializers.CharField()
    count = serializers.IntegerField()


class Session(serializers.Serializer[Any]):
    """A session of the database, or a prepared transaction."""

    pid = serializers.IntegerField(allow_null=True)
    name = serializers.CharField(allow_blank=True)
    user = serializers.CharField(allow_blank=True)
    age = serializers.FloatField(help_text="Seconds since its transaction began.")
    state = serializers.CharField(allow_blank=True)
    waits_for = serializers.CharField(allow_blank=True)
    statement = serializers.CharField(allow_blank=True, help_text="Its opening words.")


class Relay(serializers.Serializer[Any]):
    """How far the relay is, and whom it waits for."""

    position = serializers.IntegerField(allow_null=True, help_text="Highest outbox id it read.")
    last_id = serializers.IntegerField(help_text="Highest outbox id there is.")
    gaps = serializers.IntegerField(help_text="Ranges of ids that it still asks for.")
    holder = Session(allow_null=True, help_text="Who holds the oldest message back.")


class OverdueRow(serializers.Serializer[Any]):
    """An event that is late."""

    stage = serializers.CharField()
    receiver = serializers.CharField(allow_blank=True)
    topic = serializers.CharField()
    type = serializers.CharField(allow_blank=True)
    tenant = serializers.CharField(allow_blank=True)
    key = serializers.CharField(allow_null=True)
    since = serializers.DateTimeField()
    error = MaskedText(allow_blank=True)


class Stopped(serializers.Serializer[Any]):
    """A partition in which a receiver waits for a delivery."""

    group = serializers.CharField()
    receiver = serializers.CharField()
    topic = serializers.CharField(help_text="On the broker.")
    partition = serializers.IntegerField()
    delivery = serializers.IntegerField(help_text="The one that it waits for.")
    state = serializers.CharField(help_text="Of that delivery.")
    since = serializers.DateTimeField()
    error = serializers.CharField(allow_blank=True, help_text="Class of its last error.")


class StatusAnswer(serializers.Serializer[Any]):
    """How the delivery of one database fares."""

    waiting = serializers.IntegerField(
        help_text="Outbox messages to be published; from 10,000 on about how many."
    )
    oldest_age = serializers.FloatField(help_text="Seconds that the oldest of them waits.")
    withheld = serializers.DictField(child=serializers.IntegerField(), help_text="By state.")
    deliveries = OpenDeliveries(many=True)
    orphans = serializers.DictField(child=serializers.IntegerField(), help_text="By fault.")
    open_breakers = serializers.ListField(child=serializers.CharField())
    overdue = OverdueRow(many=True)
    stopped = Stopped(many=True)
    relay = Relay()
    broker_error = serializers.CharField(allow_blank=True)


class ProcessRow(serializers.ModelSerializer[Process]):
    """A relay or consumer at work."""

    is_vanished = serializers.SerializerMethodField(
        help_text="Whether it has missed so many heartbeats that it must have ended."
    )

    class Meta:
        model = Process
        fields = (
            "id", "kind", "name", "host", "pid", "state", "detail", "partitions", "records",
            "busy_since", "interval", "started_at", "heartbeat_at", "is_vanished",
        )  # fmt: skip

    def get_is_vanished(self, row: Process) -> bool:
        return is_vanished(row, timezone.now())


class StatusView(Resource):
    """The status."""

    @operation(*OVERVIEW, query=StatusQuery, answer=StatusAnswer)
    def get(self, request: Request, *, query: dict[str, Any]) -> dict[str, Any]:
        """Say what waits, what failed, who is left alone, and what of it is wrong."""
        seen = overview(ask_broker=query["ask_broker"], using=reading(OutboxMessage))
        now = seen.status
        return {
            "waiting": now.waiting,
            "oldest_age": now.oldest_age,
            "withheld": now.withheld,
            "deliveries": [
                {"receiver": receiver, "state": state, "count": count}
                for (receiver, state), count in sorted(now.deliveries.items())
            ],
            "orphans": now.orphans,
            "open_breakers": sorted(now.open_breakers),
            "overdue": seen.overdue,
            "stopped": seen.stopped,
            "relay": seen.relay,
            "broker_error": seen.broker_error,
        }


class HealthView(Resource):
    """The health."""

    @operation(*OVERVIEW, query=StatusQuery, answer=HealthAnswer)
    def get(self, request: Request, *, query: dict[str, Any]) -> Health:
        """Judge the delivery: ok, degraded or failing, and why; probes have URLs of their own."""
        return health(ask_broker=query["ask_broker"], using=reading(OutboxMessage))


class ProcessesView(Resource):
    """Processes."""

    @operation("view_process", answer=list_of(ProcessRow))
    def get(self, request: Request) -> list[Process]:
        """List relays and consumers by their last heartbeat, also those that vanished."""
        rows = Process.objects.using(reading(Process))
        return list(rows.order_by("-heartbeat_at")[:MOST])
