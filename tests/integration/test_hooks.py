"""Which writes are captured, through which face of a model, and what the capture leaves alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core import serializers
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import Model
from django.db.models.signals import ModelSignal, post_delete, post_save, pre_save
from django.test.utils import CaptureQueriesContext

from folio_events import hooks, suppress_events
from folio_events.exceptions import ConfigurationError
from folio_events.models import InboxEntry, OutboxMessage
from tests.testapp.models import Book, BookProxy, Chapter, DisplayShelf, Effect, Note, Shelf

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db


class _HandlerError(Exception):
    """What a signal handler of the tests raises."""


@contextmanager
def connected(
    signal: ModelSignal, handler: Callable[..., None], sender: type[Model]
) -> Iterator[None]:
    """Have a handler connected during a block."""
    signal.connect(handler, sender=sender)
    try:
        yield
    finally:
        signal.disconnect(handler, sender=sender)


def fail(**_kwargs: object) -> None:
    raise _HandlerError


def kinds(recorded: Callable[[], list[Any]]) -> list[str]:
    return [event.type for event in recorded()]


class TestSignals:
    def test_a_save_within_post_save_is_the_second_event(self, recorded):
        """A post_save handler that saves the row again gives CREATE, then UPDATE, in that order."""

        def save_again(instance: Book, created: bool, **_kwargs: object) -> None:
            if created:
                instance.copies = 2
                instance.save()

        with connected(post_save, save_again, Book):
            Book.objects.create(title="Emma")
        create, update = recorded()
        assert (create.type, create.new["copies"]) == ("CREATE", 1)
        assert (update.type, update.old, update.new["copies"]) == ("UPDATE", create.new, 2)

    def test_a_save_of_another_row_within_post_save_is_an_event_of_its_own(self, recorded):
        """A handler's writes to other rows are recorded after the row that caused them."""

        def add_chapter(instance: Book, **_kwargs: object) -> None:
            Chapter.objects.create(book=instance, title="One")

        with connected(post_save, add_chapter, Book):
            Book.objects.create(title="Emma")
        assert [(e.topic, e.type) for e in recorded()] == [
            ("library.book", "CREATE"),
            ("library.chapter", "CREATE"),
        ]

    def test_a_write_to_the_row_within_pre_save_is_the_first_event(self, recorded):
        """What a pre_save handler wrote to the row is the old of the save that it came before."""
        book = Book.objects.create(title="Emma", copies=1)

        def count_up(instance: Book, **_kwargs: object) -> None:
            stored = Book.objects.get(pk=instance.pk)
            if stored.copies != 5 != instance.copies:
                stored.copies = 5
                stored.save()

        with connected(pre_save, count_up, Book):
            book.title = "Persuasion"
            book.save()
        create, inner, outer = recorded()
        assert (inner.old, inner.new["copies"]) == (create.new, 5)
        assert outer.old == inner.new
        assert (outer.new["title"], outer.new["copies"]) == ("Persuasion", 1)

    def test_a_field_that_pre_save_sets_is_shown(self, recorded):
        """What a pre_save handler assigned is in new."""

        def set_copies(instance: Book, **_kwargs: object) -> None:
            instance.copies = 8

        with connected(pre_save, set_copies, Book):
            Book.objects.create(title="Emma")
        assert recorded()[0].new["copies"] == 8

    @pytest.mark.django_db(transaction=True)
    def test_a_failing_post_save_undoes_the_save_in_autocommit(self, recorded):
        """In autocommit a post_save handler that raises leaves neither row nor event."""
        with connected(post_save, fail, Book), pytest.raises(_HandlerError):
            Book.objects.create(title="Emma")
        assert not Book.objects.exists()
        book = Book.objects.create(title="Emma")
        book.title = "Persuasion"
        with connected(post_save, fail, Book), pytest.raises(_HandlerError):
            book.save()
        assert Book.objects.get().title == "Emma"
        assert kinds(recorded) == ["CREATE"]

    @pytest.mark.django_db(transaction=True)
    def test_a_failing_post_delete_undoes_the_deletion(self, recorded):
        """A post_delete handler that raises leaves the row and no event of its deletion."""
        book = Book.objects.create(title="Emma")
        with connected(post_delete, fail, Book), pytest.raises(_HandlerError):
            book.delete()
        assert Book.objects.exists()
        assert kinds(recorded) == ["CREATE"]

    @pytest.mark.django_db(transaction=True)
    def test_a_failing_post_save_that_is_caught_spoils_no_transaction(self, recorded):
        """Within a transaction such an error may be caught as without events: row and event stay."""
        with transaction.atomic():
            with connected(post_save, fail, Book), pytest.raises(_HandlerError):
                Book.objects.create(title="Emma")
            Book.objects.create(title="Persuasion")
        assert [event.new["title"] for event in recorded()] == ["Emma", "Persuasion"]
        assert Book.objects.count() == 2


