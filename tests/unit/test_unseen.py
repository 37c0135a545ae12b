"""The search for calls in a project's own code that leave no event."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.core import checks
from django.db.models import Model

from folio_events import ModelEvents, unseen
from folio_events.declarations import EventsRegistry
from folio_events.unseen import find_unseen_writes, project_files
from tests.testapp.events import BookEvents
from tests.testapp.models import Book

BOOK = ("testapp.Book",)
CHAPTER = ("testapp.Chapter",)
IMPORTS = (
    "from tests.testapp.models import Book, Chapter, Effect\nfrom tests.testapp import models\n"
)


@pytest.fixture
def search(tmp_path: Path) -> Callable[[str], list[tuple[str, tuple[str, ...]]]]:
    """Write a file and search it: the doors that were found, with labels."""

    def run(source: str) -> list[tuple[str, tuple[str, ...]]]:
        path = tmp_path / "services.py"
        path.write_text(IMPORTS + textwrap.dedent(source))
        return [(found.door, found.labels) for found in find_unseen_writes([path])]

    return run


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Model], type[ModelEvents]], None]:
    """Let one model be the only one that is registered."""

    def register(model: type[Model], declaration: type[ModelEvents]) -> None:
        registry = EventsRegistry()
        registry.register(model)(declaration)
        monkeypatch.setattr(unseen, "events", registry)

    return register


#: Code, and the registered models whose rows it writes.
STATEMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "insert": ('cursor.execute("INSERT INTO testapp_book (title) VALUES (%s)", [title])', BOOK),
    "insert or": ('cursor.execute("insert or replace into testapp_book values (1)")', BOOK),
    "update": ('cursor.execute("UPDATE testapp_book SET title = %s", [title])', BOOK),
    "update only": ('cursor.execute("UPDATE ONLY testapp_book SET title = 1")', BOOK),
    "delete": ('cursor.execute("DELETE FROM testapp_book WHERE id = 1")', BOOK),
    "with": ('cursor.execute("WITH a AS (SELECT 1) DELETE FROM testapp_book")', BOOK),
    "quoted": ("cursor.execute('UPDATE \"testapp_book\" SET title = 1')", BOOK),
    "with schema": ("cursor.execute('UPDATE public.\"testapp_book\" SET title = 1')", BOOK),
    "merge": ('cursor.execute("MERGE INTO testapp_book USING b ON (1 = 1)")', BOOK),
    "truncate": ('cursor.execute("TRUNCATE TABLE other, testapp_book CASCADE")', BOOK),
    "copy": ('cursor.copy("COPY testapp_book (id, title) FROM STDIN")', BOOK),
    "two tables": (
        'cursor.execute("DELETE FROM testapp_chapter; DELETE FROM testapp_book")',
        (*CHAPTER, *BOOK),
    ),
    "many": ('cursor.executemany("INSERT INTO testapp_book VALUES (%s)", rows)', BOOK),
    "async": ('await cursor.execute("DELETE FROM testapp_book")', BOOK),
    "connection": ('connection.cursor().execute("DELETE FROM testapp_book")', BOOK),
    "migration": ('migrations.RunSQL("UPDATE testapp_book SET title = 1")', BOOK),
    "migration's list": ('migrations.RunSQL([("DELETE FROM testapp_book", None)])', BOOK),
    "over lines": ('cursor.execute("UPDATE testapp_book "\n    "SET title = 1")', BOOK),
    "sum": ('cursor.execute("UPDATE testapp_book " + "SET title = %s" % title)', BOOK),
    "format": ('cursor.execute("UPDATE testapp_book SET {} = 1".format(name))', BOOK),
    "f-string": ('cursor.execute(f"UPDATE testapp_book SET {name} = 1")', BOOK),
    "table of a model": ('cursor.execute(f"DELETE FROM {Book._meta.db_table}")', BOOK),
    "quoted table of a model": (
        'cursor.execute(f"DELETE FROM {ops.quote_name(models.Book._meta.db_table)}")',
        BOOK,
    ),
    "named": ('SQL = "DELETE FROM testapp_book"\ncursor.execute(SQL)', BOOK),
    # about others, or no writing
    "other table": ('cursor.execute("DELETE FROM testapp_effect")', ()),
    "longer name": ('cursor.execute("DELETE FROM testapp_book_archive")', ()),
    "table of another model": ('cursor.execute(f"DELETE FROM {Effect._meta.db_table}")', ()),
    "read": ('cursor.execute("SELECT * FROM testapp_book FOR UPDATE")', ()),
    "read from": (
        'cursor.execute("INSERT INTO testapp_effect (note) SELECT title FROM testapp_book")',
        (),
    ),
    "raw()": ('Book.objects.raw("SELECT * FROM testapp_book")', ()),
    "copy out": ('cursor.copy("COPY testapp_book TO STDOUT")', ()),
    "value": ("cursor.execute(\"SELECT 'update testapp_book'\")", ()),
    "comment": ('cursor.execute("SELECT 1 -- not: delete from testapp_book")', ()),
    "upsert elsewhere": (
        'cursor.execute("INSERT INTO a SELECT 1 ON CONFLICT DO UPDATE SET b = 1")',
        (),
    ),
    "unknown": ("cursor.execute(statement)", ()),
    "another execute()": ('task.execute("update the index of testapp_book")', ()),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_raw_sql_is_found_by_the_table_that_it_writes(search, name: str) -> None:
    """A statement in a literal is found if it writes a registered model's table, else not."""
    code, labels = STATEMENTS[name]
    assert search(f"async def write():\n{textwrap.indent(code, '    ')}\n") == (
        [("raw SQL", labels)] if labels else []
    )


