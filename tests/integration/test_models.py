"""The tables: what they take, what they refuse, and who may do what with their rows."""

from __future__ import annotations

import secrets
import uuid
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from django.db import IntegrityError, connection, models, transaction
from django.utils import timezone

from folio_events.message import MAX_KEY_BYTES, key_text
from folio_events.models import (
    BrokerPartition,
    BrokerRecord,
    ConsumerOffset,
    Delivery,
    InboxEntry,
    OutboxMessage,
    Publication,
    RelayCursor,
    WithheldMessage,
)

pytestmark = pytest.mark.django_db

_MODELS = list(apps.get_app_config("folio_events").get_models())


def values_of(model: type[models.Model], **given: Any) -> dict[str, Any]:
    """Values for a row of any of the tables, the least that it takes."""
    defaults: dict[type[models.Field[Any, Any]], Any] = {
        models.UUIDField: uuid.uuid4(),
        models.DateTimeField: timezone.now(),
        models.BinaryField: b"secret payload",
        models.IntegerField: 1,
        models.TextField: "secret text",
        models.BooleanField: False,
        models.FloatField: 1.5,
        models.JSONField: {"a": 1},
        models.CharField: "a",
        models.ForeignKey: 1,
    }
    found = {}
    for field in model._meta.concrete_fields:
        if isinstance(field, (models.AutoField, models.CompositePrimaryKey)):
            continue
        value = next(value for kind, value in defaults.items() if isinstance(field, kind))
        found[field.attname] = value
    return {**found, **given}


@pytest.mark.parametrize("model", _MODELS, ids=lambda model: model.__name__)
def test_a_row_is_read_back_as_it_was_written(model):
    """Each table takes a row and gives its values back."""
    given = values_of(model)
    row = model.objects.create(**given)
    found = model.objects.get(pk=row.pk)
    for name, value in given.items():
        stored = getattr(found, name)
        assert (bytes(stored) if isinstance(value, bytes) else stored) == value, name


@pytest.mark.parametrize("model", _MODELS, ids=lambda model: model.__name__)
def test_the_text_of_a_row_holds_no_payload(model):
    """str() of a row, which lands in logs and pages, has neither payload nor error text."""
    text = str(model(**values_of(model)))
    assert text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("model", "same"),
    [
        pytest.param(Publication, {"outbox_message_id": 7}, id="publication of a message"),
        pytest.param(WithheldMessage, {"outbox_message_id": 7}, id="withheld message"),
        pytest.param(RelayCursor, {"id": 1}, id="relay cursor"),
        pytest.param(
            InboxEntry,
            {"receiver": "r", "event_id": uuid.UUID(int=1), "replay": 0},
            id="effect of an event in a receiver",
        ),
        pytest.param(
            Delivery,
            {"receiver": "r", "event_id": uuid.UUID(int=1), "replay": 0},
            id="delivery of an event to a receiver",
        ),
        pytest.param(
            ConsumerOffset,
            {"group": "g", "topic": "t", "partition": 0, "database": "default"},
            id="offset of a group",
        ),
        pytest.param(BrokerPartition, {"topic": "t", "partition": 0}, id="partition of a topic"),
        pytest.param(
            BrokerRecord, {"topic": "t", "partition": 0, "offset": 5}, id="place in a partition"
        ),
    ],
)
def test_there_is_one_row_for_each(model, same):
    """The database refuses a second row for what exists once, and takes one for another."""
    model.objects.create(**values_of(model, **same))
    with pytest.raises(IntegrityError), transaction.atomic():
        model.objects.create(**values_of(model, **same))
    name, value = next(iter(reversed(same.items())))
    other = uuid.uuid4() if isinstance(value, uuid.UUID) else "other" if value == "default" else 99
    model.objects.create(**values_of(model, **{**same, name: other}))
    assert model.objects.count() == 2


def test_a_replay_is_another_effect_and_another_delivery():
    """The replay number makes the same event in the same receiver another row."""
    same = {"receiver": "r", "event_id": uuid.uuid4()}
    for model in (InboxEntry, Delivery):
        for replay in (0, 1):
            model.objects.create(**values_of(model, **same, replay=replay))


def test_bytes_of_any_value_are_kept():
    """Payloads and keys may be any bytes."""
    every = bytes(range(256)) * 100
    row = Delivery.objects.create(**values_of(Delivery, payload=every, raw_key=every))
    row.refresh_from_db()
    assert bytes(row.payload or b"") == bytes(row.raw_key or b"") == every


