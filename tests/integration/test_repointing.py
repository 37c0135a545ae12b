"""Deliveries of receivers that are no more: shown as such, and handed to another receiver."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connections
from django.test import Client
from django.urls import reverse

from folio_events import deliveries
from folio_events.exceptions import InvalidStateError
from folio_events.models import Delivery
from folio_events.receivers import registry
from folio_events.redelivery import retry_due
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db

LeftOver = Callable[[str], list[int]]
LIST = reverse("admin:folio_events_delivery_changelist")


@pytest.fixture
def left_over(notes: NoteTopic) -> LeftOver:
    """Open deliveries of a receiver "old" that is gone; one for each letter, its key."""

    def leave(keys: str) -> list[int]:
        note_receiver("old", Mood(*range(100)))
        notes.put_all(keys)
        notes.consume()
        registry.remove("old")
        notes.restart()
        return list(Delivery.objects.order_by("pk").values_list("pk", flat=True))

    return leave


def test_a_repointed_delivery_runs_in_the_new_receiver(left_over: LeftOver) -> None:
    """As if it had come to it at first: order, group and attempts are the new receiver's."""
    ids = left_over("a")
    note_receiver("new", group="other", order="none")
    assert deliveries.vanished(using="default") == {"old"}
    assert deliveries.repoint(ids, receiver="new") == 1
    moved = Delivery.objects.get()
    assert (moved.receiver, moved.group, moved.order) == ("new", "other", "none")
    assert (moved.state, moved.attempts) == ("retrying", 0)
    assert retry_due().resolved == 1
    assert effects("new") == [0]
    assert deliveries.vanished(using="default") == set()


def test_a_dead_letter_has_all_its_attempts_again(left_over: LeftOver) -> None:
    """Re-pointed, it is no dead letter any more."""
    ids = left_over("a")
    Delivery.objects.update(state="dead", next_attempt_at=None, attempts=5)
    note_receiver("new", Mood(0))
    deliveries.repoint(ids, receiver="new")
    assert retry_due().failed == 1
    assert Delivery.objects.get().state == "retrying"


def test_repointed_deliveries_run_in_the_order_of_their_key(
    left_over: LeftOver, notes: NoteTopic
) -> None:
    """Whatever the order of the ids that were named, and behind an older one of the receiver."""
    note_receiver("new", Mood(7))
    notes.put("a", 7)
    notes.consume()
    new, own = registry.get("new"), Delivery.objects.get()
    assert new is not None
    registry.remove("new")
    notes.restart()
    ids = left_over("aa")[1:]
    registry.add(new)
    deliveries.repoint(ids[::-1], receiver="new")
    Delivery.objects.filter(pk=own.pk).update(state="dead")
    assert retry_due().resolved == 0
    deliveries.discard([own.pk], reason="not needed")
    assert retry_due().resolved == 2
    assert effects("new") == [0, 1]


def test_one_that_would_run_after_a_later_event_is_refused(
    left_over: LeftOver, notes: NoteTopic
) -> None:
    """An older event whose row is newer than that of a later one is named, and nothing moves."""
    early, late = left_over("aa")
    note_receiver("new", Mood(1))
    Delivery.objects.filter(pk=early).update(receiver="new", offset=1)
    Delivery.objects.filter(pk=late).update(offset=0)
    with pytest.raises(InvalidStateError, match=f"{early} would run before delivery {late}"):
        deliveries.repoint([late], receiver="new")
    assert Delivery.objects.get(pk=late).receiver == "old"
    Delivery.objects.filter(pk=early).update(receiver="old")
    Delivery.objects.filter(pk=late).update(receiver="new")
    with pytest.raises(InvalidStateError, match=f"{early} would run before delivery {late}"):
        deliveries.repoint([early], receiver="new")


@pytest.mark.parametrize(
    ("prepare", "receiver", "said"),
    [
        (lambda: None, "nobody", "No receiver is registered as 'nobody'"),
        (
            lambda: note_receiver("books", topic="library.book"),
            "books",
            "is of topic 'library.note'; 'books' listens to 'library.book'",
        ),
        (
            lambda: note_receiver("typed", types=["UPDATE"]),
            "typed",
            "is of type 'note', which 'typed' does not take",
        ),
        (lambda: note_receiver("old"), "old", "belongs to 'old', which is registered"),
        (
            lambda: (note_receiver("new"), Delivery.objects.update(state="resolved")),
            "new",
            "is resolved; only open ones",
        ),
    ],
    ids=["unknown", "other topic", "other type", "registered", "settled"],
)
def test_what_does_not_fit_is_refused(
    left_over: LeftOver, prepare: Callable[[], object], receiver: str, said: str
) -> None:
    """It says why, and no delivery is touched."""
    ids = left_over("ab")
    prepare()
    before = list(Delivery.objects.order_by("pk").values())
    with pytest.raises(InvalidStateError, match=said):
        deliveries.repoint(ids, receiver=receiver)
    assert list(Delivery.objects.order_by("pk").values()) == before


