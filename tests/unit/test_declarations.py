"""ModelEvents and its registry: what is taken, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import models

from folio_events import ModelEvents, events
from folio_events.declarations import EventsRegistry
from folio_events.exceptions import ConfigurationError
from tests.testapp.events import BookEvents
from tests.testapp.models import Book, BookProxy, Chapter


@pytest.fixture
def registry() -> EventsRegistry:
    """A registry of the test's own."""
    return EventsRegistry()


def declare(**attributes: Any) -> Any:
    """A declaration with these attributes."""
    return type("Declared", (ModelEvents,), {"topic": "library.book", **attributes})


def registered(
    registry: EventsRegistry, model: type[models.Model], **attributes: Any
) -> ModelEvents:
    registry.register(model)(declare(**attributes))
    found = registry.find(model)
    assert found is not None
    return found


def test_a_registered_model_is_found(registry: EventsRegistry) -> None:
    """The decorator gives back the class it was given."""
    declaration = declare()

    assert registry.register(Book)(declaration) is declaration

    found = registry.find(Book)
    assert type(found) is declaration
    assert [type(one) for one in registry] == [declaration]
    assert len(registry) == 1


def test_a_model_that_is_not_registered_is_not_found(registry: EventsRegistry) -> None:
    """Nor is one that was forgotten again."""
    registry.register(Book)(declare())
    assert registry.find(Chapter) is None

    registry.unregister(Book)
    assert registry.find(Book) is None
    registry.unregister(Book)


def test_a_proxy_stands_for_its_model(registry: EventsRegistry) -> None:
    """Writes through another face of the rows are captured as well."""
    declaration = registered(registry, Book)

    assert registry.find(BookProxy) is declaration


def test_the_declarations_of_the_project_are_found_in_its_apps() -> None:
    """``events.py`` of each app is imported when Django starts."""
    assert isinstance(events.find(Book), BookEvents)
    assert "library.book" in events.topics()
    assert events.topics() == sorted(set(events.topics()))


def test_all_fields_are_shown_but_those_excluded(registry: EventsRegistry) -> None:
    """Without ``fields`` every column is, relations under their own names."""
    shown = registered(registry, Chapter).shown_fields
    assert list(shown) == ["id", "book", "title"]
    registry.unregister(Chapter)

    assert list(registered(registry, Chapter, exclude=["title"]).shown_fields) == ["id", "book"]


def test_named_fields_are_shown_in_their_order(registry: EventsRegistry) -> None:
    """``pk`` and the column of a relation may be named too."""
    shown = registered(registry, Chapter, fields=["title", "book_id", "pk"]).shown_fields

    assert [(name, field.attname) for name, field in shown.items()] == [
        ("title", "title"),
        ("book_id", "book_id"),
        ("pk", "id"),
    ]


@pytest.mark.parametrize(
    ("key", "attname", "is_primary"),
    [("pk", "id", True), ("id", "id", True), ("book", "book_id", False), ("title", "title", False)],
)
def test_the_key_is_a_field(
    registry: EventsRegistry, key: str, attname: str, is_primary: bool
) -> None:
    """Only the row's own primary key needs no lock to have a commit order."""
    declaration = registered(registry, Chapter, key=key)

    assert declaration.key_field.attname == attname
    assert declaration.key_is_primary_key is is_primary


def test_models_may_share_a_topic(registry: EventsRegistry) -> None:
    """Capture asks, because then the primary key alone gives no order."""
    book = registered(registry, Book)
    assert not registry.shares_topic(book)

    chapter = registered(registry, Chapter)

    assert registry.shares_topic(book)
    assert registry.shares_topic(chapter)
    assert registry.topics() == ["library.book"]


def test_a_second_registration_is_refused(registry: EventsRegistry) -> None:
    """The error names the model and both declarations."""
    first, second = (
        type(name, (ModelEvents,), {"topic": "library.book"}) for name in ("First", "Second")
    )
    registry.register(Book)(first)

    with pytest.raises(ConfigurationError, match=r"testapp\.Book .*First.*Second"):
        registry.register(Book)(second)

    assert type(registry.find(Book)) is first


class Abstract(models.Model):
    class Meta:
        abstract = True
        app_label = "testapp"


@pytest.mark.parametrize("model", [BookProxy, Abstract])
def test_a_model_without_table_of_its_own_is_refused(
    registry: EventsRegistry, model: type[models.Model]
) -> None:
    """Its rows belong to another model, which is to be registered."""
    with pytest.raises(ConfigurationError, match="abstract or a proxy"):
        registry.register(model)(declare())


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"topic": "library book"}, "'library book' is no topic"),
        ({"topic": "library.*"}, "is no topic"),
        ({"dialect": "avro"}, "'avro' is no dialect"),
        ({"fields": ["titel"]}, "fields names 'titel' of testapp.Book, but it has no such field"),
        ({"fields": ["chapters"]}, "'chapters'.*no column of its own"),
        ({"exclude": ["titel"]}, "exclude names 'titel'"),
        ({"key": "titel"}, "key names 'titel'"),
        ({"key": "chapters"}, "key names 'chapters'"),
        ({"fields": ["title"], "exclude": ["copies"]}, "not both"),
        ({"serializer_class": object, "fields": ["title"]}, "not two"),
        ({"serializer_class": object, "exclude": ["title"]}, "not two"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(
    registry: EventsRegistry, attributes: dict[str, Any], reason: str
) -> None:
    """The error says what is wrong, and the model stays unregistered."""
    with pytest.raises(ConfigurationError, match=reason):
        registry.register(Book)(declare(**attributes))

    assert registry.find(Book) is None


def test_a_declaration_without_topic_is_refused(registry: EventsRegistry) -> None:
    """There is no name that could be guessed."""
    with pytest.raises(ConfigurationError, match=r"Nameless names no topic"):
        registry.register(Book)(type("Nameless", (ModelEvents,), {}))


def test_a_declaration_that_is_no_model_events_is_refused(registry: EventsRegistry) -> None:
    """A class that was not derived is named."""
    with pytest.raises(ConfigurationError, match=r"Stranger must be a subclass of ModelEvents"):
        registry.register(Book)(type("Stranger", (), {"topic": "library.book"}))
