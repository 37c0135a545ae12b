"""The message of a delivery is edited: what runs then, what is kept, what is refused."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connections
from django.utils import timezone

from folio_events import deliveries
from folio_events.exceptions import DecodingError, InvalidStateError
from folio_events.models import Delivery
from folio_events.operations import editing
from folio_events.operations.editing import Content
from folio_events.redelivery import retry_due
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db


@pytest.fixture
def letter(notes: NoteTopic) -> Delivery:
    """A dead letter of the receiver "one", which refuses note 0, and one held behind it."""
    note_receiver("one", Mood(0))
    notes.put("a", 0, headers=[("x-okapi-token", b"secret"), ("raw", b"\xff")])
    notes.put("a", 1)
    notes.consume()
    head = Delivery.objects.order_by("id")[0]
    Delivery.objects.filter(pk=head.pk).update(state="dead", next_attempt_at=None)
    head.refresh_from_db()
    return head


def changed(row: Delivery, **values: Any) -> Content:
    """The message of a delivery with some parts changed; ``data`` is merged into its payload."""
    now = editing.content_of(row)
    if "data" in values:
        body = json.loads(now.payload or b"")
        body["data"] = values.pop("data")
        values["payload"] = json.dumps(body).encode()
    return Content(**{"key": now.key, "headers": now.headers, "payload": now.payload, **values})


def edit(row: Delivery, content: Content, **options: Any) -> list[str]:
    return editing.edit(row.pk, content, **{"reason": "a typing error", **options})


def test_the_receiver_gets_the_edited_message(letter: Delivery) -> None:
    """And what waited behind it goes on."""
    assert edit(letter, changed(letter, data={"number": 7}), retry=True) == ["payload"]
    assert retry_due().resolved == 2
    assert effects("one") == [7, 1]


def test_an_edited_dead_letter_stays_dead_until_it_is_retried(letter: Delivery) -> None:
    """To mend one is not yet to run it."""
    edit(letter, changed(letter, data={"number": 7}))
    letter.refresh_from_db()
    assert letter.state == "dead"
    assert retry_due().resolved == 0


def test_the_first_message_is_kept_through_all_changes(letter: Delivery) -> None:
    """Byte by byte, and can be restored."""
    before = editing.content_of(letter)
    for number in (7, 8):
        edit(letter, changed(letter, data={"number": number}, key=b"b", headers=[]))
        letter.refresh_from_db()
        assert editing.original_of(letter) == before
    assert editing.content_of(letter) != before
    assert letter.key == "b"
    editing.restore(letter.pk, reason="it was right")
    letter.refresh_from_db()
    assert editing.content_of(letter) == editing.original_of(letter) == before
    assert (letter.key, letter.edited_at, letter.original_payload) == ("a", None, None)
    with pytest.raises(InvalidStateError, match="has its original message"):
        editing.restore(letter.pk, reason="again")


def test_who_changed_what_and_why_is_logged(letter: Delivery) -> None:
    """The parts by name, nothing of what stands in them."""
    ann = User.objects.create(username="ann")
    edit(letter, changed(letter, data={"number": 7}, headers=[]), by=ann, retry=True)
    editing.restore(letter.pk, reason="no", by=ann)
    entries = LogEntry.objects.filter(object_id=str(letter.pk)).order_by("pk")
    assert [(entry.user, entry.get_change_message()) for entry in entries] == [
        (ann, "edited headers, payload: a typing error"),
        (ann, "retried: a typing error"),
        (ann, "restored the original message: no"),
    ]


def test_an_edit_that_changes_nothing_is_none(letter: Delivery) -> None:
    """No original is kept of it."""
    assert edit(letter, editing.content_of(letter)) == []
    letter.refresh_from_db()
    assert letter.edited_at is None


def test_what_is_no_event_is_refused(letter: Delivery) -> None:
    """Before anything is saved."""
    for payload in (b"{", b"[]", b"\xff"):
        with pytest.raises(DecodingError, match="the body is"):
            edit(letter, changed(letter, payload=payload))
    letter.refresh_from_db()
    assert letter.edited_at is None


def test_another_event_is_refused(letter: Delivery) -> None:
    """With another id it could take effect a second time."""
    body = json.loads(bytes(letter.payload or b""))
    body["id"] = "00000000-0000-0000-0000-000000000001"
    with pytest.raises(InvalidStateError, match="The id cannot be changed"):
        edit(letter, changed(letter, payload=json.dumps(body).encode()))


def test_a_type_that_the_receiver_does_not_take_is_refused(notes: NoteTopic) -> None:
    """It would be passed by without a run."""
    note_receiver("one", Mood(0), types=["NOTE"])
    notes.put("a", 0, type="NOTE")
    notes.consume()
    row = Delivery.objects.get()
    body = json.loads(bytes(row.payload or b""))
    body["type"] = "MEMO"
    with pytest.raises(InvalidStateError, match="does not take type 'MEMO'"):
        edit(row, changed(row, payload=json.dumps(body).encode()))


def test_a_poison_message_is_mended(notes: NoteTopic) -> None:
    """One that could not be read becomes an event, and may be mended once more."""
    note_receiver("one", Mood(0))
    notes.put_raw(b'{"type": "note", "data": {"number": 0}', b"a")
    notes.consume()
    row = Delivery.objects.get()
    assert (row.state, row.event_type) == ("dead", "")
    for number in (0, 5):
        body = {"id": "77", "type": "note", "timestamp": 1_700_000_000_000}
        body["data"] = {"number": number}
        edit(row, changed(row, payload=json.dumps(body).encode()), retry=True)
        row.refresh_from_db()
        assert row.event_type == "note"
        retry_due()
    assert effects("one") == [5]
    row.refresh_from_db()
    assert row.state == "resolved"


def test_with_another_key_it_leaves_those_behind_it(letter: Delivery) -> None:
    """They go on, and it takes its place among those of the new key."""
    edit(letter, changed(letter, key=b"b"))
    assert retry_due().resolved == 1
    assert effects("one") == [1]


@pytest.mark.parametrize("state", ["resolved", "discarded"])
def test_a_settled_delivery_is_not_edited(letter: Delivery, state: str) -> None:
    """Nor restored."""
    Delivery.objects.filter(pk=letter.pk).update(state=state, edited_at=timezone.now())
    with pytest.raises(InvalidStateError, match=f"is {state}; only open ones can be edited"):
        edit(letter, changed(letter, key=b"b"))
    with pytest.raises(InvalidStateError, match="can be restored"):
        editing.restore(letter.pk, reason="no")
    with pytest.raises(InvalidStateError, match="no delivery 0"):
        editing.edit(0, editing.content_of(letter), reason="no")
    with pytest.raises(ValueError, match="Say why"):
        edit(letter, changed(letter, key=b"b"), reason=" ")


def test_a_run_with_the_old_message_is_void(letter: Delivery) -> None:
    """One that was begun before the edit takes no effect; the next one gets the new message."""
    later = timezone.now() + timedelta(minutes=1)
    rows = Delivery.objects.filter(pk=letter.pk)
    rows.update(state="retrying", attempts=2, unfinished=True, next_attempt_at=later)
    letter.refresh_from_db()
    edit(letter, changed(letter, data={"number": 7}))
    assert not deliveries.still_running([letter], using="default")
    assert retry_due().resolved == 2
    assert effects("one") == [7, 1]


def test_nobody_overwrites_what_he_has_not_seen(letter: Delivery) -> None:
    """Of two changes made on the same version the second is refused."""
    seen = editing.version_of(letter)
    edit(letter, changed(letter, data={"number": 7}), seen=seen)
    with pytest.raises(InvalidStateError, match="edited by somebody else"):
        edit(letter, changed(letter, data={"number": 8}), seen=seen)


def test_an_erasure_takes_the_original_along(letter: Delivery) -> None:
    """Of an edited message neither version stays."""
    edit(letter, changed(letter, data={"number": 7}))
    deliveries.erase([letter.pk], reason="asked for", discard_open=True, using="default")
    letter.refresh_from_db()
    kept = (letter.payload, letter.original_payload, letter.raw_key, letter.original_raw_key)
    assert kept == (None, None, None, None)
    assert (bytes(letter.headers), letter.original_headers) == (b"", None)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_of_two_people_at_once_one_edits(letter: Delivery) -> None:
    """The second waits for the first, and is told."""
    seen, together = editing.version_of(letter), threading.Barrier(2)

    def save(number: int) -> str:
        try:
            together.wait(10)
            edit(letter, changed(letter, data={"number": number}), seen=seen)
        except InvalidStateError as error:
            return str(error)
        finally:
            connections.close_all()
        return ""

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(save, (7, 8)))
    assert said[0] == ""
    assert "edited by somebody else" in said[1]


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (None, "none"),
        (b"", "text"),
        ("käse\n\ttab".encode(), "text"),
        (b"a\r\nb", "hex"),
        (b"\xff\x00", "hex"),
        (b"a\0", "hex"),
    ],
)
def test_bytes_come_back_from_their_text(data: bytes | None, form: str) -> None:
    """What a browser would change is shown in hexadecimal digits."""
    shown = editing.as_text(data)
    assert shown[0] == form
    assert editing.from_text(*shown) == data


def test_digits_that_are_none_are_refused() -> None:
    """And line breaks of a browser are plain ones."""
    with pytest.raises(ValueError, match="hexadecimal"):
        editing.from_text("hex", "f")
    assert editing.from_text("text", "a\r\nb") == b"a\nb"
