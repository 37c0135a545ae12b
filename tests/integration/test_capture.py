"""What a model write means: one event, true to the database, in the transaction of the write."""

from __future__ import annotations

import contextlib
import datetime
import json
import random
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models import F, Model, Value
from django.db.models.functions import Upper
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework import serializers

from folio_events import capture, events, tenant_context
from folio_events.encoding import dump
from folio_events.exceptions import EncodingError, MissingTenantError
from folio_events.models import OutboxMessage
from tests.conftest import is_postgres
from tests.testapp.models import Book, Chapter, Effect, Parcel

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db


def as_json(instance: Model) -> dict[str, Any]:
    """What the database holds of a row, as events show it."""
    fresh = type(instance)._base_manager.get(pk=instance.pk)
    held = {field.name: getattr(fresh, field.attname) for field in fresh._meta.concrete_fields}
    found: dict[str, Any] = json.loads(dump(held))
    return found


def add_book(title: Any = "Emma", **values: Any) -> Book:
    return Book.objects.create(title=title, **values)


def refuse_outbox_inserts(execute, sql, params, many, context):
    """Stand for a database that fails between the row and its event."""
    if sql.startswith("INSERT") and OutboxMessage._meta.db_table in sql:
        raise OperationalError("no space left on device")
    return execute(sql, params, many, context)


def statements(write: Callable[[], object]) -> list[str]:
    """The first words of the statements that a write sends, within a transaction."""
    with transaction.atomic(), CaptureQueriesContext(connection) as captured:
        write()
    words = [query["sql"].split()[0] for query in captured.captured_queries]
    return [word for word in words if word not in ("BEGIN", "SAVEPOINT", "RELEASE")]


class TestOneEventForEachChange:
    def test_a_create_shows_the_new_row_and_no_old_one(self, recorded):
        """Creating a row records one CREATE with the row in new and nothing in old."""
        book = add_book(copies=3, price=Decimal("9.50"))
        (event,) = recorded()
        assert (event.topic, event.type, event.key) == ("library.book", "CREATE", str(book.pk))
        assert event.old is None
        assert event.new == as_json(book)
        assert event.new["copies"] == 3

    def test_an_update_shows_the_row_before_and_after(self, recorded):
        """Saving a row again records one UPDATE with what the database held and what it holds."""
        book = add_book(copies=3)
        before = as_json(book)
        book.copies = 4
        book.save()
        _create, event = recorded()
        assert (event.type, event.key) == ("UPDATE", str(book.pk))
        assert event.old == before
        assert event.new == as_json(book) == {**before, "copies": 4}

    def test_a_delete_shows_the_old_row_and_no_new_one(self, recorded):
        """Deleting a row records one DELETE with the row in old and nothing in new."""
        book = add_book()
        pk, before = book.pk, as_json(book)
        book.delete()
        _create, event = recorded()
        assert (event.type, event.key) == ("DELETE", str(pk))
        assert (event.old, event.new) == (before, None)

    def test_a_key_given_by_hand_for_an_existing_row_is_an_update(self, recorded):
        """An instance made by hand with the key of a row overwrites that row, and old shows it."""
        before = as_json(add_book("Emma", copies=7))
        Book(pk=before["id"], title="Persuasion").save()
        event = recorded()[-1]
        assert event.type == "UPDATE"
        assert event.old == before
        assert (event.new["title"], event.new["copies"]) == ("Persuasion", 1)

    def test_a_key_given_by_hand_for_no_row_is_a_create(self, recorded):
        """An instance made by hand with a key of its own is a creation."""
        Book(pk=4711, title="Emma").save()
        (event,) = recorded()
        assert (event.type, event.key, event.old) == ("CREATE", "4711", None)

    def test_saving_a_row_that_others_deleted_creates_it_anew(self, recorded):
        """A stale instance whose row is gone is inserted again, so its event is a CREATE."""
        book = add_book()
        Book.objects.get(pk=book.pk).delete()
        book.save()
        assert [event.type for event in recorded()] == ["CREATE", "DELETE", "CREATE"]
        assert recorded()[-1].old is None

    def test_deleting_a_row_that_is_gone_records_nothing(self, recorded):
        """Of two deletions of one row only the first is an event."""
        book = add_book()
        again = Book.objects.get(pk=book.pk)
        book.delete()
        again.delete()
        assert [event.type for event in recorded()] == ["CREATE", "DELETE"]

    def test_get_or_create_records_only_the_creation(self, recorded):
        """get_or_create() records a CREATE the first time and nothing the second time."""
        for _ in range(2):
            Book.objects.get_or_create(title="Emma", defaults={"copies": 2})
        assert [(event.type, event.new["copies"]) for event in recorded()] == [("CREATE", 2)]

    def test_update_or_create_records_what_it_did(self, recorded):
        """update_or_create() records a CREATE the first time and an UPDATE the second time."""
        for copies in (2, 3):
            Book.objects.update_or_create(title="Emma", defaults={"copies": copies})
        create, update = recorded()
        assert (create.type, create.new["copies"]) == ("CREATE", 2)
        assert (update.type, update.old["copies"], update.new["copies"]) == ("UPDATE", 2, 3)

    def test_a_queryset_delete_records_each_row(self, recorded):
        """QuerySet.delete() records one DELETE for each row, with that row in old."""
        titles = {"Emma", "Persuasion", "Sanditon"}
        for title in titles:
            add_book(title)
        Book.objects.all().delete()
        deletes = [event for event in recorded() if event.type == "DELETE"]
        assert len(deletes) == 3
        assert {event.old["title"] for event in deletes} == titles

    def test_a_cascade_records_each_row_it_takes_along(self, recorded):
        """Deleting a row records its own DELETE and one for each row that goes with it."""
        book = add_book()
        for title in ("One", "Two"):
            Chapter.objects.create(book=book, title=title)
        pk = book.pk
        book.delete()
        deletes = [event for event in recorded() if event.type == "DELETE"]
        assert sorted((event.topic, event.old["title"]) for event in deletes) == [
            ("library.book", "Emma"),
            ("library.chapter", "One"),
            ("library.chapter", "Two"),
        ]
        assert {event.key for event in deletes} == {str(pk)}

    def test_update_fields_without_names_records_nothing(self, recorded):
        """save(update_fields=[]) writes nothing and records nothing."""
        book = add_book()
        book.save(update_fields=[])
        assert len(recorded()) == 1


