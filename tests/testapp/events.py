"""Events of the test models."""

from __future__ import annotations

from folio_events import ModelEvents, events
from tests.testapp.models import Book, Chapter


@events.register(Book)
class BookEvents(ModelEvents):
    topic = "library.book"
    owner = "tests"


@events.register(Chapter)
class ChapterEvents(ModelEvents):
    topic = "library.chapter"
    fields = ["id", "book", "title"]
    key = "book"
    owner = "tests"
