"""Topics: as declared, as they are on the broker, what they cost, and the catalogue of events."""

from __future__ import annotations

import math
from typing import Any

from rest_framework import serializers
from rest_framework.request import Request

from folio_events.api.access import OVERVIEW
from folio_events.api.paging import list_of
from folio_events.api.resource import Resource, Strict, operation, reading
from folio_events.brokers import get_broker
from folio_events.models import OutboxMessage
from folio_events.monitoring.catalog import Catalogue, catalogue
from folio_events.operations.old_topics import OldTopic, old_topics
from folio_events.operations.topic_report import topic_report
from folio_events.provisioning import (
    Comparison,
    compare,
    known_tenants,
    named_topics,
    wanted_topics,
)
from folio_events.topics.declared import Topic, topic_options


class Seconds(serializers.FloatField):
    """A span of time; -1: for ever, which JSON has no number for."""

    def to_representation(self, value: Any) -> Any:
        return -1.0 if math.isinf(value) else float(value)


class TopicRow(serializers.Serializer[Any]):
    """A logical topic as it is declared; null leaves it to the settings."""

    name = serializers.CharField()
    namespace = serializers.CharField(allow_null=True)
    partitions = serializers.IntegerField(allow_null=True)
    replication = serializers.IntegerField(allow_null=True)
    retention = Seconds(allow_null=True, help_text="Seconds; -1: for ever.")
    cleanup_policy = serializers.CharField(allow_null=True)
    delete_retention = Seconds(allow_null=True, help_text="Seconds.")
    max_message_bytes = serializers.IntegerField(allow_null=True)
    environment_only = serializers.BooleanField(help_text="One topic for all tenants.")


class TenantsQuery(Strict):
    """For which tenants, besides those that have topics."""

    tenants = serializers.CharField(
        required=False, max_length=5000, help_text="Names, separated by commas."
    )

    def validate_tenants(self, value: str) -> list[str]:
        return [name for part in value.split(",") if (name := part.strip())]


class MissingTopic(serializers.Serializer[Any]):
    """A topic that the broker does not have."""

    name = serializers.CharField(help_text="On the broker.")
    partitions = serializers.IntegerField()
    replication = serializers.IntegerField(help_text="-1 leaves it to the broker.")


class DriftRow(serializers.Serializer[Any]):
    """A property of a topic that is not as declared."""

    topic = serializers.CharField(help_text="On the broker.")
    what = serializers.CharField(help_text="partitions, replication, or Kafka's name of a setting.")
    declared = serializers.CharField()
    found = serializers.CharField()


class TopicDrift(serializers.Serializer[Any]):
    """What is declared against what is there."""

    missing = MissingTopic(many=True)
    drift = DriftRow(many=True)


class TopicSize(serializers.Serializer[Any]):
    """A number of topics, and what they take."""

    topics = serializers.IntegerField()
    partitions = serializers.IntegerField()
    replicas = serializers.IntegerField()
    files = serializers.IntegerField(help_text="File handles at least.")


class TopicSizes(serializers.Serializer[Any]):
    """Sizes of what is, and of what would be."""

    now = TopicSize()
    by_tenant = serializers.DictField(child=TopicSize())
    by_topic = serializers.DictField(child=TopicSize())
    per_tenant = TopicSize(help_text="If each tenant had topics of its own.")
    collection = TopicSize(help_text="If all tenants shared theirs.")
    tenants = serializers.ListField(child=serializers.CharField())


class OldTopicRow(serializers.Serializer[Any]):
    """A topic that this project no longer publishes to."""

    name = serializers.CharField(help_text="On the broker.")
    partitions = serializers.IntegerField()
    newest = serializers.DateTimeField(allow_null=True)
    unread = serializers.DictField(
        child=serializers.IntegerField(), help_text="Group to records that it has not read."
    )
    idle = serializers.BooleanField()
    drained = serializers.BooleanField(help_text="Nothing comes, and every group has read it.")


