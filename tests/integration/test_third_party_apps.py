"""Apps from PyPI under capture: every row that they change by their own means gives its event."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models import Model
from taggit.models import Tag, TaggedItem

from folio_events import events
from folio_events.triggers import trigger_of
from tests.conftest import is_postgres
from tests.thirdparty.models import Department, Paper, Region, Subject

pytest_plugins = ("tests.recording",)
pytestmark = pytest.mark.django_db

Image = dict[str, Any] | None
#: The changes of each row, in their order: what it held before and after.
Histories = dict[tuple[str, str], list[tuple[Image, Image]]]

_LOG_ON_POSTGRESQL = """
CREATE FUNCTION row_log_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO row_log (label, old, new) VALUES (
        TG_ARGV[0],
        CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END
    );
    RETURN NULL;
END $$
"""


def log_on_sqlite(model: type[Model]) -> Iterator[str]:
    label, table = model._meta.label, model._meta.db_table
    names = [field.column for field in model._meta.concrete_fields]
    old, new = (
        "json_object({})".format(", ".join(f"'{name}', {row}.{name}" for name in names))
        for row in ("OLD", "NEW")
    )
    images = {"INSERT": f"NULL, {new}", "UPDATE": f"{old}, {new}", "DELETE": f"{old}, NULL"}
    for verb, values in images.items():
        yield (
            f"CREATE TRIGGER row_log_{table}_{verb} AFTER {verb} ON {table} BEGIN "
            f"INSERT INTO row_log (label, old, new) VALUES ('{label}', {values}); END"
        )


def log_on_postgresql(model: type[Model]) -> Iterator[str]:
    table = model._meta.db_table
    yield (
        f"CREATE TRIGGER row_log AFTER INSERT OR UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION row_log_write('{model._meta.label}')"
    )


@pytest.fixture(params=["signals", pytest.param("trigger", marks=pytest.mark.postgres)])
def watch(declare, request) -> Callable[..., None]:
    """Declare models, and let the database itself log what becomes of their rows."""

    def start(*models: type[Model]) -> None:
        log = log_on_postgresql if is_postgres() else log_on_sqlite
        with connection.cursor() as cursor:
            if is_postgres():
                cursor.execute(
                    "CREATE TABLE row_log (id bigserial, label text, old text, new text)"
                )
                cursor.execute(_LOG_ON_POSTGRESQL)
            else:
                cursor.execute(
                    "CREATE TABLE row_log "
                    "(id integer PRIMARY KEY AUTOINCREMENT, label text, old text, new text)"
                )
            for model in models:
                declare(model, topic=f"thirdparty.{model.__name__}", capture=request.param)
                if request.param == "trigger":
                    declaration = events.find(model)
                    assert declaration is not None
                    trigger_of(declaration).install(model)
                for statement in log(model):
                    cursor.execute(statement)

    return start


@pytest.fixture
def logged() -> Callable[..., Histories]:
    """What the database's own triggers saw of each row."""

    def read(*models: type[Model]) -> Histories:
        names = {
            model._meta.label: {field.column: field.name for field in model._meta.concrete_fields}
            for model in models
        }
        found: Histories = defaultdict(list)
        with connection.cursor() as cursor:
            cursor.execute("SELECT label, old, new FROM row_log ORDER BY id")
            for label, *texts in cursor.fetchall():
                old, new = (
                    None
                    if text is None
                    else {names[label][column]: v for column, v in json.loads(text).items()}
                    for text in texts
                )
                found[label.split(".")[1], str((new or old or {})["id"])].append((old, new))
        return found

    return read


@pytest.fixture
def announced(recorded) -> Callable[[], Histories]:
    """What the events say of each row."""

    def read() -> Histories:
        found: Histories = defaultdict(list)
        for event in recorded():
            found[event.topic.split(".")[1], event.key].append((event.old, event.new))
        return found

    return read


