"""Messages without an owner: kept, never processed, settled by a person."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from folio_events import Event, current_tenant, orphans, signals
from folio_events.brokers.memory import MemoryBroker
from folio_events.exceptions import InvalidStateError, InvalidTenantError
from folio_events.message import Headers
from folio_events.models import ConsumerOffset, Delivery, InboxEntry, Orphan
from folio_events.monitoring.status import status
from folio_events.operations.erasure import Erasure, erase_events
from folio_events.operations.retention import purge
from folio_events.redelivery import retry_due
from folio_events.tenants import current_context
from tests.note_topic import NoteTopic, effects, note_receiver
from tests.unit.vectors import cases

pytest_plugins = ("tests.second_connection",)
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def collection(
    memory_broker: MemoryBroker,
    only_test_receivers: None,
    folio_events: Callable[..., None],
) -> NoteTopic:
    """The topic of notes of all tenants, which is a collection's."""
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")
    return NoteTopic(memory_broker, wire="folio.ALL.library.note")


def owned(tenant: str) -> Headers:
    return [("folio.tenantId", tenant.encode())]


def put(
    notes: NoteTopic, number: int, *, headers: Headers | None = None, tenant: str | None = None
) -> None:
    """Put a bare payload, which names a tenant or none."""
    body = {"number": number, **({"tenant": tenant} if tenant else {})}
    notes.put_raw(json.dumps(body).encode(), b"k", headers)


def only_orphan() -> Orphan:
    return Orphan.objects.get()