class TestTransaction:
    @pytest.mark.django_db(transaction=True)
    def test_a_rollback_leaves_no_event(self, recorded):
        """A transaction that is rolled back leaves neither its rows nor their events."""
        book = add_book()

        def write_and_give_up() -> None:
            with transaction.atomic():
                add_book("Persuasion")
                book.copies = 9
                book.save()
                Book.objects.get(pk=book.pk).delete()
                assert len(recorded()) == 4
                raise InterruptedError

        with pytest.raises(InterruptedError):
            write_and_give_up()
        assert [event.new["title"] for event in recorded()] == ["Emma"]
        assert Book.objects.get().copies == 1

    @pytest.mark.django_db(transaction=True)
    def test_a_commit_leaves_an_event_for_each_change(self, recorded):
        """A transaction that commits leaves the events of all its changes, in their order."""
        with transaction.atomic():
            book = add_book()
            book.copies = 2
            book.save()
            book.delete()
        assert [event.type for event in recorded()] == ["CREATE", "UPDATE", "DELETE"]

    @pytest.mark.django_db(transaction=True)
    def test_the_event_is_seen_by_others_only_after_the_commit(self, recorded, at_once):
        """Until the commit another connection sees neither the row nor its event."""

        def seen() -> tuple[int, int]:
            return Book.objects.count(), OutboxMessage.objects.count()

        with transaction.atomic():
            add_book()
            assert at_once([seen]) == [(0, 0)]
        assert at_once([seen]) == [(1, 1)]

    def test_a_rollback_to_a_savepoint_takes_only_the_inner_events(self, recorded):
        """The events within a savepoint that is rolled back vanish, those around it stay."""

        def write_and_give_up() -> None:
            with transaction.atomic():
                add_book("within")
                raise InterruptedError

        with transaction.atomic():
            add_book("before")
            with pytest.raises(InterruptedError):
                write_and_give_up()
            add_book("after")
        assert [event.new["title"] for event in recorded()] == ["before", "after"]

    @pytest.mark.django_db(transaction=True)
    def test_a_create_whose_event_cannot_be_written_leaves_no_row(self, recorded):
        """In autocommit a creation is undone when the insert of its event fails."""
        with (
            connection.execute_wrapper(refuse_outbox_inserts),
            pytest.raises(OperationalError, match="no space left"),
        ):
            add_book()
        assert not Book.objects.exists()
        assert recorded() == []

    @pytest.mark.django_db(transaction=True)
    def test_an_update_whose_event_cannot_be_written_leaves_the_row_as_it_was(self, recorded):
        """In autocommit an update is undone when the insert of its event fails."""
        book = add_book()
        book.title = "Persuasion"
        with (
            connection.execute_wrapper(refuse_outbox_inserts),
            pytest.raises(OperationalError, match="no space left"),
        ):
            book.save()
        assert Book.objects.get().title == "Emma"
        assert len(recorded()) == 1

    @pytest.mark.django_db(transaction=True)
    def test_a_delete_whose_event_cannot_be_written_leaves_the_row(self, recorded):
        """In autocommit a deletion and its cascade are undone when the insert of an event fails."""
        book = add_book()
        Chapter.objects.create(book=book, title="One")
        with (
            connection.execute_wrapper(refuse_outbox_inserts),
            pytest.raises(OperationalError, match="no space left"),
        ):
            book.delete()
        assert (Book.objects.count(), Chapter.objects.count()) == (1, 1)
        assert len(recorded()) == 2

    @pytest.mark.django_db(transaction=True)
    def test_a_row_without_its_event_cannot_be_committed_by_catching_the_error(self, recorded):
        """Within a transaction, catching the error of an event does not let its row through."""
        with (
            transaction.atomic(),
            connection.execute_wrapper(refuse_outbox_inserts),
            contextlib.suppress(OperationalError),
        ):
            add_book()
        assert not Book.objects.exists()
        assert recorded() == []


