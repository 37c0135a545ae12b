"""What is said of triggers: declarations they cannot serve, triggers the database lacks, migrations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.core import checks
from django.core.management import call_command
from django.db import connection, models
from django.db.migrations.loader import MigrationLoader
from django.test.utils import isolate_apps
from rest_framework import serializers

from folio_events import ModelEvents, events, triggers
from folio_events.dialects import DIALECTS
from folio_events.exceptions import ConfigurationError
from folio_events.models import OutboxMessage
from tests.testapp.models import Book, DisplayShelf, Shelf

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db


def found() -> list[str]:
    """Ids of what the checks of folio_events say, those of the database among them."""
    messages = checks.run_checks(tags=["folio_events"]) + checks.run_checks(
        tags=["database"], databases=["default"]
    )
    return [str(m.id) for m in messages if str(m.id).startswith("folio_events.")]


def watched(name: str) -> type[Any]:
    return apps.get_model("triggerapp", name)


def texts() -> str:
    return "\n".join(message.msg for message in checks.run_checks(tags=["folio_events"]))


@pytest.fixture
def declared(declare: Callable[..., None]) -> Callable[..., ModelEvents]:
    """Declare a model with a trigger that is not installed."""

    def change(model: type[Any], **attributes: object) -> ModelEvents:
        declare(model, capture="trigger", **attributes)
        declaration = events.find(model)
        assert declaration is not None
        return declaration

    return change


class TestDeclarations:
    def test_a_serializer_is_an_error(self, declared: Callable[..., ModelEvents]):
        """A trigger runs no serializer, be it a class or a function."""

        class BookSerializer(serializers.ModelSerializer[Book]):
            class Meta:
                model = Book
                fields = ("id",)

        for attributes in ({"serializer_class": BookSerializer}, {"serializer": vars}):
            declared(Book, **attributes)
            assert "folio_events.E031" in found()
            assert "serializer" in texts()

    def test_a_dialect_that_a_trigger_does_not_write_is_an_error(
        self, declared: Callable[..., ModelEvents], folio_events: Callable[..., None]
    ):
        """Of all dialects, those of ``old`` and ``new`` alone."""
        folio_events(TENANCY="folio")
        written = [d for d in DIALECTS if not triggers.faults(declared(Book, dialect=d))]
        assert written == ["inventory", "circulation"]
        declared(Book, dialect="pubsub")
        assert "folio_events.E031" in found()
        assert "dialect 'pubsub'" in texts()

    def test_columns_of_a_parents_table_are_an_error(self, declared: Callable[..., ModelEvents]):
        """A child's trigger does not see the parent's row; with its own columns alone it is fine."""
        declared(DisplayShelf)
        assert "folio_events.E031" in found()
        assert "'label'" in texts()
        assert not triggers.faults(declared(DisplayShelf, fields=["shelf_ptr", "theme"]))
        assert not triggers.faults(declared(Shelf))

    def test_values_that_python_makes_are_an_error(self):
        """A field that converts what it reads, or that has no form in SQL, is named."""

        class Secret(models.TextField):  # type: ignore[type-arg]
            def from_db_value(self, value: str, *_arguments: object) -> str:
                return value[::-1]

        class Odd(models.Field):  # type: ignore[type-arg]
            pass

        with isolate_apps("tests.testapp"):

            class Diary(models.Model):  # noqa: DJ008 - no row of it is ever shown
                page = Secret()
                shape = Odd()
                day = models.DateField()

                class Meta:
                    app_label = "testapp"

        class DiaryEvents(ModelEvents):
            topic = "library.diary"
            key = "day"
            tenant = "no.tenant"
            capture = "trigger"

        told = "\n".join(triggers.faults(DiaryEvents(Diary)))
        for name in ("'page' (Secret)", "'shape' (Odd)", "key 'day'", "'no.tenant'"):
            assert name in told

    def test_capture_has_two_forms(self):
        """Another word is refused when the project starts."""
        with pytest.raises(ConfigurationError, match="'signals' or 'trigger', not 'both'"):
            events.register(Shelf)(
                type("ShelfEvents", (ModelEvents,), {"topic": "a.b", "capture": "both"})
            )

    def test_pgtrigger_has_to_be_installed(
        self, declared: Callable[..., ModelEvents], monkeypatch: pytest.MonkeyPatch
    ):
        """Without it in INSTALLED_APPS no migration would install the trigger."""
        installed = apps.is_installed
        monkeypatch.setattr(
            apps, "is_installed", lambda name: name != "pgtrigger" and installed(name)
        )
        declared(Book)
        assert "folio_events.E030" in found()

    def test_sqlite_has_no_triggers_of_ours(
        self, declared: Callable[..., ModelEvents], monkeypatch: pytest.MonkeyPatch
    ):
        """A model with a trigger has to be in PostgreSQL."""
        monkeypatch.setattr(connection, "vendor", "sqlite")
        declared(Book)
        assert "folio_events.E032" in found()


@pytest.mark.postgres
class TestDatabase:
    @pytest.fixture
    def name(self) -> str:
        model = watched("TriggerPart")
        declaration = events.find(model)
        assert declaration is not None
        return str(triggers.trigger_of(declaration).get_pgid(model))

    def run(self, sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    def test_installed_triggers_pass(self):
        """After migrate there is nothing to say."""
        assert found() == []

    def test_a_missing_trigger_is_named(self, name: str):
        """Somebody dropped it, or the migration was not run."""
        self.run(f"DROP TRIGGER {name} ON triggerapp_triggerpart")
        assert found() == ["folio_events.W030"]

    @pytest.mark.parametrize("state", ["DISABLE", "ENABLE REPLICA"])
    def test_a_disabled_trigger_is_named(self, name: str, state: str):
        """Disabled, or enabled for replicas only."""
        self.run(f"ALTER TABLE triggerapp_triggerpart {state} TRIGGER {name}")
        assert found() == ["folio_events.W032"]

    def test_a_trigger_that_was_changed_by_hand_is_named(self, name: str):
        """The body of its function counts, not only the mark that the migration left."""
        self.run(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN NULL; END $$"
        )
        assert found() == ["folio_events.W031"]

    def test_a_declaration_that_was_changed_since_is_named(
        self, declared: Callable[..., ModelEvents]
    ):
        """What is declared now is not what was migrated."""
        model = watched("TriggerPart")
        declared(model, topic="forms.trigger-part", key="item", fields=["id"])
        assert found() == ["folio_events.W031"]

    def test_a_project_that_is_not_migrated_yet_is_left_alone(self):
        """Before the first migrate there is no table, and no warning."""
        self.run("ALTER TABLE triggerapp_triggerpart RENAME TO not_yet")
        assert found() == []

    def test_a_parents_table_may_have_the_trigger(self, declared: Callable[..., ModelEvents]):
        """A child's write leaves the parent's event, by the trigger on the parent's table."""
        triggers.trigger_of(declared(Shelf)).install(Shelf)
        shelf = DisplayShelf.objects.create(label="new", theme="whales")
        shelf.label = "newer"
        shelf.save()
        shelf.delete()
        kinds = list(OutboxMessage.objects.order_by("id").values_list("event_type", flat=True))
        assert kinds == ["CREATE", "UPDATE", "DELETE"]

    def test_makemigrations_writes_the_trigger(self, declared: Callable[..., ModelEvents]):
        """The migration installs it, and a second run of makemigrations finds nothing to do."""
        call_command("makemigrations", "triggerapp", check=True, dry_run=True, verbosity=0)
        model = watched("TriggerPart")
        state = MigrationLoader(connection).project_state().models["triggerapp", "triggerpart"]
        (trigger,) = state.options["triggers"]
        declaration = events.find(model)
        assert declaration is not None
        assert str(trigger.sql) == str(triggers.trigger_of(declaration).compile(model).sql)

    def test_nothing_of_a_deployment_is_compiled_in(self, folio_events: Callable[..., None]):
        """ENV, source and tenant collection change, and the trigger is the same."""
        declaration = events.find(watched("TriggerItem"))
        assert declaration is not None
        before = triggers.function(declaration)
        folio_events(ENV="prod", SOURCE="/x", GROUP="y")
        assert triggers.function(declaration) == before
        folio_events(TENANCY="folio")
        with_tenants = triggers.function(declaration)
        folio_events(TENANCY="folio", ENV="prod", TENANT_COLLECTION="ALL", DEFAULT_TENANT="diku")
        assert triggers.function(declaration) == with_tenants
