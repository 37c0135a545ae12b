"""Who sends which events and who receives them, by declarations and by what was seen."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from folio_events import publish, receiver
from folio_events.models import OutboxMessage
from folio_events.monitoring import catalog
from folio_events.monitoring.catalog import Catalogue, CatalogueTopic, SeenType, catalogue
from folio_events.receivers import broadcasts, registry
from tests.note_topic import NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


def topic(name: str, **options: Any) -> CatalogueTopic:
    (found,) = [one for one in catalogue(**options).topics if one.name == name]
    return found


def show(*arguments: str) -> str:
    out = io.StringIO()
    call_command("event_catalog", *arguments, stdout=out)
    return out.getvalue()


def test_a_topic_has_owner_senders_and_subscribers(notes: NoteTopic) -> None:
    """Of declarations alone; nobody is asked."""
    note_receiver("one", topic="library.book", types=["CREATE"], group="g", mode="after_commit")
    found = topic("library.book", observe=False)
    assert found.owners == ("tests",)
    assert [(s.model, s.capture, s.dialect) for s in found.senders] == [
        ("testapp.Book", "signals", "inventory")
    ]
    (one,) = found.subscribers
    assert (one.name, one.group, one.types, one.mode) == ("one", "g", ("CREATE",), "after_commit")
    assert found.gap is None


def test_declarations_ask_no_database(django_assert_num_queries: Any) -> None:
    """So that a build can draw the graph."""
    with django_assert_num_queries(0):
        catalogue(observe=False)


def test_a_pattern_subscribes_to_each_topic_that_it_matches(notes: NoteTopic) -> None:
    """And stands for itself where it matches none."""
    note_receiver("one", topic="library.*")
    note_receiver("two", topic="elsewhere.*")
    assert [one.name for one in topic("library.book").subscribers] == ["one"]
    assert [one.name for one in topic("library.chapter").subscribers] == ["one"]
    assert topic("elsewhere.*").gap == "nobody sends"


def test_a_broadcast_receiver_is_in_no_group(notes: NoteTopic) -> None:
    """Its mode says what it is."""

    @receiver("library.book", name="cache", broadcast=True)
    def cache(_event: object) -> None: ...

    try:
        (one,) = topic("library.book", observe=False).subscribers
    finally:
        broadcasts.remove("cache")
    assert (one.group, one.mode) == ("", "broadcast")


def test_what_is_missing_on_a_side_is_named(notes: NoteTopic) -> None:
    """A topic that nobody declares, and one that nobody takes."""
    note_receiver("one")
    assert topic("library.note", observe=False).gap == "nobody sends"
    assert topic("library.chapter", observe=False).gap == "nobody receives"
    publish("library.note", key="a", payload={})
    assert topic("library.note").gap is None


def test_types_are_seen_in_the_outbox_with_first_and_last_time(notes: NoteTopic) -> None:
    """Of topics too that nobody declared."""
    for kind in ("lent", "lent", "lost"):
        publish("library.loan", key="a", payload={}, type=kind)
    first = OutboxMessage.objects.order_by("id").first()
    assert first is not None
    past = timezone.now() - timedelta(days=3)
    OutboxMessage.objects.filter(pk=first.pk).update(occurred_at=past)
    lent, lost = topic("library.loan").seen
    assert (lent.type, lent.messages, lent.first_at, lost.type) == ("lent", 2, past, "lost")
    assert lent.last_at > lent.first_at


def test_a_sample_is_bounded_and_reaches_to_the_oldest_rows(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: Any
) -> None:
    """However many rows there are, a number of them is looked at, spread over all."""
    monkeypatch.setattr(catalog, "_SAMPLE", 10)
    rows = [("library.old", 40), ("library.new", 60)]
    made = []
    for name, count in rows:
        for _ in range(count):
            made.append(publish(name, key=None, payload={}))
    with django_assert_max_num_queries(6):
        seen = catalogue()
    assert seen.sampled <= 20
    assert topic("library.old").seen
    assert sum(one.messages for one in topic("library.new").seen) < 60


def test_groups_that_read_a_topic_are_seen(notes: NoteTopic) -> None:
    """By their offsets, though no receiver of theirs is here."""
    note_receiver("one", group="loans")
    notes.put_all("a")
    notes.consume("loans")
    for consumer in notes.consumers.values():
        consumer.close()
    notes.consumers.clear()
    registry.remove("one")
    assert topic("library.note").groups == ("loans",)
    assert "group loans, of which no receiver is here" in show()


def test_the_broker_is_asked_when_told_so(notes: NoteTopic) -> None:
    """Which topics it has, and which it has not."""
    assert topic("library.note", broker=notes.broker).on_broker is True
    assert topic("library.book", broker=notes.broker).on_broker is False
    assert topic("library.book").on_broker is None
    assert "not on the broker" in show("--broker")


class TestForms:
    def test_text_shows_owner_senders_receivers_and_gaps(self, notes: NoteTopic) -> None:
        """One block a topic."""
        note_receiver("one", topic="library.book", types=["CREATE"], group="g")
        text = show("--declared")
        sender = "  from  testapp.Book: dialect inventory, captured by signals\n"
        assert f"library.book  (tests)\n{sender}" in text
        assert "  to    one: group g, types CREATE, mode transaction\n" in text
        assert "library.chapter  (tests)  nobody receives\n" in text

    def test_json_has_all(self, notes: NoteTopic) -> None:
        """With owners and gaps worked out."""
        found = {one["name"]: one for one in json.loads(show("--json"))["topics"]}
        assert found["library.book"]["owners"] == ["tests"]
        assert found["library.book"]["gap"] == "nobody receives"
        assert found["library.book"]["senders"][0]["model"] == "testapp.Book"

    def test_graphs_have_an_arrow_from_sender_to_topic_to_receiver(self, notes: NoteTopic) -> None:
        """For Graphviz and for Markdown pages."""
        note_receiver("one", topic="library.book", types=["CREATE"])
        dot = show("--dot", "--declared")
        assert '"testapp.Book" -> "library.book" [label="tests"];' in dot
        assert '"library.book" -> "one" [label="CREATE"];' in dot
        nodes = show("--mermaid", "--declared").splitlines()
        assert nodes[0] == "flowchart LR"
        assert any('["library.book"]' in line for line in nodes)
        assert any('-->|"CREATE"|' in line for line in nodes)


def test_an_empty_outbox_is_an_empty_sample(notes: NoteTopic) -> None:
    """And nothing seen."""
    assert catalogue().sampled == 0
    assert isinstance(catalogue(), Catalogue)
    assert not any(isinstance(kind, SeenType) for one in catalogue().topics for kind in one.seen)