RAW_DELETES: dict[str, tuple[str, list[tuple[str, ...]]]] = {
    "model": ('Book.objects.filter(id=1)._raw_delete("default")', [BOOK]),
    "module": ('models.Chapter.objects.all()._raw_delete("default")', [CHAPTER]),
    "proxy": ('models.BookProxy.objects.all()._raw_delete("default")', [BOOK]),
    "bound": ('rows = Book.objects.all()\nrows._raw_delete("default")', [BOOK]),
    "unknown": ('def empty(rows):\n    rows._raw_delete("default")', [()]),
    "another model": ('Effect.objects.all()._raw_delete("default")', []),
    "bound to another": ('rows = Effect.objects.all()\nrows._raw_delete("default")', []),
}


@pytest.mark.parametrize("name", RAW_DELETES)
def test_raw_deletes_are_found_unless_they_are_about_other_models(search, name: str) -> None:
    """_raw_delete() is found on registered models, and where nobody can tell the model."""
    code, labels = RAW_DELETES[name]
    assert search(code) == [("_raw_delete()", found) for found in labels]


GET = 'Book = apps.get_model("testapp", "Book")\n'
HISTORICAL: dict[str, tuple[str, int]] = {
    "update": (GET + 'Book.objects.filter(copies=0).update(title="")', 1),
    "save in a loop": (
        GET + "for book in Book.objects.all():\n    book.copies = 1\n    book.save()",
        1,
    ),
    "save of a new one": (GET + "book = Book(title='')\nbook.save()", 1),
    "create": (GET + "Book.objects.create(title='')", 1),
    "bulk": (
        GET + "Book.objects.bulk_create([Book()])\nBook.objects.bulk_update([], ['title'])",
        2,
    ),
    "delete": (
        GET + "books = Book.objects.all()\nstale = books.filter(copies=0)\nstale.delete()",
        1,
    ),
    "database": (GET + "Book.objects.using(db).all()[0].delete()", 1),
    "at once": ('apps.get_model("testapp.Book").objects.update(title="")', 1),
    "keywords": (
        'M = apps.get_model(app_label="testapp", model_name="book")\nM.objects.update(title="")',
        1,
    ),
    "nothing is written": (GET + "list(Book.objects.all())", 0),
    "another model": ('E = apps.get_model("testapp", "Effect")\nE.objects.all().delete()', 0),
    "no such model": ('E = apps.get_model("testapp", "Gone")\nE.objects.all().delete()', 0),
    "a row's own dict": (GET + "for b in Book.objects.all():\n    b.extra.update({'a': 1})", 0),
    "a row's relations": (GET + "for b in Book.objects.all():\n    b.notes.create(text='')", 0),
}


@pytest.mark.parametrize("name", HISTORICAL)
def test_historical_models_are_found_where_they_write(search, name: str) -> None:
    """In a function of a migration, writes of a registered model's past state are found."""
    code, count = HISTORICAL[name]
    body = textwrap.indent(code, "    ")
    assert (
        search(f"def forwards(apps, schema_editor):\n{body}\n")
        == [("a historical model", BOOK)] * count
    )


def test_a_model_of_the_real_registry_is_no_historical_one(search) -> None:
    """apps.get_model() of Django's own registry gives the captured model."""
    code = "from django.apps import apps\ndef write():\n    apps.get_model('testapp.Book')()"
    assert search(f"{code}.save()\n") == []


def test_a_comment_says_that_a_call_is_meant(search) -> None:
    """A call is not reported if one of its lines says that no event is wanted."""
    assert not search('cursor.execute("DELETE FROM testapp_book")  # folio_events: no event')
    assert not search(
        'cursor.execute(  # folio_events: no event, the table is empty\n"DELETE FROM testapp_book")'
    )
    assert search('# folio_events: no event\ncursor.execute("DELETE FROM testapp_book")')