def test_tags_are_added_removed_and_cleared_with_events(watch, logged, announced):
    """All that django-taggit writes, by its managers and its commands, gives events."""
    watch(Tag, TaggedItem, Paper)
    papers = [Paper.objects.create(title=title) for title in ("Emma", "Persuasion", "Sanditon")]
    for paper in papers:
        paper.tags.add("novel", "English", "unread")
    papers[0].tags.remove("unread")
    papers[0].tags.set(["novel", "classic"])
    papers[1].tags.clear()
    papers[2].tags.set(["novel", "fragment"], clear=True)
    call_command("remove_orphaned_tags")
    papers[2].delete()
    Tag.objects.filter(name="novel").delete()

    assert announced() == logged(Tag, TaggedItem, Paper)
    assert {kind for kind, _ in announced()} == {"Tag", "TaggedItem", "Paper"}
    assert not Tag.objects.filter(name__in=["unread", "English"]).exists()


def test_tags_that_differ_in_case_are_merged_with_events(
    watch, logged, announced, settings, capsys
):
    """The command of django-taggit that merges tags gives events of items and tags alike."""
    watch(Tag, TaggedItem)
    settings.TAGGIT_CASE_INSENSITIVE = False
    one, other = (Paper.objects.create(title=title) for title in ("Emma", "Persuasion"))
    one.tags.add("Novel", "novel")
    other.tags.add("novel")
    settings.TAGGIT_CASE_INSENSITIVE = True
    call_command("deduplicate_tags")

    assert announced() == logged(Tag, TaggedItem)
    assert [tag.name for tag in Tag.objects.all()] == ["Novel"]


def plant(model: Any, number: int) -> None:
    """A row at the root, with two children that have two each."""
    trees = model.objects
    root = trees.add_root({"name": f"root {number}"})
    for child in range(2):
        node = trees.add_child(trees.get(pk=root.pk), {"name": f"{number}.{child}"})
        for grandchild in range(2):
            trees.add_child(trees.get(pk=node.pk), {"name": f"{number}.{child}.{grandchild}"})


def grow(model: Any, chance: random.Random, number: int) -> None:
    """One of the operations that treebeard has, on a node by chance."""
    trees, name = model.objects, {"name": f"node {number}"}
    nodes = list(trees.order_by("pk"))
    node = chance.choice(nodes)
    outside = [one for one in nodes if one.pk != node.pk and not one.is_descendant_of(node)]
    deed = chance.choice(["root", "child", "sibling", "move", "move", "move", "delete", "save"])
    if deed == "root" or (deed == "delete" and len(nodes) < 6):
        trees.add_root(name)
    elif deed == "child":
        trees.add_child(node, name)
    elif deed == "sibling":
        trees.add_sibling(node, chance.choice(["first-sibling", "left", "right"]), name)
    elif deed == "move" and outside:
        place = chance.choice(["first-child", "last-child", "first-sibling", "left", "right"])
        trees.move(node, chance.choice(outside), place)
    elif deed == "delete":
        node.delete()
    else:
        node.name = f"renamed {number}"
        node.save()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("model", [Subject, Region, Department], ids=lambda model: model.__name__)
def test_trees_grow_move_and_fall_with_events(watch, logged, announced, model: Any, seed):
    """Each row that treebeard adds, shifts, moves or deletes gives its event, of every kind of tree."""
    watch(model)
    chance = random.Random(seed)
    for number in range(2):
        plant(model, number)
    for number in range(40):
        grow(model, chance, number)
    model.objects.filter(name__startswith="node").delete()

    histories = logged(model)
    assert announced() == histories
    assert {len(images) for images in histories.values()} - {1}, "rows were shifted"


def test_a_tree_is_loaded_mended_and_emptied_with_events(watch, logged, announced):
    """What treebeard does in bulk - loading, fixing, deleting a tree - gives events as well."""
    watch(Subject)
    Subject.objects.load_bulk(
        [{"data": {"name": "a"}, "children": [{"data": {"name": name}} for name in "bcd"]}]
    )
    Subject.objects.filter(name="c").update(depth=7)
    Subject.objects.filter(name="a").update(numchild=9)
    Subject.objects.fix_tree()
    Subject.objects.all().delete()

    assert announced() == logged(Subject)
    last = [images[-1] for images in announced().values()]
    assert len(last) == 4
    assert all(new is None for _, new in last)