class TestNew:
    def test_update_fields_leave_the_rest_as_the_database_holds_it(self, recorded):
        """new shows the stored value of a field that was not written, though the instance is dirty."""
        book = add_book("Emma", copies=3)
        book.title, book.copies = "Persuasion", 99
        book.save(update_fields=["title"])
        event = recorded()[-1]
        assert event.new == as_json(book)
        assert (event.new["title"], event.new["copies"]) == ("Persuasion", 3)

    def test_update_fields_may_name_a_column(self, recorded):
        """A field of update_fields is known by its column's name too."""
        first, second = add_book("Emma"), add_book("Persuasion")
        chapter = Chapter.objects.create(book=first, title="One")
        chapter.book, chapter.title = second, "dirty"
        chapter.save(update_fields=["book_id"])
        event = recorded()[-1]
        assert event.key == str(second.pk)
        assert event.new == {"id": str(chapter.pk), "book": second.pk, "title": "One"}

    def test_a_deferred_field_is_shown(self, recorded):
        """Saving an instance that loaded only some fields shows all of them."""
        before = as_json(add_book("Emma", copies=3))
        book = Book.objects.only("title").get()
        book.title = "Persuasion"
        book.save()
        event = recorded()[-1]
        assert event.old == before
        assert event.new == {**before, "title": "Persuasion"}

    def test_an_expression_is_shown_as_the_value_it_gave(self, recorded):
        """new shows what F() and functions computed in the database."""
        book = add_book("Emma", copies=3)
        book.copies, book.title = F("copies") + 1, Upper("title")
        book.save()
        event = recorded()[-1]
        assert event.new == as_json(book)
        assert (event.new["copies"], event.new["title"]) == (4, "EMMA")

    def test_a_creation_with_an_expression_is_shown_as_the_value_it_gave(self, recorded):
        """new shows what an expression computed in the insert."""
        book = add_book(Upper(Value("emma")))
        assert recorded()[-1].new == as_json(book)
        assert recorded()[-1].new["title"] == "EMMA"

    def test_a_generated_field_is_shown_as_the_database_computed_it(self, recorded, declare):
        """new shows a generated column, in a creation, an update and an update of named fields."""
        declare(Parcel)
        parcel = Parcel.objects.create(pieces=2)
        parcel.pieces = 3
        parcel.save()
        parcel.pieces = 5
        parcel.save(update_fields=["pieces"])
        assert [event.new["pairs"] for event in recorded()] == [4, 6, 10]

    def test_a_time_set_by_the_save_is_shown(self, recorded, declare):
        """new shows what auto_now wrote, and keeps what update_fields left out."""
        declare(Parcel)
        parcel = Parcel.objects.create()
        created_at = as_json(parcel)["packed_at"]
        assert recorded()[-1].new["packed_at"] == created_at
        parcel.save(update_fields=["pieces"])
        assert recorded()[-1].new["packed_at"] == created_at
        parcel.save()
        assert recorded()[-1].new["packed_at"] == as_json(parcel)["packed_at"] > created_at


