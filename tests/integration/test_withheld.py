"""Withheld messages: what a person may do with them, and whose turn comes when."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User

from folio_events import publish, withheld
from folio_events.cursor import OutboxRow
from folio_events.exceptions import InvalidStateError
from folio_events.models import OutboxMessage, WithheldMessage

pytestmark = pytest.mark.django_db


def outbox_row(key: str | None, topic: str = "library.note") -> OutboxRow:
    event = publish(topic, key=key, payload={})
    fields = OutboxMessage.objects.filter(event_id=event.id).values_list(*OutboxRow._fields)[0]
    return OutboxRow._make(fields)


def set_aside(*rows: tuple[str | None, str]) -> list[int]:
    """Withheld rows by key and error; "" makes a follower."""
    found = [(outbox_row(key), error) for key, error in rows]
    withheld.withhold(found, using="default")
    return [row.id for row, _error in found]


def states() -> list[str]:
    return list(WithheldMessage.objects.order_by("pk").values_list("state", flat=True))


def turn() -> list[int]:
    return withheld.publishable(100, using="default")


def test_followers_wait_while_an_older_row_of_their_key_is_refused() -> None:
    """Those of other keys, and those before the refused one, are free."""
    a1, _a2, a3, b1, _b2 = set_aside(("a", ""), ("a", "no"), ("a", ""), ("b", ""), ("b", "no"))
    assert turn() == [a1, b1]
    withheld.discard([_a2], reason="test")
    assert turn() == [a1, a3, b1]


def test_a_released_row_has_its_turn_before_its_followers() -> None:
    """In the order of the outbox."""
    ids = set_aside(("a", "no"), ("a", ""), ("a", ""))
    assert turn() == []
    assert withheld.release([ids[0]]) == 1
    assert turn() == ids
    assert withheld.publishable(2, using="default") == ids[:2]


def test_a_released_row_waits_for_an_older_refused_one_of_its_key() -> None:
    """Releasing the second does not let it overtake the first."""
    ids = set_aside(("a", "no"), ("a", "no"), ("a", ""))
    withheld.release([ids[1]])
    assert turn() == []
    withheld.release([ids[0]])
    assert turn() == ids


def test_rows_without_key_wait_for_nobody() -> None:
    """A refused row without key has no followers."""
    ids = set_aside((None, "no"), (None, "no"))
    withheld.release([ids[1]])
    assert turn() == [ids[1]]


def test_chains_are_open_until_all_of_theirs_is_settled() -> None:
    """Newer rows of a key follow as long as anything of it is aside."""
    ids = set_aside(("a", "no"), ("a", ""), ("b", "no"))
    keys = ["a", "b", "c"]
    a, b = ("library.note", "", "a"), ("library.note", "", "b")
    assert withheld.open_chains(keys, using="default") == {a, b}
    withheld.discard([ids[0], ids[2]], reason="test")
    assert withheld.open_chains(keys, using="default") == {a}
    withheld.mark_published([ids[1]], using="default")
    assert withheld.open_chains(keys, using="default") == set()
    assert states() == ["discarded", "published", "discarded"]


@pytest.mark.parametrize("state", ["waiting", "published", "discarded"])
@pytest.mark.parametrize("action", ["release", "discard"])
def test_only_refused_rows_can_be_released_or_discarded(action: str, state: str) -> None:
    """If one of several is not, none is touched, and the error names it."""
    ids = set_aside(("a", "no"), ("b", "no"))
    WithheldMessage.objects.filter(pk=ids[1]).update(state=state)
    acts: dict[str, Callable[[list[int]], int]] = {
        "release": withheld.release,
        "discard": partial(withheld.discard, reason="test"),
    }
    with pytest.raises(InvalidStateError, match=rf"{ids[1]} is {state}; only refused ones"):
        acts[action](ids)
    assert states() == ["refused", state]


def test_a_row_that_is_refused_again_keeps_the_newer_cause() -> None:
    """It is one withheld message, however often it was tried."""
    row = outbox_row("a")
    withheld.withhold([(row, "first")], using="default")
    withheld.release([row.id])
    withheld.withhold([(row, "second")], using="default")
    message = WithheldMessage.objects.get()
    assert (message.state, message.error) == ("refused", "second")


def test_who_settles_a_row_stands_in_the_admin_log() -> None:
    """With the reason; the row keeps reason and time as well."""
    user = User.objects.create(username="librarian")
    ids = set_aside(("a", "no"), ("b", "no"))
    withheld.release([ids[0]], by=user)
    withheld.discard([ids[1]], reason="a test entry", by=user)
    entries = LogEntry.objects.order_by("pk").values_list("object_id", "user", "change_message")
    assert list(entries) == [
        (str(ids[0]), user.pk, "released"),
        (str(ids[1]), user.pk, "discarded: a test entry"),
    ]
    released, discarded = WithheldMessage.objects.order_by("pk")
    assert released.resolved_at is None
    assert discarded.reason == "a test entry"
    assert discarded.resolved_at is not None


def test_a_program_that_settles_a_row_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Without a user the logger hears of it."""
    ids = set_aside(("a", "no"))
    with caplog.at_level(logging.INFO, logger="folio_events.audit"):
        withheld.discard(ids, reason="cleaning")
    assert "1 withheld messages by a program: discarded: cleaning" in caplog.text
    assert not LogEntry.objects.exists()


def test_ids_that_are_not_withheld_are_not_counted() -> None:
    """The number says how many rows changed."""
    ids = set_aside(("a", "no"))
    assert withheld.release([*ids, 10**9]) == 1
    assert withheld.release([]) == 0