def test_an_orphan_is_kept_whole_and_passed(
    collection: NoteTopic, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody's receiver runs, the others' events go on, and the offset moves; no dead letter."""
    note_receiver("notes")
    put(collection, 0, headers=owned("diku"))
    put(collection, 1, headers=[("x-okapi-token", b"secret")])
    put(collection, 2, headers=owned("college"))
    assert collection.consume() == 3
    assert effects("notes") == [0, 2]
    assert not Delivery.objects.exists()
    assert ConsumerOffset.objects.get().offset == 3
    found = only_orphan()
    assert (found.topic, found.partition, found.offset) == ("folio.ALL.library.note", 0, 1)
    assert (found.state, found.fault, found.tenant) == ("open", "missing", "")
    record = orphans.record_of(found)
    assert (record.key, record.headers) == (b"k", [("x-okapi-token", b"secret")])
    assert record.value == b'{"number": 1}'
    lines = [r.getMessage() for r in caplog.records if r.name == "folio_events.orphans"]
    assert lines == ["orphan topic=folio.ALL.library.note partition=0 offset=1 key=k fault=missing"]


@pytest.mark.parametrize("case", cases("tenant_header_check"))
def test_what_folio_logs_and_sends_all_the_same_is_logged_and_kept(
    collection: NoteTopic, caplog: pytest.LogCaptureFixture, case: dict[str, Any]
) -> None:
    """A message without tenant header loses nothing here either, and an error says so."""
    note_receiver("notes")
    headers = [(name, value.encode()) for name, value in case["input"]["headers"].items()]
    put(collection, 0, headers=headers)
    collection.consume()
    came = len(effects("notes")) + Orphan.objects.count() == 1
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert {"sent": came, "logged_error": bool(errors)} == case["expected"]


@pytest.mark.parametrize(
    ("headers", "tenant", "fault"),
    [
        (owned("diku"), "college", "disagreeing"),
        ([*owned("diku"), ("X-Okapi-Tenant", b"college")], None, "disagreeing"),
        (owned("not a tenant"), None, "invalid"),
    ],
    ids=["header and body", "two headers", "no name"],
)
def test_a_message_of_two_tenants_is_processed_under_neither(
    collection: NoteTopic, headers: Headers, tenant: str | None, fault: str
) -> None:
    """Whoever disagrees; a name that is none is nobody's either."""
    note_receiver("notes")
    put(collection, 0, headers=headers, tenant=tenant)
    assert collection.consume() == 1
    assert effects("notes") == []
    assert only_orphan().fault == fault


def test_the_body_is_logged_only_where_it_is_asked_for(
    collection: NoteTopic, folio_events: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """And then no more than its beginning."""
    note_receiver("notes")
    put(collection, 0)
    collection.consume()
    assert "number" not in caplog.text
    folio_events(ORPHAN_LOG_BODY=True)
    collection.put_raw(b'{"number": "' + b"x" * 5000 + b'"}')
    collection.consume()
    assert '"number": "xxx' in caplog.text
    assert "x" * 1000 not in caplog.text


def test_the_topic_of_a_tenant_owns_what_names_nobody(
    memory_broker: MemoryBroker, only_test_receivers: None, folio_events: Callable[..., None]
) -> None:
    """But not what names somebody else."""
    folio_events(TENANCY="folio")
    notes = NoteTopic(memory_broker, wire="folio.diku.library.note")
    tenants: list[str | None] = []
    note_receiver("notes", lambda event: tenants.append(event.tenant))
    put(notes, 0)
    put(notes, 1, headers=owned("college"))
    notes.consume()
    assert tenants == ["diku"]
    assert only_orphan().fault == "disagreeing"


def test_without_tenancy_there_are_no_orphans(notes: NoteTopic) -> None:
    """Tenants that are named all the same play no part."""
    note_receiver("notes")
    put(notes, 0)
    put(notes, 1, headers=owned("diku"), tenant="college")
    notes.consume()
    assert effects("notes") == [0, 1]
    assert not Orphan.objects.exists()


def test_an_orphan_is_kept_once_however_many_meet_it(
    collection: NoteTopic, caplog: pytest.LogCaptureFixture
) -> None:
    """Two groups, and a receiver without a transaction, all come past it; one says so."""
    told: list[object] = []

    def tell(**facts: object) -> None:
        told.append(facts["message"])

    signals.orphan_kept.connect(tell)
    note_receiver("one")
    note_receiver("outside", mode="after_commit")
    note_receiver("other group", group="others")
    put(collection, 0)
    collection.consume()
    collection.consume("others")
    signals.orphan_kept.disconnect(tell)
    assert only_orphan().offset == 0
    lines = [record for record in caplog.records if record.name == "folio_events.orphans"]
    assert len(lines) == len(told) == 1


def test_an_orphan_is_kept_with_the_offset_or_not_at_all(
    collection: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash before the commit leaves neither, and the message comes again."""
    from folio_events import inbox

    note_receiver("notes")
    put(collection, 0)
    advance = inbox.advance

    def crash(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inbox, "advance", crash)
    with pytest.raises(KeyboardInterrupt):
        collection.consume()
    assert not Orphan.objects.exists()
    monkeypatch.setattr(inbox, "advance", advance)
    collection.restart()
    collection.consume()
    assert only_orphan().offset == 0


def test_an_orphan_beside_a_failing_receiver_is_kept_once(collection: NoteTopic) -> None:
    """The batch is rolled back and goes one by one."""

    def fail(event: Event) -> None:
        raise ValueError("a bad note")

    note_receiver("notes", fail)
    put(collection, 0)
    put(collection, 1, headers=owned("diku"))
    collection.consume()
    assert only_orphan().offset == 0
    assert Delivery.objects.get().offset == 1


def test_the_same_place_in_a_topic_that_was_created_anew_is_another_orphan(
    collection: NoteTopic,
) -> None:
    """Offsets count from 0 again there."""
    note_receiver("notes")
    put(collection, 0)
    for topic_id in ("", "anew", "anew"):
        # As the consumer notes it when it is handed the partition.
        ConsumerOffset.objects.update(offset=0, topic_id=topic_id)
        collection.restart()
        collection.consume()
    assert list(Orphan.objects.values_list("offset", "topic_id")) == [(0, ""), (0, "anew")]


def test_open_orphans_are_counted(collection: NoteTopic) -> None:
    """By what is wrong with them, until somebody settles them."""
    note_receiver("notes")
    put(collection, 0)
    put(collection, 1)
    put(collection, 2, headers=owned("diku"), tenant="college")
    collection.consume()
    assert status().orphans == {"missing": 2, "disagreeing": 1}
    orphans.discard(list(Orphan.objects.values_list("pk", flat=True)), reason="done")
    assert status().orphans == {}


# Settling


def test_an_assigned_orphan_reaches_its_receivers_as_a_delivery(collection: NoteTopic) -> None:
    """In its new tenant, whatever the message says; what it causes is that tenant's too."""
    seen: list[tuple[str | None, str | None, dict[str, str]]] = []

    def look(event: Event) -> None:
        seen.append((event.tenant, current_tenant(), dict(current_context().headers)))

    note_receiver("notes", look)
    note_receiver("other group", group="others")
    note_receiver("other type", types=["else"])
    headers = [
        *owned("college"),
        ("x-okapi-tenant", b"college"),
        ("x-okapi-token", b"of college"),
        ("x-okapi-user-id", b"of college"),
        ("x-okapi-request-id", b"1"),
    ]
    put(collection, 0, headers=headers, tenant="diku")
    collection.consume()
    assert orphans.assign([only_orphan().pk], tenant="diku") == 1
    found = only_orphan()
    assert (found.state, found.tenant) == ("assigned", "diku")
    assert found.resolved_at is not None
    waiting = Delivery.objects.order_by("receiver")
    assert [(d.receiver, d.tenant, d.state) for d in waiting] == [
        ("notes", "diku", "retrying"),
        ("other group", "diku", "retrying"),
    ]
    # The group that has not come to it yet does not run it a second time.
    collection.consume("others")
    assert retry_due().resolved == 2
    assert effects("notes") == effects("other group") == [0]
    assert seen == [("diku", "diku", {"x-okapi-tenant": "diku", "x-okapi-request-id": "1"})]


def test_an_assigned_orphan_takes_no_second_effect(collection: NoteTopic) -> None:
    """Its event may have come a second time, with an owner."""
    note_receiver("notes")
    event_id = ("ce_id", str(uuid.uuid4()).encode())
    put(collection, 0, headers=[event_id])
    put(collection, 0, headers=[event_id, *owned("diku")])
    collection.consume()
    orphans.assign([only_orphan().pk], tenant="diku")
    assert retry_due().resolved == 1
    assert effects("notes") == [0]
    assert InboxEntry.objects.count() == 1


def test_a_discarded_orphan_is_closed_with_its_reason(collection: NoteTopic) -> None:
    """And the user who did it stands in the admin's log."""
    user = User.objects.create_user("ann")
    note_receiver("notes")
    put(collection, 0)
    collection.consume()
    assert orphans.discard([only_orphan().pk], reason="a test's", by=user) == 1
    found = only_orphan()
    assert (found.state, found.reason) == ("discarded", "a test's")
    assert not Delivery.objects.exists()
    assert LogEntry.objects.get().change_message == "discarded: a test's"


def test_a_settled_orphan_is_not_settled_again(collection: NoteTopic) -> None:
    """The others of the call stay as they are, too."""
    note_receiver("notes")
    put(collection, 0)
    put(collection, 1)
    collection.consume()
    first, second = Orphan.objects.order_by("pk")
    orphans.discard([first.pk], reason="done")
    with pytest.raises(InvalidStateError, match="is discarded; only open ones can be assigned"):
        orphans.assign([second.pk, first.pk], tenant="diku")
    with pytest.raises(InvalidStateError, match="only open ones can be discarded"):
        orphans.discard([second.pk, first.pk], reason="again")
    second.refresh_from_db()
    assert second.state == "open"
    assert not Delivery.objects.exists()


def test_an_orphan_is_assigned_to_what_can_be_a_tenant(collection: NoteTopic) -> None:
    """No row is touched otherwise."""
    note_receiver("notes")
    put(collection, 0)
    collection.consume()
    with pytest.raises(InvalidTenantError, match="is no tenant"):
        orphans.assign([only_orphan().pk], tenant="a.b")
    assert only_orphan().state == "open"


def test_an_orphan_that_nobody_takes_stays_open(collection: NoteTopic) -> None:
    """Assigned, it would be gone without anybody having seen it."""
    note_receiver("notes", types=["else"])
    put(collection, 0)
    collection.consume()
    with pytest.raises(InvalidStateError, match="no receiver with database 'default' takes"):
        orphans.assign([only_orphan().pk], tenant="diku")
    assert only_orphan().state == "open"


def test_an_orphan_that_cannot_be_read_stays_open(collection: NoteTopic) -> None:
    """The error says why."""
    note_receiver("notes")
    collection.put_raw(b'{"type": "CREATE", "eventId": "x", "new": 1}')
    collection.consume()
    with pytest.raises(InvalidStateError, match="cannot be read: 'new' is a"):
        orphans.assign([only_orphan().pk], tenant="diku")
    assert only_orphan().state == "open"


def test_settled_orphans_are_purged_and_open_ones_are_not(
    collection: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """After DELIVERY_RETENTION."""
    folio_events(DELIVERY_RETENTION=60.0)
    note_receiver("notes")
    for number in range(3):
        put(collection, number)
    collection.consume()
    old, fresh, still_open = Orphan.objects.order_by("pk")
    orphans.discard([old.pk, fresh.pk], reason="done")
    Orphan.objects.filter(pk=old.pk).update(resolved_at=timezone.now() - timedelta(seconds=61))
    Orphan.objects.filter(pk=still_open.pk).update(found_at=timezone.now() - timedelta(days=999))
    assert purge().orphans == 1
    assert set(Orphan.objects.values_list("pk", flat=True)) == {fresh.pk, still_open.pk}


# Erasing


def test_erasing_a_tenant_blanks_the_orphans_that_name_it(collection: NoteTopic) -> None:
    """Whoever else they name; the rows stay, so that nothing is kept a second time."""
    note_receiver("notes")
    put(collection, 0, headers=owned("diku"), tenant="college")
    put(collection, 1, headers=owned("uni"), tenant="college")
    put(collection, 2)
    collection.consume()
    with pytest.raises(InvalidStateError, match="1 orphans are open"):
        erase_events(tenant="diku", reason="left")
    counted = erase_events(tenant="diku", reason="", dry_run=True)
    done = erase_events(tenant="diku", reason="left", discard_open=True)
    assert counted == done == Erasure(orphans=1, open_orphans=1)
    first, second, third = Orphan.objects.order_by("offset")
    assert (first.state, first.payload, first.key, first.error) == ("discarded", None, None, "")
    assert (first.reason, bytes(first.headers)) == ("left", b"")
    assert {second.state, third.state} == {"open"}


def test_erasing_a_key_blanks_its_orphans(collection: NoteTopic) -> None:
    """Nobody has to know whose they are."""
    note_receiver("notes")
    put(collection, 0)
    collection.put_raw(b'{"number": 1}', b"other")
    collection.consume()
    orphans.discard(list(Orphan.objects.values_list("pk", flat=True)), reason="done")
    done = erase_events(topic="library.note", key="k", reason="asked for")
    assert done == Erasure(orphans=1)
    assert [orphan.key for orphan in Orphan.objects.order_by("offset")] == [None, "other"]


@pytest.mark.postgres
def test_of_two_people_at_once_one_settles_an_orphan(
    collection: NoteTopic,
    other: Callable[[Callable[[], Any]], Future[Any]],
    until_somebody_waits: Callable[[], None],
) -> None:
    """The other waits, and is told that it is settled; there is one delivery, of one tenant."""
    note_receiver("notes")
    put(collection, 0)
    collection.consume()
    orphan = only_orphan().pk
    with transaction.atomic():
        orphans.assign([orphan], tenant="diku")
        late = other(lambda: orphans.assign([orphan], tenant="college"))
        until_somebody_waits()
    with pytest.raises(InvalidStateError, match="is assigned; only open ones"):
        late.result(30)
    assert [delivery.tenant for delivery in Delivery.objects.all()] == ["diku"]