class TestOld:
    def test_old_is_what_the_database_held_not_what_the_instance_remembers(self, recorded):
        """A stale instance does not make a false old: it shows what others wrote meanwhile."""
        book = add_book("Emma", copies=1)
        stale = Book.objects.get(pk=book.pk)
        book.copies = 5
        book.save()
        stale.title = "Persuasion"
        stale.save()
        _create, update, overwrite = recorded()
        assert overwrite.old == update.new
        assert (overwrite.old["copies"], overwrite.new["copies"]) == (5, 1)

    def test_old_sees_what_a_queryset_update_wrote(self, recorded):
        """What came to the row without an event is still in the next event's old."""
        book = add_book(copies=1)
        Book.objects.filter(pk=book.pk).update(copies=5)
        book.copies = 6
        book.save()
        assert recorded()[-1].old["copies"] == 5

    def test_a_deletion_shows_what_the_database_held(self, recorded):
        """old of a deletion comes from the database, not from a stale instance."""
        book = add_book(copies=1)
        stale = Book.objects.get(pk=book.pk)
        book.copies = 5
        book.save()
        stale.copies = 77
        stale.delete()
        assert recorded()[-1].old["copies"] == 5


_BERLIN = ZoneInfo("Europe/Berlin")
_HALF = "1.13" if is_postgres() else "1.12"


@pytest.mark.parametrize(
    ("field", "assigned", "shown"),
    [
        pytest.param("copies", "5", 5, id="text for an integer"),
        pytest.param("copies", True, 1, id="bool for an integer"),
        pytest.param("copies", 5.9, 5, id="float for an integer"),
        pytest.param("copies", Decimal(7), 7, id="decimal for an integer"),
        pytest.param("title", 1984, "1984", id="number for a text"),
        pytest.param("price", "1.5", "1.50", id="text for a decimal"),
        pytest.param("price", 3, "3.00", id="integer for a decimal"),
        pytest.param("price", 0.1, "0.10", id="float for a decimal"),
        pytest.param("price", Decimal("1.239"), "1.24", id="more decimal places"),
        pytest.param("price", Decimal("1.125"), _HALF, id="half of the last decimal place"),
        pytest.param("price", Decimal("-1.125"), f"-{_HALF}", id="half of the last place below 0"),
        pytest.param("price", Decimal("1E+2"), "100.00", id="decimal with an exponent"),
        pytest.param("price", None, None, id="null"),
        pytest.param("published_on", "2024-02-29", "2024-02-29", id="text for a date"),
        pytest.param(
            "published_on",
            datetime.datetime(2024, 2, 29, 23, 30, tzinfo=datetime.UTC),
            "2024-02-29",
            id="datetime for a date",
        ),
        pytest.param(
            "catalogued_at",
            datetime.datetime(2024, 7, 1, 12, 0, 0, 123456, tzinfo=_BERLIN),
            "2024-07-01T10:00:00.123456+00:00",
            id="datetime of another zone",
        ),
        pytest.param(
            "catalogued_at",
            "2024-07-01T12:00:00+02:00",
            "2024-07-01T10:00:00+00:00",
            id="text for a datetime",
        ),
        pytest.param("extra", {"list": (1, 2)}, {"list": [1, 2]}, id="tuple in JSON"),
        pytest.param("extra", {1: "one"}, {"1": "one"}, id="number as a name in JSON"),
        pytest.param("extra", [None, 1.5, "ü\u2028"], [None, 1.5, "ü\u2028"], id="list as JSON"),
        pytest.param("extra", "text", "text", id="text as JSON"),
        pytest.param("cover", b"\x00\xff", "AP8=", id="bytes"),
        pytest.param("cover", bytearray(b"\x00\xff"), "AP8=", id="bytearray"),
        pytest.param("cover", memoryview(b"\x00\xff"), "AP8=", id="memoryview"),
        pytest.param("title", "Ærøskøbing \U0001f4da", "Ærøskøbing \U0001f4da", id="any Unicode"),
    ],
)
def test_values_are_those_the_database_holds(recorded, field, assigned, shown):
    """What was assigned in another form is shown as it is read back, at creation and update."""
    created = add_book(**{"title": "Emma", field: assigned})
    assert recorded()[-1].new == as_json(created)
    assert recorded()[-1].new[field] == shown
    updated = add_book("Emma")
    setattr(updated, field, assigned)
    updated.save()
    left = recorded()[-1].new
    assert left == as_json(updated)
    assert left[field] == shown
    updated.delete()
    assert recorded()[-1].old == left


