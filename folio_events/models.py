"""The tables. Rows are written by one module each; see the docstring of each model."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

_WIRE_TOPIC = 249


class OutboxMessage(models.Model):
    """A message to be published; append-only, written by ``outbox``.

    A row has no state: the relay's cursor says what was published.
    """

    class Progress(models.TextChoices):
        """How far a message got, told from the rows beside it."""

        WAITING = "waiting", _("waiting")
        PUBLISHED = "published", _("published")
        #: Refused by the broker, or behind such a message of its key.
        WITHHELD = "withheld", _("withheld")
        DISCARDED = "discarded", _("discarded")

    id = models.BigAutoField(primary_key=True)
    event_id = models.UUIDField(db_index=True)
    topic = models.CharField(max_length=_WIRE_TOPIC, help_text=_("Logical topic."))
    event_type = models.CharField(max_length=100)
    tenant = models.CharField(max_length=255, default="", blank=True)
    key = models.TextField(null=True, blank=True)  # noqa: DJ001 - null: no order
    payload = models.BinaryField(
        null=True, blank=True, help_text=_("The bytes that are sent; null: a tombstone.")
    )
    repeating_headers = models.BinaryField(
        help_text=_("Headers that many rows share, as JSON pairs.")
    )
    own_headers = models.BinaryField(help_text=_("Headers of this row alone, as JSON pairs."))
    occurred_at = models.DateTimeField()

    class Meta:
        verbose_name = _("outbox message")
        default_permissions = ("view",)
        permissions = (("view_private", "Can view private fields of payloads"),)
        # Not db_index: on PostgreSQL that makes a second index for LIKE.
        indexes = (models.Index(fields=["key"], name="folio_events_outbox_key"),)

    def __str__(self) -> str:
        return f"{self.topic} {self.event_type} {self.event_id}"

    @property
    def progress(self) -> OutboxMessage.Progress:
        """How far it got; ``retention.of_progress()`` filters by the same."""
        if getattr(self, "publication", None) is not None:
            return self.Progress.PUBLISHED
        aside: WithheldMessage | None = getattr(self, "withheldmessage", None)
        if aside is None:
            return self.Progress.WAITING
        is_open = aside.state in WithheldMessage.OPEN
        return self.Progress.WITHHELD if is_open else self.Progress(aside.state)


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
        permissions = (("provision_tenant", "Can enable and purge tenants"),)

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
    # Defaults of the database as well: consumers of the version before write rows without them.
    replay = models.IntegerField(
        default=0, db_default=0, help_text=_("Number of the replay that a reset began, or 0.")
    )
    replay_end = models.BigIntegerField(
        default=0, db_default=0, help_text=_("Offset from which on that is over.")
    )
    updated_at = models.DateTimeField()

    class Meta:
        verbose_name = _("consumer offset")
        default_permissions = ("view",)
        permissions = (("reset_offsets", "Can reset offsets of groups"),)
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
    # Null, so that a version which does not know of it goes on writing rows.
    fingerprint = models.CharField(  # noqa: DJ001 - null: not made yet
        max_length=16, null=True, blank=True, help_text=_("Failures of one cause share it.")
    )
    created_at = models.DateTimeField()
    last_attempt_at = models.DateTimeField(null=True, blank=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    reason = models.TextField(default="", blank=True, help_text=_("Why it was discarded."))
    edited_at = models.DateTimeField(
        null=True, blank=True, help_text=_("When a person changed the message last.")
    )
    original_raw_key = models.BinaryField(null=True, blank=True)
    original_headers = models.BinaryField(null=True, blank=True)
    original_payload = models.BinaryField(
        null=True, blank=True, help_text=_("The record's bytes before anybody changed them.")
    )
    bulk_action = models.IntegerField(
        null=True, blank=True, help_text=_("The last bulk action that settled it.")
    )

    class Meta:
        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        default_permissions = ("view",)
        permissions = (
            ("retry_delivery", "Can retry deliveries"),
            ("discard_delivery", "Can discard deliveries"),
            ("repoint_delivery", "Can re-point deliveries"),
            ("edit_delivery", "Can edit the messages of deliveries"),
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
            # Those of a replay wait until no other is due.
            models.Index(
                fields=["next_attempt_at", "id"],
                name="folio_events_delivery_live",
                condition=models.Q(state="retrying", replay=0),
            ),
            models.Index(
                fields=["receiver", "topic", "partition", "id"],
                name="folio_events_delivery_place",
                condition=models.Q(state__in=["retrying", "dead"], order="partition"),
            ),
            models.Index(
                fields=["fingerprint", "id"],
                name="folio_events_delivery_cause",
                condition=models.Q(state__in=["retrying", "dead"]),
            ),
            # Counted for each page of the admin, without the rows, which are wide.
            models.Index(
                fields=["state", "receiver"],
                name="folio_events_delivery_count",
                condition=models.Q(state__in=["retrying", "dead"]),
            ),
            models.Index(
                fields=["bulk_action", "id"],
                name="folio_events_delivery_bulk",
                condition=models.Q(bulk_action__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.receiver} {self.event_id}"


class Attempt(models.Model):
    """One run of a delivery that has ended; written by ``attempts``."""

    class Outcome(models.TextChoices):
        SUCCEEDED = "succeeded", _("succeeded")
        FAILED = "failed", _("failed")
        #: The process ended during the run, or nothing was heard of it.
        LOST = "lost", _("no end")

    id = models.BigAutoField(primary_key=True)
    delivery = models.ForeignKey(
        Delivery, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+"
    )
    receiver = models.CharField(max_length=255, help_text=_("Who ran; a delivery may change it."))
    number = models.IntegerField(help_text=_("Counted from 1."))
    started_at = models.DateTimeField()
    duration = models.FloatField(null=True, help_text=_("Seconds; null: it never told of an end."))
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    error_class = models.CharField(max_length=255, default="", blank=True)
    error = models.TextField(default="", blank=True)
    traceback = models.TextField(default="", blank=True)

    class Meta:
        verbose_name = _("attempt")
        default_permissions = ()
        indexes = (models.Index(fields=["delivery", "id"], name="folio_events_attempt_of"),)

    def __str__(self) -> str:
        return f"{self.receiver} {self.number}"


class BulkAction(models.Model):
    """An action on all rows that match, worked off in the background; by ``bulk_actions``."""

    class Subject(models.TextChoices):
        DELIVERY = "delivery", _("deliveries")
        WITHHELD = "withheld", _("withheld messages")

    class Action(models.TextChoices):
        RETRY = "retry", _("retry")
        RELEASE = "release", _("release")
        DISCARD = "discard", _("discard")

    class State(models.TextChoices):
        RUNNING = "running", _("running")
        CANCELLED = "cancelled", _("cancelled")
        DONE = "done", _("done")

    id = models.AutoField(primary_key=True)
    subject = models.CharField(max_length=10, choices=Subject.choices)
    action = models.CharField(max_length=10, choices=Action.choices)
    criteria = models.JSONField(default=dict, blank=True, help_text=_("Which rows."))
    digest = models.CharField(max_length=64, help_text=_("Of the criteria."))
    last_id = models.BigIntegerField(help_text=_("Newer rows are left alone."))
    position = models.BigIntegerField(default=0, help_text=_("Last id that was passed."))
    total = models.BigIntegerField(help_text=_("Rows that matched when it was started."))
    done = models.BigIntegerField(default=0, help_text=_("Rows that were settled."))
    rate = models.FloatField(null=True, blank=True, help_text=_("Most rows a second."))
    next_at = models.DateTimeField(help_text=_("When the next row is due."))
    state = models.CharField(max_length=10, choices=State.choices, default=State.RUNNING)
    reason = models.TextField(default="", blank=True)
    created_by = models.CharField(max_length=255, default="", blank=True)
    user = models.CharField(
        max_length=255, default="", blank=True, help_text=_("Primary key of the user.")
    )
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = _("bulk action")
        default_permissions = ("view",)
        permissions = (("run_bulkaction", "Can start and cancel bulk actions"),)
        constraints = (
            models.UniqueConstraint(
                fields=["subject", "digest"],
                name="folio_events_bulk_once",
                condition=models.Q(state="running"),
            ),
        )

    def __str__(self) -> str:
        return f"{self.get_action_display()} {self.get_subject_display()} {self.pk}"


class Replay(models.Model):
    """Past events that receivers are to run again, and how far that is; written by ``replays``.

    Its id is the number by which inbox and deliveries tell its runs from others.
    """

    class State(models.TextChoices):
        RUNNING = "running", _("running")
        CANCELLED = "cancelled", _("cancelled")
        DONE = "done", _("done")

    class Source(models.TextChoices):
        BROKER = "broker", _("the broker's log")
        OUTBOX = "outbox", _("the outbox")
        #: The group reads its topics again; there are no deliveries but of failures.
        RESET = "reset", _("a reset of offsets")

    id = models.AutoField(primary_key=True)
    state = models.CharField(max_length=10, choices=State.choices)
    source = models.CharField(max_length=10, choices=Source.choices)
    receivers = models.JSONField(help_text=_("Names of the receivers."))
    criteria = models.JSONField(help_text=_("Which events."))
    worker = models.UUIDField(help_text=_("Of the process that works on it; fences others."))
    position = models.JSONField(default=dict, blank=True, help_text=_("Where it goes on."))
    passed = models.BigIntegerField(default=0, help_text=_("Messages that were looked at."))
    unreadable = models.BigIntegerField(default=0, help_text=_("Of these: no events."))
    deliveries = models.BigIntegerField(default=0, help_text=_("Deliveries that were made."))
    reason = models.TextField(default="", blank=True)
    created_by = models.CharField(max_length=255, default="", blank=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = _("replay")
        default_permissions = ("view",)
        permissions = (("run_replay", "Can start, resume and cancel replays"),)

    def __str__(self) -> str:
        return f"{self.pk} {self.state}"


class Orphan(models.Model):
    """A message without an owner, kept until a person assigns one; written by ``orphans``."""

    class State(models.TextChoices):
        OPEN = "open", _("open")
        ASSIGNED = "assigned", _("assigned")
        DISCARDED = "discarded", _("discarded")

    class Fault(models.TextChoices):
        MISSING = "missing", _("no tenant")
        DISAGREEING = "disagreeing", _("several tenants")
        INVALID = "invalid", _("no tenant's name")

    topic = models.CharField(max_length=_WIRE_TOPIC, help_text=_("Topic on the broker."))
    topic_id = models.CharField(
        max_length=64, default="", blank=True, help_text=_("Tells a topic from one created anew.")
    )
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    fault = models.CharField(max_length=12, choices=Fault.choices)
    error = models.TextField(help_text=_("Why it has no owner."))
    key = models.TextField(null=True, blank=True)  # noqa: DJ001 - null: no order
    raw_key = models.BinaryField(null=True, blank=True)
    headers = models.BinaryField(help_text=_("The record's headers, as JSON pairs in Latin-1."))
    payload = models.BinaryField(null=True, blank=True, help_text=_("The record's bytes."))
    published_at = models.DateTimeField(help_text=_("The record's timestamp."))
    found_at = models.DateTimeField()
    tenant = models.CharField(
        max_length=255, default="", blank=True, help_text=_("The tenant that it was assigned.")
    )
    resolved_at = models.DateTimeField(null=True, blank=True)
    reason = models.TextField(default="", blank=True, help_text=_("Why it was discarded."))

    class Meta:
        verbose_name = _("orphan")
        default_permissions = ("view",)
        permissions = (
            ("assign_orphan", "Can assign orphans to tenants"),
            ("discard_orphan", "Can discard orphans"),
        )
        constraints = (
            models.UniqueConstraint(
                fields=["topic", "partition", "offset", "topic_id"],
                name="folio_events_orphan_once",
            ),
        )
        indexes = (
            models.Index(fields=["key"], name="folio_events_orphan_key"),
            models.Index(
                fields=["id"],
                name="folio_events_orphan_open",
                condition=models.Q(state="open"),
            ),
            models.Index(
                fields=["resolved_at"],
                name="folio_events_orphan_age",
                condition=models.Q(resolved_at__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


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


class Backfill(models.Model):
    """A back-fill of a model's rows as events; written by ``backfill``."""

    class State(models.TextChoices):
        RUNNING = "running", _("running")
        CANCELLED = "cancelled", _("cancelled")
        DONE = "done", _("done")

    id = models.UUIDField(primary_key=True)
    model = models.CharField(max_length=255, help_text=_("Label of the model."))
    event_type = models.CharField(max_length=100)
    tenant = models.CharField(max_length=255, default="", blank=True)
    filters = models.JSONField(default=dict, blank=True, help_text=_("Lookup to value."))
    keys_only = models.BooleanField(default=False, help_text=_("Events have no new."))
    state = models.CharField(max_length=10, choices=State.choices)
    worker = models.UUIDField(help_text=_("Of the process that works on it; fences others."))
    position = models.TextField(  # noqa: DJ001 - null: not begun
        null=True, blank=True, help_text=_("Last primary key that was passed.")
    )
    last = models.TextField(  # noqa: DJ001 - null: no rows
        null=True, blank=True, help_text=_("Last primary key when it was started.")
    )
    total = models.BigIntegerField(default=0, help_text=_("About how many rows there are."))
    passed = models.BigIntegerField(default=0, help_text=_("Rows that were passed."))
    events = models.BigIntegerField(default=0, help_text=_("Events that were recorded."))
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = _("back-fill")
        default_permissions = ("view",)
        permissions = (("run_backfill", "Can start, resume and cancel back-fills"),)
        constraints = (
            models.UniqueConstraint(
                fields=["model", "tenant"],
                name="folio_events_backfill_once",
                condition=models.Q(state="running"),
            ),
        )

    def __str__(self) -> str:
        return f"{self.model} {self.event_type} {self.id}"


