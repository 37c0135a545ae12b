"""The tables. Rows are written by one module each; see the docstring of each model."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

_WIRE_TOPIC = 249


class OutboxMessage(models.Model):
    """A message to be published; append-only, written by ``outbox``.

    A row has no state: the relay's cursor says what was published.
    """

    id = models.BigAutoField(primary_key=True)
    event_id = models.UUIDField(db_index=True)
    topic = models.CharField(max_length=_WIRE_TOPIC, help_text=_("Logical topic."))
    event_type = models.CharField(max_length=100)
    tenant = models.CharField(max_length=255, default="", blank=True)
    key = models.TextField(null=True, blank=True)  # noqa: DJ001 - null: no order
    payload = models.BinaryField(help_text=_("The bytes that are sent."))
    repeating_headers = models.BinaryField(
        help_text=_("Headers that many rows share, as JSON pairs.")
    )
    own_headers = models.BinaryField(help_text=_("Headers of this row alone, as JSON pairs."))
    occurred_at = models.DateTimeField()

    class Meta:
        verbose_name = _("outbox message")
        default_permissions = ("view",)
        # Not db_index: on PostgreSQL that makes a second index for LIKE.
        indexes = (models.Index(fields=["key"], name="folio_events_outbox_key"),)

    def __str__(self) -> str:
        return f"{self.topic} {self.event_type} {self.event_id}"


class Publication(models.Model):
    """Where a published outbox message stands on the broker; written by ``relay``."""

    outbox_message = models.OneToOneField(
        OutboxMessage, models.DO_NOTHING, primary_key=True, db_constraint=False
    )
    topic = models.CharField(max_length=_WIRE_TOPIC, help_text=_("Topic on the broker."))
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    published_at = models.DateTimeField()

    class Meta:
        verbose_name = _("publication")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class WithheldMessage(models.Model):
    """An outbox row that the broker refused for good, or a follower of its key.

    Written by ``withheld``.
    """

    class State(models.TextChoices):
        #: Refused; waits for a person.
        REFUSED = "refused", _("refused")
        #: Follows a refused row of its key, or was released: published in its turn.
        WAITING = "waiting", _("waiting")
        PUBLISHED = "published", _("published")
        DISCARDED = "discarded", _("discarded")

    OPEN = (State.REFUSED, State.WAITING)

    outbox_message = models.OneToOneField(
        OutboxMessage, models.DO_NOTHING, primary_key=True, db_constraint=False
    )
    topic = models.CharField(max_length=_WIRE_TOPIC, help_text=_("Logical topic."))
    tenant = models.CharField(max_length=255, default="", blank=True)
    key = models.TextField(null=True, blank=True)  # noqa: DJ001 - null: no order
    state = models.CharField(max_length=10, choices=State.choices)
    error = models.TextField(default="", blank=True, help_text=_("Why the broker refused it."))
    withheld_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True, blank=True)
    reason = models.TextField(default="", blank=True, help_text=_("Why it was discarded."))

    class Meta:
        verbose_name = _("withheld message")
        default_permissions = ("view",)
        permissions = (
            ("release_withheldmessage", "Can release withheld messages"),
            ("discard_withheldmessage", "Can discard withheld messages"),
        )
        indexes = (
            models.Index(
                fields=["outbox_message"],
                name="folio_events_withheld_open",
                condition=models.Q(state__in=["refused", "waiting"]),
            ),
        )

    def __str__(self) -> str:
        return f"{self.topic} {self.outbox_message_id}"


class RelayCursor(models.Model):
    """How far the relay of this database is; one row, written by ``cursor``."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    position = models.BigIntegerField(help_text=_("Highest outbox id that was read."))
    version = models.BigIntegerField(help_text=_("Another with each write."))
    updated_at = models.DateTimeField()

    class Meta:
        verbose_name = _("relay cursor")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"at {self.position}"


class RelayGap(models.Model):
    """Outbox ids up to the cursor that it still has to ask for; written by ``cursor``."""

    first_id = models.BigIntegerField(primary_key=True)
    last_id = models.BigIntegerField()

    class Meta:
        verbose_name = _("relay gap")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.first_id}-{self.last_id}"


class ConsumerOffset(models.Model):
    """The next offset of a group in a partition; written by ``inbox``.

    Written in the receivers' transaction, so it says exactly what took effect there.
    """

    group = models.CharField(max_length=255)
    topic = models.CharField(max_length=_WIRE_TOPIC, help_text=_("Topic on the broker."))
    partition = models.IntegerField()
    database = models.CharField(
        max_length=100,
        blank=True,
        help_text=_("Alias of the receivers' database; empty for those without one."),
    )
    offset = models.BigIntegerField(help_text=_("Next offset to read."))
    topic_id = models.CharField(
        max_length=64, default="", blank=True, help_text=_("Tells a topic from one created anew.")
    )
    started_offset = models.BigIntegerField(
        null=True, help_text=_("Where a member began that has not told of an end.")
    )
    starts = models.IntegerField(default=0, help_text=_("How often it was begun there."))
    updated_at = models.DateTimeField()

    class Meta:
        verbose_name = _("consumer offset")
        default_permissions = ("view",)
        constraints = (
            models.UniqueConstraint(
                fields=["group", "topic", "partition", "database"], name="folio_events_offset_once"
            ),
        )

    def __str__(self) -> str:
        return f"{self.group} {self.topic}/{self.partition} at {self.offset}"