class TestForce:
    def test_force_insert_records_a_create(self, recorded):
        """save(force_insert=True) is a CREATE and reads nothing before."""
        with CaptureQueriesContext(connection) as captured:
            Book(pk=4711, title="Emma").save(force_insert=True)
        assert kinds(recorded) == ["CREATE"]
        assert not [query for query in captured.captured_queries if "SELECT" in query["sql"]]

    def test_force_insert_of_a_row_that_exists_records_nothing(self, recorded):
        """An insert that the database refuses leaves no event."""
        book = Book.objects.create(title="Emma")
        with pytest.raises(IntegrityError), transaction.atomic():
            Book(pk=book.pk, title="Persuasion").save(force_insert=True)
        assert kinds(recorded) == ["CREATE"]

    def test_force_update_of_a_new_instance_shows_the_row_before(self, recorded):
        """An instance made by hand and saved with force_update shows what it overwrote."""
        book = Book.objects.create(title="Emma")
        chapter = Chapter.objects.create(book=book, title="One")
        Chapter(pk=chapter.pk, book=book, title="Two").save(force_update=True)
        event = recorded()[-1]
        assert (event.type, event.old["title"], event.new["title"]) == ("UPDATE", "One", "Two")

    def test_force_update_of_no_row_records_nothing(self, recorded):
        """An update that finds no row leaves no event."""
        with pytest.raises(DatabaseError, match="did not affect any rows"), transaction.atomic():
            Book(pk=4711, title="Emma").save(force_update=True)
        assert recorded() == []


class TestOverriddenMethods:
    def test_an_overridden_save_is_captured(self, recorded, declare):
        """What a model's own save() sets is in the event."""
        declare(Note)
        note = Note.objects.create(text="To Do")
        note.text = "All Done"
        note.save()
        assert [event.new["slug"] for event in recorded()] == ["to-do", "all-done"]
        assert recorded()[1].old == recorded()[0].new

    def test_an_overridden_delete_is_captured(self, recorded, declare):
        """A model's own delete() runs, and the deletion is one event."""
        declare(Note)
        Note.objects.create(text="To Do").delete()
        assert kinds(recorded) == ["CREATE", "DELETE"]
        assert Effect.objects.get().receiver == "Note.delete"

    def test_old_does_not_depend_on_the_models_managers(self, recorded, declare):
        """A base manager that filters hides no row from the capture."""
        declare(Note)
        note = Note.objects.create(text="To Do")
        note.hidden = True
        note.save()
        note.delete()
        assert kinds(recorded) == ["CREATE", "UPDATE", "DELETE"]
        assert recorded()[2].old == recorded()[1].new
        assert recorded()[1].new["hidden"] is True

    def test_asynchronous_methods_are_captured(self, recorded):
        """asave(), acreate() and adelete() give the events of their synchronous twins."""

        async def write() -> None:
            book = await Book.objects.acreate(title="Emma")
            book.copies = 2
            await book.asave()
            await book.adelete()

        async_to_sync(write)()
        assert kinds(recorded) == ["CREATE", "UPDATE", "DELETE"]


class TestProxies:
    def test_writes_through_a_proxy_are_events_of_its_model(self, recorded):
        """Create, update and delete through a proxy are recorded once, as of the model itself."""
        book = BookProxy.objects.create(title="Emma")
        book.copies = 2
        book.save()
        BookProxy.objects.get().delete()
        assert [(event.topic, event.type) for event in recorded()] == [
            ("library.book", "CREATE"),
            ("library.book", "UPDATE"),
            ("library.book", "DELETE"),
        ]
        assert recorded()[2].old == recorded()[1].new

    def test_a_queryset_of_a_proxy_deletes_with_events(self, recorded):
        """QuerySet.delete() through a proxy records each row once."""
        Book.objects.create(title="Emma")
        Book.objects.create(title="Persuasion")
        BookProxy.objects.all().delete()
        assert kinds(recorded) == ["CREATE", "CREATE", "DELETE", "DELETE"]