def test_of_models_captured_by_trigger_only_truncate_and_replica_mode_are_found(
    search, only, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger sees raw SQL, but neither TRUNCATE nor what runs as a replica."""
    monkeypatch.setattr(BookEvents, "capture", "trigger")
    only(Book, BookEvents)
    assert search('Book.objects.all()._raw_delete("default")') == []
    assert search('cursor.execute("DELETE FROM testapp_book")') == []
    assert search('cursor.execute("TRUNCATE testapp_book")') == [("raw SQL", BOOK)]
    replica = 'cursor.execute("SET LOCAL session_replication_role = replica")'
    assert search(replica) == [("raw SQL", BOOK)]


def test_without_triggers_replica_mode_is_nothing_new(search, only) -> None:
    """What turns triggers off is no matter where no model is captured by one."""
    only(Book, BookEvents)
    assert search('cursor.execute("SET session_replication_role = replica")') == []


def test_what_is_no_python_is_passed(tmp_path: Path) -> None:
    """A file that cannot be parsed is not this search's affair."""
    path = tmp_path / "broken.py"
    path.write_text('def broken(:\n    cursor.execute("DELETE FROM testapp_book")')
    assert list(find_unseen_writes([path])) == []


def test_line_and_file_are_told(tmp_path: Path) -> None:
    """What is found says where it stands."""
    path = tmp_path / "services.py"
    path.write_text('\n\ncursor.execute(\n    "DELETE FROM testapp_book"\n)\n')
    [found] = find_unseen_writes([path])
    assert (found.path, found.line) == (path, 3)


def test_names_that_are_imported_relatively_are_followed(tmp_path: Path) -> None:
    """A relative import leads to the model that Django has loaded."""
    folder = tmp_path / "tests" / "testapp"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    path = folder / "services.py"
    path.write_text('from .models import Effect\nEffect.objects.all()._raw_delete("default")\n')
    assert list(find_unseen_writes([path])) == []


# Files


def test_the_files_of_a_project_are_those_of_its_own_apps_and_of_its_folder(
    tmp_path: Path, settings
) -> None:
    """Neither installed packages nor environments, hidden folders, tests or this package."""
    wanted = ["shop/models.py", "shop/testimonials.py", "scripts/load.py"]
    unwanted = [
        "shop/tests/test_models.py", "shop/tests.py", "shop/test_models.py", "conftest.py",
        "env/lib/module.py", "lib/site-packages/other.py", ".git/hook.py", "node_modules/a.py",
        "shop/notes.txt",
    ]  # fmt: skip
    for name in [*wanted, *unwanted, "env/pyvenv.cfg"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    settings.BASE_DIR = tmp_path
    found = set(project_files())

    assert {path for path in found if path.is_relative_to(tmp_path)} == {
        (tmp_path / name).resolve() for name in wanted
    }
    inventory = {path for path in found if "sample_project" in path.parts}
    assert any(path.name == "models.py" for path in inventory)
    assert not any("folio_events" in path.parts or "django" in path.parts for path in found)


def test_one_app_may_be_searched(tmp_path: Path) -> None:
    """Where apps are named, only their files are."""
    (tmp_path / "models.py").touch()
    app = SimpleNamespace(path=str(tmp_path))
    assert project_files([app]) == [tmp_path / "models.py"]  # type: ignore[list-item]  # all it needs


# Check


@pytest.fixture
def shop(tmp_path: Path, settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a call of each door."""
    settings.BASE_DIR = tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "services.py").write_text(
        'def empty(cursor, rows):\n    cursor.execute("DELETE FROM testapp_book")\n'
        '    rows._raw_delete("default")\n'
    )
    (tmp_path / "migration.py").write_text(
        "def forwards(apps, schema_editor):\n"
        "    apps.get_model('testapp.Book').objects.update(title='')\n"
    )
    return tmp_path


def test_check_deploy_names_place_door_and_way_out(shop: Path) -> None:
    """Each call is a warning with file, line and a hint, by an id for each door."""
    found = checks.run_checks(tags=["folio_events"], include_deployment_checks=True)
    named = {message.id: message for message in found if message.id and "W01" in message.id}
    assert set(named) == {f"folio_events.W01{number}" for number in range(3)}
    assert named["folio_events.W011"].msg.startswith(
        "services.py:2: raw SQL writes rows of testapp.Book"
    )
    assert named["folio_events.W012"].msg.startswith("migration.py:2: a historical model writes")
    assert named["folio_events.W010"].msg.startswith("services.py:3: _raw_delete() writes rows")
    for message in named.values():
        assert "# folio_events: no event" in str(message.hint)


def test_other_commands_do_not_search(shop: Path) -> None:
    """Without --deploy no file is read, so no command starts later for it."""
    assert not [m for m in checks.run_checks() if m.id and m.id.startswith("folio_events.W01")]


def test_this_project_has_no_unseen_writes() -> None:
    """The sample project is clean, so its lint can run the check."""
    assert list(find_unseen_writes(project_files())) == []
