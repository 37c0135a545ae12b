"""``backfill_events`` starts, counts, lists, stops and resumes back-fills."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from folio_events import suppress_events
from folio_events.models import Backfill, OutboxMessage
from folio_events.operations.backfill import declared, find, start, step
from tests.real_commands import RealCommand, environment
from tests.testapp.models import Book, Chapter

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def books() -> list[Book]:
    """Rows from before there were events."""
    with suppress_events():
        return [Book.objects.create(title=f"book {n}", copies=n) for n in range(4)]


def run(*arguments: str) -> list[str]:
    out = io.StringIO()
    call_command("backfill_events", *arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue().splitlines()


def types() -> list[str]:
    return list(OutboxMessage.objects.values_list("event_type", flat=True))


def test_a_model_is_filled_and_the_job_told(books: list[Book]) -> None:
    """With what became of it; as JSON for machines."""
    (line,) = run("testapp.book", "--filter", "copies__gte=2", "--type", "CREATE", "--json")
    job = json.loads(line)
    assert (job["model"], job["state"], job["events"]) == ("testapp.Book", "done", 2)
    assert types() == ["CREATE"] * 2


def test_all_models_are_filled_one_after_the_other(books: list[Book]) -> None:
    """Each as a job of its own."""
    with suppress_events():
        Chapter.objects.create(book=books[0], title="one")
    run("--all")
    assert OutboxMessage.objects.count() == 5
    assert not Backfill.objects.exclude(state="done").exists()


def test_a_dry_run_counts_and_records_nothing(books: list[Book]) -> None:
    """By the same filters, and behind the same key."""
    assert run("testapp.Book", "--dry-run") == ["testapp.Book: 4 rows to library.book"]
    since = str(books[1].pk)
    (line,) = run("testapp.Book", "--dry-run", "--exact", "--json", "--since", since)
    assert json.loads(line) == {"model": "testapp.Book", "rows": 2}
    assert not Backfill.objects.exists()
    assert not OutboxMessage.objects.exists()


def test_a_job_is_cancelled_listed_and_resumed(books: list[Book]) -> None:
    """By its id."""
    assert run("--list") == ["No back-fills."]
    job = start(declared("testapp.Book"))
    step(job, limit=1)
    assert run("--cancel", str(job.pk)) == ["cancelled"]
    assert run("--cancel", str(job.pk)) == ["it was not running"]
    assert run("--list") == [
        f"{job.pk} testapp.Book as REINDEX: cancelled, 1 rows passed, 1 events"
    ]
    assert run("--resume", str(job.pk)) == [
        f"{job.pk} testapp.Book as REINDEX: done, 4 rows passed, 4 events"
    ]


def test_it_asks_for_the_tenant_where_tenancy_is_on(
    books: list[Book], folio_events: Callable[..., None]
) -> None:
    """By the name of its option."""
    folio_events(TENANCY="folio")
    with pytest.raises(CommandError, match="--tenant"):
        run("testapp.Book")


def test_ctrl_c_says_how_to_go_on(books: list[Book], monkeypatch: pytest.MonkeyPatch) -> None:
    """The job stays as it is, to be resumed."""
    import os
    import signal

    from folio_events.operations import backfill

    real = backfill.step

    def interrupted(*args: Any, **options: Any) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **{**options, "limit": 2})

    monkeypatch.setattr(backfill, "step", interrupted)
    errors = io.StringIO()
    call_command("backfill_events", "testapp.Book", stdout=io.StringIO(), stderr=errors)
    job = Backfill.objects.get()
    assert f"--resume {job.pk}" in errors.getvalue()
    assert (find(job.pk).state, find(job.pk).passed) == ("running", 2)


def test_a_killed_command_is_resumed_and_each_row_has_one_event(tmp_path: Path) -> None:
    """SIGKILL at whatever moment: position and events are one transaction."""
    with suppress_events():
        Book.objects.bulk_create([Book(title=str(n)) for n in range(400)])
    command = RealCommand(
        tmp_path, "backfill_events", "testapp.Book", "--rate", "40", env=environment()
    )
    command.wait_for(lambda: Backfill.objects.filter(passed__gt=40).exists())
    command.process.kill()
    job = Backfill.objects.get()
    assert (job.state, 40 < job.passed < 400) == ("running", True)
    run("--resume", str(job.pk))
    keys = list(OutboxMessage.objects.order_by("id").values_list("key", flat=True))
    books = Book.objects.order_by("pk").values_list("pk", flat=True)
    assert keys == [str(pk) for pk in books]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name models, or give --all"),
        (["testapp.Book", "--all"], "Name models, or give --all"),
        (["testapp.Nothing"], "is no model with events"),
        (["testapp.Book", "--filter", "copies"], "LOOKUP=VALUE"),
        (["testapp.Book", "--rate", "0"], "above 0"),
        (["--resume", "00000000-0000-0000-0000-000000000000"], "There is no back-fill"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    """With what to do instead."""
    with pytest.raises(CommandError, match=said):
        run(*arguments)
