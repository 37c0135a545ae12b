"""The command ``retry_deliveries``: one retry pass, and single deliveries on demand."""

from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from folio_events import RetryPolicy
from folio_events.models import Delivery
from tests.note_topic import Mood, NoteTopic, effects, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


def retry(*arguments: str) -> str:
    out = io.StringIO()
    call_command("retry_deliveries", *arguments, stdout=out)
    return out.getvalue()


def failed(notes: NoteTopic, keys: str, **policy: float) -> Mood:
    """Deliveries of a receiver that failed once on each note."""
    mood = Mood(*range(len(keys)))
    note_receiver("one", mood, order="none", retry=RetryPolicy(**policy))  # type: ignore[arg-type]
    notes.put_all(keys)
    notes.consume()
    return mood


def test_it_runs_what_is_due(notes: NoteTopic) -> None:
    """And says what came of it."""
    mood = failed(notes, "abc", backoff=100)
    assert retry() == "resolved 0, failed 0\n"
    Delivery.objects.update(next_attempt_at=timezone.now())
    mood.bad = {1}
    assert retry() == "resolved 2, failed 1\n"
    assert sorted(effects("one")) == [0, 2]


def test_a_limit_can_be_given(notes: NoteTopic) -> None:
    """The rest stays due."""
    failed(notes, "abc", backoff=0).bad.clear()
    assert retry("--limit", "2") == "resolved 2, failed 0\n"
    assert retry() == "resolved 1, failed 0\n"


def test_single_deliveries_run_now(notes: NoteTopic) -> None:
    """Also dead ones and those whose pause is not over."""
    failed(notes, "abc", attempts=1).bad.clear()
    first, second, _third = Delivery.objects.order_by("pk")
    assert retry("--id", str(first.pk), "--id", str(second.pk)) == "resolved 2, failed 0\n"
    assert sorted(Delivery.objects.values_list("state", flat=True)) == [
        "dead",
        "resolved",
        "resolved",
    ]


def test_a_settled_delivery_is_refused(notes: NoteTopic) -> None:
    """The message says what state it is in."""
    failed(notes, "a", backoff=0).bad.clear()
    retry()
    with pytest.raises(CommandError, match="is resolved; only open ones can be retried"):
        retry("--id", str(Delivery.objects.get().pk))


def test_a_delivery_that_does_not_exist_is_named(notes: NoteTopic) -> None:
    """A slip of the finger does not look like success."""
    failed(notes, "a", backoff=0).bad.clear()
    with pytest.raises(CommandError, match="No such delivery: 4711"):
        retry("--id", "4711", "--id", str(Delivery.objects.get().pk))
    assert Delivery.objects.get().state == "retrying"


def test_one_receiver_runs_alone(notes: NoteTopic) -> None:
    """An unknown one is an error."""
    mood = Mood(0)
    for name in ("one", "two"):
        note_receiver(name, mood)
    notes.put("a", 0)
    notes.consume()
    Delivery.objects.update(next_attempt_at=timezone.now())
    mood.bad = set()
    assert retry("--receiver", "two") == "resolved 1, failed 0\n"
    assert (effects("one"), effects("two")) == ([], [0])
    with pytest.raises(CommandError, match="is registered as three"):
        retry("--receiver", "three")


def test_a_rate_slows_it_down(notes: NoteTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits between deliveries, in no transaction, until each has its time."""
    waited: list[float] = []
    monkeypatch.setattr(
        "folio_events.management.commands.retry_deliveries.time.sleep", waited.append
    )
    mood = failed(notes, "abc")
    Delivery.objects.update(next_attempt_at=timezone.now())
    mood.bad = set()
    assert retry("--rate", "0.1") == "resolved 3, failed 0\n"
    assert [round(seconds, -1) for seconds in waited] == [10, 20, 30]
    with pytest.raises(CommandError, match="above 0"):
        retry("--rate", "0")