class Process(models.Model):
    """A relay or consumer at work; written by ``processes``."""

    class Kind(models.TextChoices):
        RELAY = "relay", _("relay")
        TASK = "task", _("relay, as a Celery task")
        CONSUMER = "consumer", _("consumer")

    class State(models.TextChoices):
        #: Of a relay: commits wake it up.
        LISTENING = "listening", _("listens for wake-ups")
        #: Of a relay: it looks by itself; the detail says why.
        POLLING = "polling", _("polls")
        STANDBY = "standby", _("stands by")
        #: Broker or database do not answer.
        STALLED = "stalled", _("waits for the broker")
        WAITING = "waiting", _("waits for records")
        WORKING = "working", _("works on a batch")

    id = models.UUIDField(primary_key=True)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    name = models.CharField(max_length=255, help_text=_("Consumer group, or the relay's database."))
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    state = models.CharField(max_length=10, choices=State.choices)
    detail = models.TextField(default="", blank=True, help_text=_("Why it is in this state."))
    partitions = models.JSONField(
        default=dict, blank=True, help_text=_("Topic to numbers of the partitions it has.")
    )
    records = models.IntegerField(default=0, help_text=_("Records of the batch in hand."))
    busy_since = models.DateTimeField(null=True, blank=True, help_text=_("When it was begun."))
    interval = models.FloatField(help_text=_("Seconds between two heartbeats."))
    started_at = models.DateTimeField()
    heartbeat_at = models.DateTimeField()

    class Meta:
        verbose_name = _("process")
        verbose_name_plural = _("processes")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.host}/{self.pid}"