class TestInheritance:
    """A row in two tables gives the events of each of its models that is declared."""

    def test_a_declared_child_shows_the_fields_of_both_tables(self, recorded, declare):
        """Writes to a declared child give one event each, with the parent's fields too."""
        declare(DisplayShelf)
        shelf = DisplayShelf.objects.create(label="A", theme="novels")
        shelf.label, shelf.theme = "B", "poems"
        shelf.save()
        pk = shelf.pk
        shelf.delete()
        shown = [
            (e.type, e.key, *((s and (s["label"], s["theme"])) for s in (e.old, e.new)))
            for e in recorded()
        ]
        assert shown == [
            ("CREATE", str(pk), None, ("A", "novels")),
            ("UPDATE", str(pk), ("A", "novels"), ("B", "poems")),
            ("DELETE", str(pk), ("B", "poems"), None),
        ]

    def test_update_fields_of_the_parent_alone_are_an_event_of_the_child(self, recorded, declare):
        """A save that writes only the parent's table is still an UPDATE of the declared child."""
        declare(DisplayShelf)
        shelf = DisplayShelf.objects.create(label="A", theme="novels")
        shelf.label, shelf.theme = "B", "dirty"
        shelf.save(update_fields=["label"])
        event = recorded()[-1]
        assert (event.type, event.new["label"], event.new["theme"]) == ("UPDATE", "B", "novels")

    def test_a_child_of_a_declared_parent_gives_the_parents_events(self, recorded, declare):
        """Writes to a child that is not declared are events of its declared parent."""
        declare(Shelf)
        shelf = DisplayShelf.objects.create(label="A", theme="novels")
        shelf.label = "B"
        shelf.save()
        shelf.delete()
        assert [
            (e.type, e.old and e.old["label"], e.new and e.new["label"]) for e in recorded()
        ] == [
            ("CREATE", None, "A"),
            ("UPDATE", "A", "B"),
            ("DELETE", "B", None),
        ]
        assert "theme" not in recorded()[0].new

    def test_a_child_added_to_a_row_updates_its_declared_parent(self, recorded, declare):
        """Extending a row by a row of a child's table is an UPDATE of the declared parent."""
        declare(Shelf)
        shelf = Shelf.objects.create(label="A")
        DisplayShelf(shelf_ptr=shelf, label="B", theme="novels").save()
        event = recorded()[-1]
        assert (event.type, event.old["label"], event.new["label"]) == ("UPDATE", "A", "B")

    def test_a_child_taken_from_a_row_leaves_its_declared_parent(self, recorded, declare):
        """delete(keep_parents=True) of a child is no event of the parent, whose row stays."""
        declare(Shelf)
        DisplayShelf.objects.create(label="A", theme="novels").delete(keep_parents=True)
        assert kinds(recorded) == ["CREATE"]

    def test_deleting_the_parent_deletes_the_declared_child(self, recorded, declare):
        """Deleting through the parent gives the declared child's DELETE, with all its fields."""
        declare(DisplayShelf)
        shelf = DisplayShelf.objects.create(label="A", theme="novels")
        Shelf.objects.get(pk=shelf.pk).delete()
        event = recorded()[-1]
        assert (event.type, event.old["label"], event.old["theme"]) == ("DELETE", "A", "novels")

    def test_parent_and_child_declared_each_give_their_events(self, recorded, declare):
        """With both declared, a child's write is an event of each: none without its others."""
        declare(Shelf)
        declare(DisplayShelf)
        shelf = DisplayShelf.objects.create(label="A", theme="novels")
        shelf.label = "B"
        shelf.save()
        shelf.delete()
        for topic in ("library.shelf", "library.displayshelf"):
            of_topic = [event for event in recorded() if event.topic == topic]
            assert [event.type for event in of_topic] == ["CREATE", "UPDATE", "DELETE"], topic
        assert len(recorded()) == 6