def test_a_naive_datetime_is_shown_with_the_zone_it_was_stored_in(recorded, settings):
    """A datetime without a zone is one of TIME_ZONE, and is shown as the instant that is stored."""
    settings.TIME_ZONE = "Europe/Berlin"
    naive = datetime.datetime(2024, 7, 1, 12, 0)  # noqa: DTZ001 - what is tested
    with pytest.warns(RuntimeWarning, match="received a naive datetime"):
        book = add_book(catalogued_at=naive)
    shown = recorded()[-1].new["catalogued_at"]
    assert datetime.datetime.fromisoformat(shown) == naive.replace(tzinfo=_BERLIN)
    assert shown == as_json(book)["catalogued_at"]


def test_what_a_save_does_not_write_may_be_anything(recorded):
    """With update_fields the other fields of the instance are neither looked at nor converted."""
    book = add_book(copies=3)
    book.title, book.copies = "Sanditon", "many"
    book.save(update_fields=["title"])
    event = recorded()[-1]
    assert (event.new["title"], event.new["copies"]) == ("Sanditon", 3)


class TestRefusal:
    @pytest.mark.django_db(transaction=True)
    def test_a_value_without_json_form_refuses_the_write_and_names_the_field(
        self, recorded, declare
    ):
        """A value that cannot be serialised leaves neither row nor event; the error says where."""
        declare(Parcel)
        with pytest.raises(EncodingError, match=r"testapp\.Parcel is refused: field 'weight'"):
            Parcel.objects.create(weight=float("inf"))
        assert not Parcel.objects.exists()
        parcel = Parcel.objects.create(weight=2.5)
        parcel.weight = float("-inf")
        with pytest.raises(EncodingError, match=r"testapp\.Parcel is refused: field 'weight'"):
            parcel.save()
        assert Parcel.objects.get().weight == 2.5
        assert len(recorded()) == 1

    def test_a_key_that_is_too_long_refuses_the_write(self, recorded, declare):
        """A row whose key is longer than 2000 bytes gives no event but an error that says so."""
        declare(Effect, fields=["note"], key="note")
        declaration = events.find(Effect)
        assert declaration is not None
        row = (1, "x" * 2001)
        with pytest.raises(EncodingError, match=r"testapp\.Effect is refused: the key is longer"):
            capture.record_changes(
                [capture.Change(declaration, "CREATE", None, row)], using="default"
            )
        assert recorded() == []

    def test_the_error_holds_no_value(self, declare):
        """The error of a refused write names model and field, not what was in it."""

        class Secretive(serializers.ModelSerializer[Parcel]):
            def to_representation(self, instance: Parcel) -> dict[str, object]:
                return {"id": instance.pk, "secret": "hunter2", "opaque": object()}

        declare(Parcel, serializer_class=Secretive)
        with pytest.raises(EncodingError, match="'opaque'") as caught, transaction.atomic():
            Parcel.objects.create()
        assert "hunter2" not in str(caught.value)

    @pytest.mark.django_db(transaction=True)
    def test_a_missing_tenant_refuses_the_write(self, recorded, folio_events):
        """Where tenancy is on, create, update and delete without a tenant leave nothing."""
        with tenant_context("diku"):
            book = add_book()
        folio_events(TENANCY="folio")
        with pytest.raises(MissingTenantError, match="tenant_context"):
            add_book("Persuasion")
        book.title = "Sanditon"
        with pytest.raises(MissingTenantError):
            book.save()
        with pytest.raises(MissingTenantError):
            book.delete()
        assert Book.objects.get().title == "Emma"
        assert len(recorded()) == 1

    def test_the_tenant_of_the_call_is_recorded(self, folio_events):
        """Where tenancy is on, the event belongs to the tenant of the call."""
        folio_events(TENANCY="folio")
        with tenant_context("diku"):
            add_book()
        assert OutboxMessage.objects.get().tenant == "diku"