class EventCount(models.Model):
    """How many events had an outcome within a span of time; written by ``counts``."""

    class Outcome(models.TextChoices):
        #: By logical topic.
        PUBLISHED = "published", _("published")
        #: By receiver, as all that follow.
        HANDLED = "handled", _("handled")
        FAILED = "failed", _("failed")
        #: Failed for the last time; counted as failed too.
        DEAD = "dead", _("dead")

    pk = models.CompositePrimaryKey("span", "started_at", "outcome", "name", "shard")
    span = models.SmallIntegerField(help_text=_("Seconds: 60 or 600."))
    started_at = models.DateTimeField()
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    name = models.CharField(max_length=255, help_text=_("Logical topic or receiver."))
    shard = models.SmallIntegerField(help_text=_("Keeps processes out of each other's way."))
    count = models.BigIntegerField()

    class Meta:
        verbose_name = _("event count")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.outcome} {self.name} {self.started_at:%H:%M}"


class Dashboard(Process):
    """The dashboard's place among the models of the admin; no table."""

    class Meta:
        # With managed = False, dumpdata would look for the table.
        proxy = True
        verbose_name = _("dashboard")
        verbose_name_plural = _("dashboard")
        default_permissions = ()


class DeadLetter(Delivery):
    """The place of the dead letters by cause among the models of the admin; no table."""

    class Meta:
        proxy = True
        verbose_name = _("dead letter")
        default_permissions = ()
