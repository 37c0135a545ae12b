"""A projection is compared with its source: exactly what differs is found, and mended."""

from __future__ import annotations

import io
import json
import random
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import Count, QuerySet
from django.utils import timezone

from folio_events import Event, receiver, suppress_events
from folio_events.brokers.memory import MemoryBroker
from folio_events.consumer import Consumer
from folio_events.exceptions import ConfigurationError
from folio_events.models import Delivery, OutboxMessage
from folio_events.operations.reconcile import (
    Difference,
    Outcome,
    Reconciliation,
    reconcile,
    reconciliations,
)
from folio_events.relay import drain
from folio_events.tenants import tenant_context
from sample_project.inventory.models import Instance
from sample_project.orders.models import OrderLine
from tests.testapp.models import Book, Chapter, Label, Tag

pytestmark = pytest.mark.django_db(transaction=True)


class Copies(Reconciliation):
    """Each label repeats the title of the book that its code names."""

    name = "tests.copies"
    source_key = "id"
    projection_key = "copies"
    fields: ClassVar[dict[str, str]] = {"title": "title"}

    def source(self) -> QuerySet[Any]:
        return Book.objects.filter(copies=0)

    def projection(self) -> QuerySet[Any]:
        return Book.objects.exclude(copies=0)


def book(title: str) -> Book:
    return Book.objects.create(title=title, copies=0)


def copy_of(source: Book | int, title: str) -> Book:
    pk = source if isinstance(source, int) else source.pk
    return Book.objects.create(title=title, copies=pk)


def settle() -> None:
    """All that was written is long past and published."""
    drain()
    OutboxMessage.objects.update(occurred_at=timezone.now() - timedelta(hours=1))


def compare(declared: Reconciliation, **options: Any) -> tuple[Outcome, list[Difference]]:
    found: list[Difference] = []
    return reconcile(declared, found=found.append, **options), found


@pytest.fixture
def copying(memory_broker: MemoryBroker) -> Iterator[Consumer]:
    """A receiver that keeps one copy of each book, and its consumer."""

    @receiver("library.book", types=["CREATE", "UPDATE"], name="tests.copy")
    def copy(event: Event) -> None:
        new = event.new or {}
        if new["copies"] == 0:
            with suppress_events():
                Book.objects.update_or_create(copies=new["id"], defaults={"title": new["title"]})

    consumer = Consumer("events", broker=memory_broker)
    yield consumer
    consumer.close()


def consume(consumer: Consumer) -> None:
    drain()
    while consumer.step(timeout=0):
        pass


def test_what_differs_is_found_and_nothing_else(memory_broker: MemoryBroker) -> None:
    """Missing, stale and extra, each with its key, row and values; equal rows are silent."""
    same, stale, missing = book("same"), book("new title"), book("missing")
    copy_of(same, "same")
    row = copy_of(stale, "old title")
    extra = copy_of(999_999, "nobody's")
    settle()
    outcome, found = compare(Copies())
    assert sorted(found, key=lambda difference: difference.kind) == [
        Difference(kind="extra", key=999_999, row=extra.pk),
        Difference(kind="missing", key=missing.pk, row=None),
        Difference(
            kind="stale", key=stale.pk, row=row.pk, fields={"title": ("new title", "old title")}
        ),
    ]
    assert (outcome.missing, outcome.stale, outcome.extra, outcome.in_flight) == (1, 1, 1, 0)
    assert outcome.compared == 4


def test_a_repair_goes_through_the_consumer(copying: Consumer) -> None:
    """The source rows are said again, and the receiver makes of them what it always makes."""
    books = [book(f"title {n}") for n in range(4)]
    consume(copying)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE testapp_book SET title = 'broken' WHERE copies = %s", [books[1].pk])
        cursor.execute("DELETE FROM testapp_book WHERE copies = %s", [books[2].pk])
    settle()
    outcome, found = compare(Copies(), repair=True)
    assert {(d.kind, d.key) for d in found} == {("stale", books[1].pk), ("missing", books[2].pk)}
    assert (outcome.repaired, outcome.left) == (2, 0)
    consume(copying)
    settle()
    assert compare(Copies())[1] == []


