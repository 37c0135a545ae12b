"""A deletion locks the row as the deletion itself will, before it reads it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from django.db import connection, transaction

from folio_events.models import OutboxMessage
from tests.testapp.models import Book, Chapter

pytest_plugins = ("tests.recording", "tests.second_connection")
pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


@pytest.mark.parametrize("count", [1, 2], ids=["one row", "several rows"])
def test_who_refers_to_a_row_and_then_writes_it_meets_no_deadlock(
    other: Callable[[Callable[[], Any]], Future[Any]],
    until_somebody_waits: Callable[[], None],
    count: int,
) -> None:
    """A weaker lock is had beside the reference; the deletion then waits for that, and is waited for."""
    books = [Book.objects.create(title=f"b{n}") for n in range(count)]
    with transaction.atomic():
        # Django has references checked at the commit, other programs and constraints at once.
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        chapter = Chapter.objects.create(book=books[0], title="I")
        deletion = other(Book.objects.filter(pk__in=[book.pk for book in books]).delete)
        until_somebody_waits()
        books[0].title = "written"
        books[0].save()
        chapter.delete()

    assert deletion.result(30)[0] == count
    deleted = OutboxMessage.objects.filter(event_type="DELETE", topic="library.book")
    assert deleted.count() == count
    payload = deleted.get(key=str(books[0].pk)).payload
    assert b'"title":"written"' in bytes(payload or b"")