class InboxEntry(models.Model):
    """An event that took effect in a receiver; written by ``inbox``."""

    pk = models.CompositePrimaryKey("receiver", "event_id", "replay")
    receiver = models.CharField(max_length=255)
    event_id = models.UUIDField()
    replay = models.IntegerField(default=0, help_text=_("0, or the number of the replay."))
    handled_at = models.DateTimeField()

    class Meta:
        verbose_name = _("inbox entry")
        default_permissions = ("view",)
        indexes = (models.Index(fields=["handled_at"], name="folio_events_inbox_age"),)

    def __str__(self) -> str:
        return f"{self.receiver} {self.event_id}"


class Delivery(models.Model):
    """An (event, receiver) pair that did not succeed at once; written by ``deliveries``."""

    class State(models.TextChoices):
        RETRYING = "retrying", _("retrying")
        DEAD = "dead", _("dead")
        RESOLVED = "resolved", _("resolved")
        DISCARDED = "discarded", _("discarded")

    #: States in which later events of the key wait behind the delivery.
    OPEN = (State.RETRYING, State.DEAD)

    receiver = models.CharField(max_length=255)
    group = models.CharField(max_length=255)
    event_id = models.UUIDField(db_index=True)
    replay = models.IntegerField(default=0, help_text=_("0, or the number of the replay."))
    state = models.CharField(max_length=10, choices=State.choices)
    order = models.CharField(max_length=10, help_text=_("What later events wait within."))
    attempts = models.IntegerField(default=0, help_text=_("Runs so far."))
    unfinished = models.BooleanField(
        default=False, help_text=_("The last run has been begun and has not told of an end.")
    )
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    topic = models.CharField(max_length=_WIRE_TOPIC, help_text=_("Topic on the broker."))
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    tenant = models.CharField(max_length=255, default="", blank=True)
    event_type = models.CharField(max_length=100, default="", blank=True)
    key = models.TextField(null=True, blank=True)  # noqa: DJ001 - null: no order
    raw_key = models.BinaryField(null=True, blank=True)
    headers = models.BinaryField(help_text=_("The record's headers, as JSON pairs in Latin-1."))
    payload = models.BinaryField(null=True, blank=True, help_text=_("The record's bytes."))
    published_at = models.DateTimeField(help_text=_("The record's timestamp."))
    error_class = models.CharField(max_length=255, default="", blank=True)
    error = models.TextField(default="", blank=True)
    traceback = models.TextField(default="", blank=True)
    created_at = models.DateTimeField()
    last_attempt_at = models.DateTimeField(null=True, blank=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    reason = models.TextField(default="", blank=True, help_text=_("Why it was discarded."))

    class Meta:
        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        default_permissions = ("view",)
        permissions = (
            ("retry_delivery", "Can retry deliveries"),
            ("discard_delivery", "Can discard deliveries"),
            ("repoint_delivery", "Can re-point deliveries"),
        )
        constraints = (
            models.UniqueConstraint(
                fields=["receiver", "event_id", "replay"], name="folio_events_delivery_once"
            ),
        )
        indexes = (
            models.Index(fields=["key"], name="folio_events_delivery_key"),
            models.Index(
                fields=["resolved_at"],
                name="folio_events_delivery_age",
                condition=models.Q(resolved_at__isnull=False),
            ),
            models.Index(
                fields=["next_attempt_at", "id"],
                name="folio_events_delivery_due",
                condition=models.Q(state="retrying"),
            ),
            models.Index(
                fields=["receiver", "topic", "key", "id"],
                name="folio_events_delivery_open",
                condition=models.Q(state__in=["retrying", "dead"]),
            ),
        )

    def __str__(self) -> str:
        return f"{self.receiver} {self.event_id}"


class ReceiverState(models.Model):
    """How a receiver fares: its circuit breaker; written by ``breakers``."""

    receiver = models.CharField(max_length=255, primary_key=True)
    failures = models.IntegerField(default=0, help_text=_("Events in a row that it failed on."))
    opened_at = models.DateTimeField(null=True, blank=True)
    probe_at = models.DateTimeField(
        null=True, blank=True, help_text=_("When the open breaker lets one event through.")
    )
    updated_at = models.DateTimeField()

    class Meta:
        verbose_name = _("receiver state")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.receiver


class BrokerPartition(models.Model):
    """A partition of the database broker; written by ``brokers.database``."""

    pk = models.CompositePrimaryKey("topic", "partition")
    topic = models.CharField(max_length=_WIRE_TOPIC)
    partition = models.IntegerField()
    next_offset = models.BigIntegerField(default=0)

    class Meta:
        verbose_name = _("broker partition")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class BrokerRecord(models.Model):
    """A record of the database broker; written by ``brokers.database``."""

    pk = models.CompositePrimaryKey("topic", "partition", "offset")
    topic = models.CharField(max_length=_WIRE_TOPIC)
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    key = models.BinaryField(null=True)
    value = models.BinaryField(null=True)
    headers = models.BinaryField()
    timestamp = models.BigIntegerField(help_text=_("Milliseconds since 1970."))

    class Meta:
        verbose_name = _("broker record")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"