class BookSerializer(serializers.ModelSerializer[Book]):
    """The form in which the tests show a book."""

    name = serializers.CharField(source="title")

    class Meta:
        model = Book
        fields = ["id", "name", "price", "catalogued_at"]


class TestDeclaration:
    def test_a_serializer_makes_old_and_new(self, recorded, declare):
        """With serializer_class, old and new are what the serializer makes of the rows."""
        declare(Book, serializer_class=BookSerializer)
        moment = datetime.datetime(2024, 7, 1, 10, tzinfo=datetime.UTC)
        book = add_book("Emma", price="1.5", catalogued_at=moment)
        book.title = "Persuasion"
        book.save()
        Book.objects.get().delete()
        form = {"id": book.pk, "price": "1.50", "catalogued_at": "2024-07-01T10:00:00Z"}
        assert [(event.old, event.new) for event in recorded()] == [
            (None, {**form, "name": "Emma"}),
            ({**form, "name": "Emma"}, {**form, "name": "Persuasion"}),
            ({**form, "name": "Persuasion"}, None),
        ]

    def test_a_serializer_shows_stored_values_of_fields_that_were_not_written(
        self, recorded, declare
    ):
        """With serializer_class too, a dirty field that is not saved is shown as it is stored."""
        declare(Book, serializer_class=BookSerializer)
        book = add_book("Emma", price="1.50")
        book.title, book.price = "Persuasion", Decimal(99)
        book.save(update_fields=["title"])
        assert recorded()[-1].new["price"] == "1.50"

    def test_only_declared_fields_are_shown(self, recorded, declare):
        """fields and exclude choose what old and new show."""
        declare(Book, fields=["title", "copies"])
        add_book()
        assert recorded()[-1].new == {"title": "Emma", "copies": 1}
        declare(Book, exclude=["cover", "extra", "catalogued_at", "published_on"])
        book = add_book()
        assert recorded()[-1].new == {"id": book.pk, "title": "Emma", "copies": 1, "price": None}

    def test_skip_unchanged_records_no_event_for_an_equal_row(self, recorded, declare):
        """With skip_unchanged a save that changes no shown field records nothing."""
        declare(Book, fields=["title", "extra"], skip_unchanged=True)
        book = add_book(extra={"list": (1, 2)})
        book.copies = 5
        book.save()
        assert len(recorded()) == 1
        book.title = "Persuasion"
        book.save()
        assert [event.type for event in recorded()] == ["CREATE", "UPDATE"]

    def test_a_save_that_changes_nothing_is_an_event_by_default(self, recorded):
        """Without skip_unchanged each save is an event."""
        add_book().save()
        create, update = recorded()
        assert update.type == "UPDATE"
        assert update.old == update.new == create.new

    def test_a_null_key_gives_an_event_without_order(self, recorded, declare):
        """A row whose key field is null gives an event with no key."""
        declare(Book, key="published_on")
        add_book()
        assert recorded()[-1].key is None

    def test_the_key_follows_the_row(self, recorded):
        """An event's key is the key field after the change, and before it in a deletion."""
        first, second = add_book("Emma"), add_book("Persuasion")
        chapter = Chapter.objects.create(book=first, title="One")
        chapter.book = second
        chapter.save()
        chapter.delete()
        keys = [event.key for event in recorded() if event.topic == "library.chapter"]
        assert keys == [str(first.pk), str(second.pk), str(second.pk)]