def test_what_has_no_source_is_left_to_a_person(memory_broker: MemoryBroker) -> None:
    """There is no row to say again."""
    copy_of(999_999, "nobody's")
    settle()
    outcome, _ = compare(Copies(), repair=True)
    assert (outcome.extra, outcome.repaired, outcome.left) == (1, 0, 1)


def test_events_on_their_way_are_no_differences(memory_broker: MemoryBroker) -> None:
    """Unpublished ones, young ones, and those that failed in a receiver."""
    young, waiting, failed = book("young"), book("waiting"), book("failed")
    drain()
    rows = OutboxMessage.objects
    long_ago = timezone.now() - timedelta(hours=1)
    rows.exclude(key=str(young.pk)).update(occurred_at=long_ago)
    rows.get(key=str(waiting.pk)).publication.delete()
    Delivery.objects.create(
        receiver="r", group="g", event_id=uuid.uuid4(), state="dead", order="key",
        topic="folio.library.book", partition=0, offset=0, key=str(failed.pk), headers=b"[]",
        published_at=long_ago, created_at=long_ago,
    )  # fmt: skip
    outcome, found = compare(Copies())
    assert {difference.key for difference in found} == {young.pk, waiting.pk, failed.pk}
    assert all(difference.in_flight for difference in found)
    assert (outcome.in_flight, outcome.left) == (3, 0)
    assert compare(Copies(), grace=0)[0].missing == 1