class TestRawAndSuppressed:
    def test_loading_a_fixture_records_nothing(self, recorded, tmp_path: Path):
        """loaddata writes rows as they are, without events."""
        path = tmp_path / "books.json"
        rows = [{"model": "testapp.book", "pk": 1, "fields": {"title": "Emma", "extra": {}}}]
        path.write_text(json.dumps(rows))
        call_command("loaddata", str(path), verbosity=0)
        assert Book.objects.get().title == "Emma"
        assert recorded() == []

    def test_a_deserialised_object_records_nothing(self, recorded):
        """What is restored from a dump is not an event."""
        dumped = serializers.serialize("json", [Book(pk=1, title="Emma")])
        for restored in serializers.deserialize("json", dumped):
            restored.save()
        assert Book.objects.exists()
        assert recorded() == []

    def test_a_raw_save_records_nothing(self, recorded):
        """save_base(raw=True), which fixtures use, is not an event."""
        Book(pk=1, title="Emma").save_base(raw=True)
        assert recorded() == []

    def test_suppressed_writes_record_nothing(self, recorded):
        """Within suppress_events() no model write is an event, after it each one is again."""
        with suppress_events():
            book = Book.objects.create(title="Emma")
            book.save()
            Book.objects.create(title="Persuasion").delete()
        assert recorded() == []
        book.save()
        assert kinds(recorded) == ["UPDATE"]

    def test_suppression_ends_with_its_block_when_it_fails(self, recorded):
        """An error within suppress_events() does not leave the events off."""
        with pytest.raises(_HandlerError), suppress_events():
            fail()
        Book.objects.create(title="Emma")
        assert kinds(recorded) == ["CREATE"]

    @pytest.mark.django_db(transaction=True)
    def test_suppression_holds_for_its_own_thread_only(self, recorded, at_once):
        """What another thread writes meanwhile is recorded."""
        with suppress_events():
            at_once([lambda: Book.objects.create(title="Emma")])
        assert kinds(recorded) == ["CREATE"]


class TestInstallation:
    def test_models_without_a_declaration_are_left_alone(self, recorded):
        """Writes of a model that is not registered cost nothing and record nothing."""
        assert not hasattr(Effect.save_base, "_folio_events")
        with transaction.atomic(), CaptureQueriesContext(connection) as captured:
            Effect.objects.create(receiver="tests", event_id=uuid.uuid4())
        assert len(captured.captured_queries) == 1
        assert recorded() == []

    def test_a_composite_primary_key_is_refused(self, declare):
        """A model with a composite primary key cannot be registered, and the error says why."""
        with pytest.raises(ConfigurationError, match="InboxEntry has a composite primary key"):
            declare(InboxEntry, topic="library.entry")

    def test_installing_twice_records_once(self, recorded):
        """install() may be called again without doubling events."""
        hooks.install()
        hooks.install()
        Book.objects.create(title="Emma").delete()
        assert kinds(recorded) == ["CREATE", "DELETE"]

    def test_uninstalling_leaves_django_as_it_was(self, recorded):
        """uninstall() gives the models their own methods back and takes the handlers away."""
        hooks.uninstall()
        try:
            assert Book.save_base is Model.save_base
            assert not {"save_base", "_save_table"} & vars(Book).keys()
            Book.objects.create(title="Emma").delete()
            assert not OutboxMessage.objects.exists()
        finally:
            hooks.install()
        Book.objects.create(title="Emma").delete()
        assert kinds(recorded) == ["CREATE", "DELETE"]

    @pytest.mark.parametrize("order", ["parent first", "child first"])
    def test_the_order_of_registration_does_not_matter(self, recorded, declare, order):
        """A child registered before or after its parent records its own events once."""
        models: list[type[Model]] = [Shelf, DisplayShelf]
        for model in models if order == "parent first" else reversed(models):
            declare(model)
        DisplayShelf.objects.create(label="A", theme="novels")
        Shelf.objects.create(label="B")
        child_events = [e for e in recorded() if e.topic == "library.displayshelf"]
        assert [event.type for event in child_events] == ["CREATE"]
        assert [e.new["label"] for e in recorded() if e.topic == "library.shelf"][-1] == "B"
