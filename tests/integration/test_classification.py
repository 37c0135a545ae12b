"""What a failure becomes: the table of the page, row by row."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError
from django.utils import timezone

from folio_events import RejectEvent, RetryLater, RetryPolicy
from folio_events.event import Event
from folio_events.models import Delivery, Orphan
from folio_events.redelivery import retry_due
from tests.note_topic import Mood, NoteTopic, effects, note_receiver
from tests.pages import page
from tests.testapp.models import Effect

pytestmark = pytest.mark.django_db(transaction=True)

Scenario = Callable[[NoteTopic], object]


def record(value: bytes | None, key: bytes | None = b"k") -> Scenario:
    """Nothing but a record arrives."""

    def happen(notes: NoteTopic) -> None:
        note_receiver("one")
        notes.put_raw(value, key)

    return happen


def raised(error: Exception, **policy: Any) -> Scenario:
    """The receiver raises an error at its first note."""

    def happen(notes: NoteTopic) -> None:
        note_receiver("one", Mood(0, error=error), retry=RetryPolicy(**policy))
        notes.put()

    return happen


class DeadlockError(Exception):
    """What the driver says of a deadlock. Source: PostgreSQL manual, appendix A."""

    sqlstate = "40P01"


def passing_fault(notes: NoteTopic) -> None:
    faults = [OperationalError("deadlock detected")]
    faults[0].__cause__ = DeadlockError()

    def deadlock_once(_event: Event) -> None:
        if faults:
            raise faults.pop()

    note_receiver("one", deadlock_once)
    notes.put()


def swallowed(notes: NoteTopic) -> None:
    def swallow(event: Event) -> None:
        with suppress(IntegrityError):
            Effect.objects.create(
                pk=Effect.objects.latest("pk").pk, receiver="one", event_id=event.id
            )

    note_receiver("one", swallow)
    notes.put()


def process_ended(notes: NoteTopic) -> None:
    note_receiver("one", Mood(0), retry=RetryPolicy(attempts=3))
    notes.put()
    notes.consume()
    Delivery.objects.update(attempts=3, unfinished=True, next_attempt_at=timezone.now())
    retry_due()


def nobodys(**tenants: Any) -> Scenario:
    def happen(notes: NoteTopic) -> None:
        note_receiver("one")
        notes.put(**tenants)

    return happen


SCENARIOS: dict[str, Scenario] = {
    "the body is no UTF-8": record(b"\xff"),
    "the body is no JSON object": record(b"[1]"),
    "there is neither body nor key": record(None, None),
    "a member breaks the rules of its dialect": record(
        b'{"eventId": "1", "type": "UPDATE", "tenant": "diku", "new": 7}'
    ),
    "nobody says whose it is": nobodys(),
    "two say different tenants": nobodys(tenant="diku", headers=[("folio.tenantId", b"college")]),
    "the receiver raises `RejectEvent`": raised(RejectEvent("no such loan")),
    "the receiver raises what `give_up_on` has": raised(ValueError(), give_up_on=(ValueError,)),
    "the receiver raises what `retry_on` has not": raised(ValueError(), retry_on=(OSError,)),
    "the receiver raises anything else": raised(ValueError()),
    "the receiver raises `RetryLater`": raised(RetryLater(seconds=5)),
    "the receiver swallows a database error": swallowed,
    "the last attempt fails": raised(ValueError(), attempts=1),
    "the process ends during the last attempt": process_ended,
    "a passing fault of the database": passing_fault,
}


def documented() -> dict[str, str]:
    text = page("docs/howto/retry-and-dead-letters.md").text
    table = text.partition("| what happens | becomes |\n|---|---|\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.M))


def test_the_page_has_these_failures_and_no_others() -> None:
    """Each row is one of the scenarios."""
    assert documented().keys() == SCENARIOS.keys()


@pytest.mark.parametrize("what", SCENARIOS)
def test_each_failure_becomes_what_the_page_says(
    notes: NoteTopic, folio_events: Callable[..., None], what: str
) -> None:
    """A delivery in a state, an orphan, or nothing."""
    becomes = documented()[what]
    if becomes == "orphan":
        folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")
        notes = NoteTopic(notes.broker, wire="folio.ALL.library.note")
    SCENARIOS[what](notes)
    notes.consume()
    states = list(Delivery.objects.values_list("state", flat=True))
    found = {
        "dead letter": states == ["dead"] and effects("one") == [],
        "retrying": states == ["retrying"] and effects("one") == [],
        "orphan": Orphan.objects.filter(state="open").count() == 1 and not states,
        "resolved on the spot": not states and effects("one") == [0],
    }
    assert [name for name, holds in found.items() if holds] == [becomes]