def test_a_row_that_settles_between_the_looks_is_no_difference(
    memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look decides."""
    source = book("title")
    row = copy_of(source, "old")
    settle()
    declared = Copies()
    looks = []

    def projection() -> QuerySet[Any]:
        looks.append(1)
        if len(looks) == 2:
            Book.objects.filter(pk=row.pk).update(title="title")
        return Book.objects.exclude(copies=0)

    monkeypatch.setattr(declared, "projection", projection)
    assert compare(declared)[1] == []


def test_counts_of_groups_can_be_compared(memory_broker: MemoryBroker) -> None:
    """As of loans by patron: the source is grouped, the expectation a function."""

    class ChapterCounts(Reconciliation):
        name = "tests.chapters"
        source_key = "book"
        projection_key = "id"
        fields: ClassVar[dict[str, str]] = {"copies": "count"}
        complete = False

        def source(self) -> QuerySet[Any]:
            return Chapter.objects.values("book").annotate(count=Count("pk"))

        def projection(self) -> QuerySet[Any]:
            return Book.objects.filter(chapters__isnull=False).distinct()

    right, wrong = (Book.objects.create(title=t, copies=2) for t in ("right", "wrong"))
    for of, count in ((right, 2), (wrong, 3)):
        for number in range(count):
            Chapter.objects.create(book=of, title=str(number))
    settle()
    _, found = compare(ChapterCounts())
    assert [(d.key, d.fields) for d in found] == [(wrong.pk, {"copies": (3, 2)})]
    with pytest.raises(ConfigurationError, match=r"Give it a repair\(\)"):
        compare(ChapterCounts(), repair=True)


def test_keys_of_text_are_merged_in_one_order() -> None:
    """Whatever the database's collation: upper and lower case, accents, punctuation."""

    class Words(Reconciliation):
        name = "tests.words"
        source_key = "code"
        projection_key = "word"
        fields: ClassVar[dict[str, str]] = {"word": "code"}

        def source(self) -> QuerySet[Any]:
            return Label.objects.all()

        def projection(self) -> QuerySet[Any]:
            return Tag.objects.all()

    words = ["B", "a", "Z", "z", "é", "e", "_", "-a", "10", "9", "ab", "a b", "Ä"]
    random.Random(1).shuffle(words)
    for word in words:
        Label.objects.create(code=word)
        Tag.objects.create(word=word)
    outcome, found = compare(Words())
    assert (outcome.compared, found) == (len(words), [])


def test_keys_that_do_not_go_together_are_refused() -> None:
    """Keys of two types never meet, and two source rows of one key say two things."""

    class Types(Copies):
        name = "tests.types"
        projection_key = "title"

    class Doubled(Copies):
        name = "tests.doubled"
        source_key = "copies"

    with suppress_events():
        source = book("x")
        copy_of(source, "x")
        book("y")
    with pytest.raises(ConfigurationError, match="Cast one of them"):
        compare(Types())
    with pytest.raises(ConfigurationError, match="several rows of key 0"):
        compare(Doubled())


def test_statements_do_not_grow_with_what_is_equal(django_assert_num_queries: Any) -> None:
    """One pass over each side, however many rows there are."""
    with suppress_events():
        sources = Book.objects.bulk_create([Book(title=str(n), copies=0) for n in range(300)])
        Book.objects.bulk_create([Book(title=b.title, copies=b.pk) for b in sources])
    with django_assert_num_queries(2):
        assert compare(Copies())[0].compared == 300


class TestRegistry:
    def test_a_name_is_taken_once(self) -> None:
        """And a reconciliation without fields compares nothing."""
        with pytest.raises(ConfigurationError, match=r"have the name 'orders\.titles'"):
            reconciliations.register(type("Titles", (Copies,), {"name": "orders.titles"}))
        with pytest.raises(ConfigurationError, match="names no fields"):
            reconciliations.register(type("Empty", (Reconciliation,), {"name": "tests.empty"}))
        with pytest.raises(ConfigurationError, match=r"Known:.*orders\.titles"):
            reconciliations.get("nothing")


class TestCommand:
    @pytest.fixture(autouse=True)
    def _registered(self, memory_broker: MemoryBroker) -> Iterator[None]:
        reconciliations.register(Copies)
        yield
        reconciliations.unregister("tests.copies")

    def run(self, *arguments: str) -> list[str]:
        out = io.StringIO()
        self.code = 0
        try:
            call_command("reconcile_events", "tests.copies", *arguments, stdout=out)
        except CommandError as error:
            self.code = error.returncode
        return out.getvalue().splitlines()

    def test_differences_are_listed_and_end_with_1(self) -> None:
        """A line for each, then a summary; without any the command ends with 0."""
        source = book("new")
        row = copy_of(source, "old")
        settle()
        assert self.run() == [
            f"tests.copies: stale {source.pk} row {row.pk}: title is 'old', not 'new'",
            "tests.copies: 1 keys, 0 missing, 1 stale, 0 extra, 0 in flight, 0 repaired",
        ]
        assert self.code == 1
        Book.objects.filter(pk=row.pk).update(title="new")
        self.run()
        assert self.code == 0

    def test_machines_get_a_line_of_json_for_each(self) -> None:
        """With the summary last."""
        source = book("new")
        row = copy_of(source, "old")
        settle()
        found, summary = map(json.loads, self.run("--json", "--repair"))
        assert found == {
            "reconciliation": "tests.copies", "kind": "stale", "key": source.pk, "row": row.pk,
            "fields": {"title": {"expected": "new", "found": "old"}}, "in_flight": False,
        }  # fmt: skip
        assert summary["summary"]["repaired"] == 1
        assert self.code == 0


def test_a_line_of_the_sample_library_gets_its_title_back(memory_broker: MemoryBroker) -> None:
    """Broken by raw SQL, found as the one difference, mended by the sample's own receivers."""
    titles = reconciliations.get("orders.titles")
    with tenant_context("diku"):
        emma, other = (Instance.objects.create(title=t) for t in ("Emma", "Persuasion"))
        line = OrderLine.objects.create(title_or_package="Emma", instance_id=emma.pk)
        OrderLine.objects.create(title_or_package="Persuasion", instance_id=other.pk)
    consumer = Consumer("events", broker=memory_broker)
    consume(consumer)
    consume(consumer)
    with connection.cursor() as cursor:
        key = line.pk if connection.vendor == "postgresql" else line.pk.hex
        cursor.execute("UPDATE orders_orderline SET title_or_package = 'Ema' WHERE id = %s", [key])
    settle()
    with tenant_context("diku"):
        outcome, found = compare(titles, repair=True)
        assert [(d.kind, d.row, d.fields) for d in found] == [
            ("stale", line.pk, {"title_or_package": ("Emma", "Ema")})
        ]
        assert outcome.repaired == 1
        for _ in range(3):
            consume(consumer)
        settle()
        assert compare(titles)[1] == []
        assert Instance.objects.get(pk=emma.pk).title == "Emma"
    consumer.close()