class TestCost:
    def test_a_create_costs_the_insert_of_its_event(self):
        """Creating a row reads nothing: the row and its event are two inserts."""
        assert statements(add_book) == ["INSERT", "INSERT"]

    def test_an_update_costs_a_locked_read_and_the_insert_of_its_event(self):
        """Saving a row again is a read under lock, the update, and the insert of the event."""
        book = add_book()
        assert statements(book.save) == ["SELECT", "UPDATE", "INSERT"]

    def test_a_key_with_a_default_makes_no_needless_read(self, declare):
        """A new row with a UUID made in Python is not looked for in the database."""
        declare(Chapter)
        book = add_book()
        assert statements(lambda: Chapter.objects.create(book=book)) == ["INSERT", "INSERT"]
        assert statements(lambda: Chapter(book=book).save()) == ["INSERT", "INSERT"]

    def test_a_delete_costs_a_locked_read_and_the_insert_of_its_event(self, declare):
        """Deleting a row is a read under lock, the delete, and the insert of the event."""
        declare(Chapter)
        chapter = Chapter.objects.create(book=add_book())
        assert statements(chapter.delete) == ["SELECT", "DELETE", "INSERT"]

    def test_a_shared_key_costs_one_statement_for_its_lock(self):
        """Where rows share a key, PostgreSQL is asked for the key's lock before the event's id."""
        book = add_book()
        expected = ["INSERT", "SELECT", "INSERT"] if is_postgres() else ["INSERT", "INSERT"]
        assert statements(lambda: Chapter.objects.create(book=book)) == expected

    def test_ordered_false_takes_no_lock(self, declare):
        """With ordered=False a shared key costs nothing more."""
        declare(Chapter, key="book", ordered=False)
        book = add_book()
        assert statements(lambda: Chapter.objects.create(book=book)) == ["INSERT", "INSERT"]


class _GiveUpError(Exception):
    pass


class _History:
    """Random writes to a few rows, through fresh and stale instances."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.copies: list[Book] = []

    def write(self, times: int) -> None:
        actions = [self.create, self.save, self.save, self.save_named, self.increase, self.load]
        actions += [self.delete, self.delete_many, self.give_up]
        for _ in range(times):
            self.random.choice(actions)()

    def pick(self) -> Book:
        if not self.copies:
            self.create()
        return self.random.choice(self.copies)

    def create(self) -> None:
        self.copies.append(add_book(str(self.random.random()), price=self.random.random()))

    def load(self) -> None:
        self.copies += Book.objects.order_by("pk")[:3]

    def save(self) -> None:
        book = self.pick()
        book.title, book.copies = str(self.random.random()), str(self.random.randrange(1000))
        if book.pk is not None:
            book.save()

    def save_named(self) -> None:
        book = self.pick()
        book.title, book.price = str(self.random.random()), Decimal(self.random.randrange(999)) / 7
        if Book.objects.filter(pk=book.pk).exists():
            book.save(update_fields=["price"])

    def increase(self) -> None:
        book = Book.objects.order_by("pk").last()
        if book is not None:
            book.copies = F("copies") + 1
            book.save()

    def delete(self) -> None:
        book = self.pick()
        if book.pk is not None:
            book.delete()

    def delete_many(self) -> None:
        Book.objects.filter(copies__gt=900).delete()

    def give_up(self) -> None:
        kept = list(self.copies)
        try:
            with transaction.atomic():
                for action in (self.create, self.save, self.increase):
                    action()
                raise _GiveUpError
        except _GiveUpError:
            self.copies = kept


@pytest.mark.parametrize("seed", range(4))
def test_the_events_of_each_key_tell_the_history_of_its_row(recorded, seed):
    """In any history each event's old is the event before's new, and the last is the row."""
    _History(seed).write(150)
    last: dict[str, dict[str, Any] | None] = {}
    for event in recorded():
        assert event.old == last.get(event.key), event
        assert event.type == ("CREATE" if not event.old else "UPDATE" if event.new else "DELETE")
        last[event.key] = event.new
    rows = {str(book.pk): as_json(book) for book in Book.objects.all()}
    assert {key: row for key, row in last.items() if row is not None} == rows
    assert len(last) > len(rows) > 0


def test_events_are_recorded_now_under_ids_of_their_own():
    """Each event has a random UUID and the time at which it was recorded."""
    before = timezone.now()
    add_book().save()
    first, second = OutboxMessage.objects.order_by("id")
    assert first.event_id != second.event_id
    assert first.event_id.version == uuid.uuid4().version
    assert before <= first.occurred_at <= second.occurred_at <= timezone.now()