@pytest.mark.parametrize("state", ["retrying", "resolved"])
def test_an_event_that_the_new_receiver_has_is_refused(left_over: LeftOver, state: str) -> None:
    """A delivery of the event, in whatever state, is the new receiver's own answer to it."""
    note_receiver("new", Mood(0))
    ids = left_over("a")
    Delivery.objects.filter(receiver="new").update(state=state)
    [old] = Delivery.objects.filter(pk__in=ids, receiver="old").values_list("pk", flat=True)
    with pytest.raises(InvalidStateError, match="'new' has a delivery of one of these events"):
        deliveries.repoint([old], receiver="new")


def test_an_event_that_took_effect_there_takes_no_second_one(
    left_over: LeftOver, notes: NoteTopic
) -> None:
    """The inbox of the new receiver is asked as ever: the delivery is resolved without a run."""
    started = note_receiver("new")
    ids = left_over("a")
    assert effects("new") == [0]
    started.clear()
    deliveries.repoint(ids, receiver="new")
    assert retry_due().resolved == 1
    assert started == []


def test_who_repointed_what_is_logged(left_over: LeftOver) -> None:
    """Django's log names the user, and both receivers."""
    ids = left_over("ab")
    note_receiver("new")
    user = User.objects.create(username="ann")
    deliveries.repoint(ids, receiver="new", by=user)
    entries = LogEntry.objects.all()
    assert [entry.user for entry in entries] == [user, user]
    assert {entry.get_change_message() for entry in entries} == {"re-pointed from old to new"}


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_of_two_people_at_once_one_repoints(left_over: LeftOver) -> None:
    """The second is told that the deliveries have a registered receiver now."""
    ids = left_over("ab")
    note_receiver("new")
    note_receiver("newer")
    start = threading.Barrier(2)

    def attempt(name: str) -> str:
        try:
            start.wait(10)
            deliveries.repoint(ids, receiver=name)
        except InvalidStateError as error:
            return str(error)
        finally:
            connections.close_all()
        return ""

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(attempt, ["new", "newer"]))
    assert sorted(map(bool, said)) == [False, True]
    assert "which is registered" in max(said)
    assert Delivery.objects.values("receiver").distinct().count() == 1


# The admin


def client(*permissions: str) -> Client:
    """A browser of somebody who may do this and no more."""
    user = User.objects.create_user("-".join(permissions), is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(codename__in=permissions, content_type__app_label="folio_events")
    )
    browser = Client()
    browser.force_login(user)
    return browser


def test_the_admin_filters_what_nobody_takes(left_over: LeftOver) -> None:
    """Open deliveries of vanished receivers alone; settled ones need nobody."""
    note_receiver("new", Mood(0, 1, 2))
    left_over("abc")
    gone = list(Delivery.objects.filter(receiver="old").order_by("-pk"))
    Delivery.objects.filter(pk=gone[0].pk).update(state="discarded")
    response = client("view_delivery").get(LIST, {"vanished": "yes"})
    assert [row.pk for row in response.context["cl"].result_list] == [row.pk for row in gone[1:]]
    assert "vanished" in response.content.decode()


def test_the_admin_asks_for_the_receiver_and_repoints(left_over: LeftOver) -> None:
    """What was chosen on the list, and nothing that came since, goes to the receiver chosen."""
    ids = left_over("ab")
    note_receiver("new")
    browser = client("view_delivery", "repoint_delivery")
    page = browser.post(LIST, {"action": "repoint", "_selected_action": ids[:1]}).content.decode()
    assert '<option value="new">' in page
    fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page))
    said = browser.post(LIST, {**fields, "receiver": "new"}, follow=True).content.decode()
    assert "1 delivery runs in new at the next retry pass." in said
    assert [d.receiver for d in Delivery.objects.order_by("pk")] == ["new", "old"]


def test_the_admin_says_why_it_does_not_repoint(left_over: LeftOver) -> None:
    """A refusal is a message; a receiver that is none is asked for again."""
    ids = left_over("a")
    note_receiver("books", topic="library.book")
    browser = client("view_delivery", "repoint_delivery")
    fields = {"action": "repoint", "_selected_action": ids, "ids": str(ids[0])}
    said = browser.post(LIST, {**fields, "receiver": "books"}, follow=True).content.decode()
    assert "listens to" in said
    again = browser.post(LIST, {**fields, "receiver": "nobody"}, follow=True).content.decode()
    assert "Select a valid choice" in again
    assert Delivery.objects.get().receiver == "old"


def test_repointing_needs_its_own_permission(left_over: LeftOver) -> None:
    """Who may retry and discard may not re-point."""
    ids = left_over("a")
    note_receiver("new")
    browser = client("view_delivery", "retry_delivery", "discard_delivery")
    assert 'value="repoint"' not in browser.get(LIST).content.decode()
    fields = {"action": "repoint", "_selected_action": ids, "ids": str(ids[0])}
    browser.post(LIST, {**fields, "receiver": "new"}, follow=True)
    assert Delivery.objects.get().receiver == "old"