def test_ids_and_offsets_may_grow_beyond_32_bits():
    """Outbox ids, offsets, positions and timestamps are 64 bits wide."""
    large = 2**62
    message = OutboxMessage.objects.create(**values_of(OutboxMessage, id=large))
    Publication.objects.create(**values_of(Publication, outbox_message_id=message.pk, offset=large))
    RelayCursor.objects.create(position=large, version=large, updated_at=timezone.now())
    ConsumerOffset.objects.create(**values_of(ConsumerOffset, offset=large))
    BrokerRecord.objects.create(**values_of(BrokerRecord, offset=large, timestamp=large))
    assert RelayCursor.objects.get().position == ConsumerOffset.objects.get().offset == large


def test_long_names_fit():
    """Topics of 249 characters, tenants, groups and receivers of 255 characters are taken."""
    OutboxMessage.objects.create(**values_of(OutboxMessage, topic="t" * 249, tenant="t" * 255))
    ConsumerOffset.objects.create(**values_of(ConsumerOffset, topic="t" * 249, group="g" * 255))
    Delivery.objects.create(**values_of(Delivery, topic="t" * 249, receiver="r" * 255))


def test_the_longest_key_fits_into_the_indexes():
    """A key of 2000 bytes that does not compress is stored, beside the longest names."""
    key = secrets.token_hex(MAX_KEY_BYTES // 2)
    names = {"receiver": secrets.token_hex(127), "topic": secrets.token_hex(124)}
    OutboxMessage.objects.create(**values_of(OutboxMessage, key=key))
    WithheldMessage.objects.create(**values_of(WithheldMessage, key=key, state="refused"))
    Delivery.objects.create(**values_of(Delivery, **names, key=key, state="dead"))


def test_the_key_of_a_foreign_record_may_be_of_any_length():
    """A longer key is kept by its beginning and a digest, and two such keys stay different."""
    keys = [secrets.token_hex(20_000).encode() for _ in range(2)]
    for key in [*keys, "\N{EURO SIGN}".encode() * 1000]:
        text = key_text(key)
        assert text is not None
        assert len(text.encode()) <= MAX_KEY_BYTES
        Delivery.objects.create(**values_of(Delivery, event_id=uuid.uuid4(), key=text))
    assert key_text(keys[0]) != key_text(keys[1])
    assert key_text(b"a" * MAX_KEY_BYTES) == "a" * MAX_KEY_BYTES


def test_a_message_may_go_while_its_publication_stays():
    """No foreign key ties the tables of the relay to the outbox: a purge deletes them in any order."""
    message = OutboxMessage.objects.create(**values_of(OutboxMessage))
    Publication.objects.create(**values_of(Publication, outbox_message_id=message.pk))
    WithheldMessage.objects.create(**values_of(WithheldMessage, outbox_message_id=message.pk))
    message.delete()
    assert Publication.objects.exists()
    assert WithheldMessage.objects.exists()


def test_nobody_can_be_allowed_to_change_rows_by_hand():
    """There are permissions to view, to settle in each way and to edit a message, none to add, change or delete."""
    names = set(
        Permission.objects.filter(content_type__app_label="folio_events").values_list(
            "codename", flat=True
        )
    )
    verbs = {name.partition("_")[0] for name in names}
    assert verbs == {
        "view", "retry", "release", "discard", "repoint", "assign", "edit", "run", "provision", "reset",
    }  # fmt: skip
    assert {"view_outboxmessage", "view_delivery", "view_withheldmessage"} <= names


def test_table_and_index_names_fit_every_database():
    """Names are prefixed with the app's, and no longer than Django takes for an index (30)."""
    for model in _MODELS:
        assert model._meta.db_table.startswith("folio_events_")
        for index in model._meta.indexes:
            assert index.name.startswith("folio_events_")
            assert len(index.name) <= 30


@pytest.mark.postgres
def test_bodies_are_stored_as_bytes():
    """Payload and headers are bytea, not text or JSON that the database would parse."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name, data_type FROM information_schema.columns "
            "WHERE table_name = 'folio_events_outboxmessage'"
        )
        types = dict(cursor.fetchall())
    assert types["id"] == "bigint"
    assert types["event_id"] == "uuid"
    assert {types[n] for n in ("payload", "repeating_headers", "own_headers")} == {"bytea"}