class SenderRow(serializers.Serializer[Any]):
    """A model whose writes are events."""

    model = serializers.CharField()
    owner = serializers.CharField(allow_blank=True)
    capture = serializers.CharField()
    dialect = serializers.CharField()


class SubscriberRow(serializers.Serializer[Any]):
    """A receiver."""

    name = serializers.CharField()
    group = serializers.CharField(allow_blank=True)
    pattern = serializers.CharField()
    types = serializers.ListField(
        child=serializers.CharField(), allow_null=True, help_text="Null: all."
    )
    mode = serializers.CharField()
    order = serializers.CharField()


class SeenTypeRow(serializers.Serializer[Any]):
    """An event type that was seen in a sample of the outbox."""

    type = serializers.CharField()
    first_at = serializers.DateTimeField()
    last_at = serializers.DateTimeField()
    messages = serializers.IntegerField()


class CatalogueRow(serializers.Serializer[Any]):
    """A topic, who sends to it and who receives from it."""

    name = serializers.CharField()
    is_declared = serializers.BooleanField()
    owners = serializers.ListField(child=serializers.CharField())
    gap = serializers.CharField(
        allow_null=True, help_text='"nobody sends", "nobody receives" or null.'
    )
    on_broker = serializers.BooleanField(allow_null=True, help_text="Null: nobody looked.")
    senders = SenderRow(many=True)
    subscribers = SubscriberRow(many=True)
    groups = serializers.ListField(child=serializers.CharField())
    seen = SeenTypeRow(many=True)


class CatalogueAnswer(serializers.Serializer[Any]):
    """All topics by name."""

    topics = CatalogueRow(many=True)
    sampled = serializers.IntegerField(help_text="How many outbox rows were looked at.")


class CatalogueQuery(Strict):
    """How far to look."""

    ask_broker = serializers.BooleanField(
        default=False, help_text="Whether the broker is asked for its topics and groups."
    )


class TopicsView(Resource):
    """Topics."""

    @operation(*OVERVIEW, answer=list_of(TopicRow))
    def get(self, request: Request) -> list[Topic]:
        """List the logical topics that models, declarations and receivers name."""
        return [topic_options(name) for name in sorted(named_topics())]


class DriftView(Resource):
    """Topics against their declarations."""

    @operation(*OVERVIEW, query=TenantsQuery, answer=TopicDrift, refusals=(503,))
    def get(self, request: Request, *, query: dict[str, Any]) -> Comparison:
        """Say which topics are missing on the broker, and which are not as declared."""
        broker = get_broker()
        tenants = query.get("tenants") or sorted(known_tenants(broker))
        return compare(wanted_topics(tenants), broker)


class TopicReportView(Resource):
    """What topics cost."""

    @operation(*OVERVIEW, query=TenantsQuery, answer=TopicSizes, refusals=(503,))
    def get(self, request: Request, *, query: dict[str, Any]) -> dict[str, Any]:
        """Count topics, partitions and replicas as they are and in other topologies."""
        return topic_report(tenants=query.get("tenants", ())).as_dict()


class OldTopicsView(Resource):
    """Topics that a change of topology left behind."""

    @operation(*OVERVIEW, answer=list_of(OldTopicRow), refusals=(503,))
    def get(self, request: Request) -> list[OldTopic]:
        """List the topics that this project no longer publishes to, and who has yet to read."""
        return old_topics()


class CatalogueView(Resource):
    """The catalogue of events."""

    @operation(*OVERVIEW, query=CatalogueQuery, answer=CatalogueAnswer, refusals=(503,))
    def get(self, request: Request, *, query: dict[str, Any]) -> Catalogue:
        """Say which topics there are, who sends to them and who receives."""
        broker = get_broker() if query["ask_broker"] else None
        return catalogue(broker=broker, using=reading(OutboxMessage))
