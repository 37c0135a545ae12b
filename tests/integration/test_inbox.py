"""The inbox says once for each effect that it is new, and offsets are locked rows."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
from django.db import connections, transaction
from django.utils import timezone

from folio_events import inbox
from folio_events.exceptions import FencedError
from folio_events.inbox import Effect, Lane, Position
from folio_events.message import TopicPartition
from folio_events.models import ConsumerOffset, InboxEntry
from tests.outbox_writer import database_address

ONE, TWO = Lane(group="one", database="default"), Lane(group="two", database="default")
WITHOUT_DATABASE = Lane(group="one", database="")
FIRST, SECOND = TopicPartition("folio.library.note", 0), TopicPartition("folio.library.note", 1)


def new_effects(count: int) -> list[Effect]:
    return [Effect("receiver", uuid.uuid4()) for _ in range(count)]


def record(*effects: Effect) -> set[Effect]:
    return inbox.record(effects, using="default")


@pytest.mark.django_db
def test_an_effect_is_new_once() -> None:
    """Afterwards it is known; what stands beside it in the same call is not touched by that."""
    one, two, three = new_effects(3)
    assert record(one, two) == {one, two}
    assert record(two, three) == {three}
    assert record() == set()
    assert InboxEntry.objects.count() == 3


@pytest.mark.django_db
def test_receivers_and_replays_are_told_apart() -> None:
    """The same event in another receiver, or replayed, is another effect."""
    event_id = uuid.uuid4()
    each = [Effect("a", event_id), Effect("b", event_id), Effect("a", event_id, 1)]
    assert [record(effect) for effect in each] == [{effect} for effect in each]
    assert record(*each) == set()


@pytest.mark.django_db
def test_more_effects_than_a_statement_has_parameters_for_are_recorded() -> None:
    """Several statements in the one transaction."""
    many = new_effects(5000)
    assert record(*many[:4000]) == set(many[:4000])
    assert record(*many) == set(many[4000:])


@pytest.mark.django_db(transaction=True)
def test_a_rolled_back_effect_is_new_again() -> None:
    """The entry lives and dies with the work it stands for."""
    (effect,) = new_effects(1)

    def fail() -> None:
        with transaction.atomic():
            record(effect)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert record(effect) == {effect}


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_of_two_transactions_with_the_same_effect_one_makes_it(outcome: str) -> None:
    """The second waits for the first and does what it left undone."""
    (effect,) = new_effects(1)

    def second() -> set[Effect]:
        try:
            with transaction.atomic():
                return record(effect)
        finally:
            connections.close_all()

    with psycopg.connect(**database_address()) as first, ThreadPoolExecutor(1) as pool:
        first.execute(
            "INSERT INTO folio_events_inboxentry VALUES ('receiver', %s, 0, now())",
            [effect.event_id],
        )
        waiting = pool.submit(second)
        with psycopg.connect(**database_address(), autocommit=True) as observer:
            blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while not waiting.done():
                row = observer.execute(blocked).fetchone()
                if row is not None and row[0]:
                    break
        assert not waiting.done()
        getattr(first, outcome)()
        assert waiting.result(20) == (set() if outcome == "commit" else {effect})


@pytest.mark.django_db
def test_positions_are_those_of_group_partition_and_database() -> None:
    """Starting one that exists changes nothing."""
    inbox.start(ONE, {FIRST: Position(5, "topic id"), SECOND: Position(7)})
    inbox.start(TWO, {FIRST: Position(9)})
    inbox.start(WITHOUT_DATABASE, {FIRST: Position(3)})
    inbox.start(ONE, {FIRST: Position(0)})
    assert inbox.positions(ONE, [FIRST, SECOND]) == {
        FIRST: Position(5, "topic id"),
        SECOND: Position(7),
    }
    assert inbox.positions(TWO, [FIRST, SECOND]) == {FIRST: Position(9)}
    assert inbox.positions(WITHOUT_DATABASE, [FIRST]) == {FIRST: Position(3)}
    assert inbox.positions(Lane(group="three", database="default"), [FIRST]) == {}
    assert inbox.positions(ONE, []) == {}


@pytest.mark.django_db
def test_advancing_moves_only_what_it_names() -> None:
    """Another group and another partition stay where they are."""
    inbox.start(ONE, {FIRST: Position(5), SECOND: Position(7)})
    inbox.start(TWO, {FIRST: Position(9)})
    with transaction.atomic():
        inbox.lock(ONE, {FIRST: 5}, wait=True)
        inbox.advance(ONE, {FIRST: 6})
    found = ConsumerOffset.objects.order_by("group", "partition").values_list("offset", flat=True)
    assert list(found) == [6, 7, 9]


@pytest.mark.django_db
def test_who_expects_another_offset_is_fenced() -> None:
    """Also who expects one in a partition that the group does not have."""
    inbox.start(ONE, {FIRST: Position(5)})
    for expected in ({FIRST: 4}, {FIRST: 6}, {FIRST: 5, SECOND: 0}):
        with pytest.raises(FencedError, match="'one'"):
            inbox.lock(ONE, expected, wait=True)
    inbox.lock(ONE, {FIRST: 5}, wait=True)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_who_does_not_wait_is_fenced_by_a_lock() -> None:
    """Partitions that nobody holds can be locked meanwhile."""
    inbox.start(ONE, {FIRST: Position(5), SECOND: Position(7)})
    with psycopg.connect(**database_address()) as holder:
        holder.execute("SELECT 1 FROM folio_events_consumeroffset WHERE partition = 0 FOR UPDATE")
        with transaction.atomic():
            inbox.lock(ONE, {SECOND: 7}, wait=False)
            with pytest.raises(FencedError):
                inbox.lock(ONE, {FIRST: 5, SECOND: 7}, wait=False)


@pytest.mark.django_db
def test_beginnings_without_an_end_are_counted() -> None:
    """At one offset; an end or another offset starts the count anew."""
    inbox.start(ONE, {FIRST: Position(5)})
    assert [inbox.begin(ONE, FIRST, 5, wait=True) for _ in range(3)] == [1, 2, 3]
    inbox.end(ONE, [FIRST])
    assert inbox.begin(ONE, FIRST, 5, wait=True) == 1
    inbox.advance(ONE, {FIRST: 6})
    assert inbox.begin(ONE, FIRST, 6, wait=True) == 1
    with pytest.raises(FencedError):
        inbox.begin(ONE, FIRST, 5, wait=True)


@pytest.mark.django_db
def test_a_beginning_that_may_be_another_members_is_given_way_to() -> None:
    """Where nobody hands out partitions, a young note is not taken for a crash."""
    inbox.start(ONE, {FIRST: Position(5)})
    assert inbox.begin(ONE, FIRST, 5, wait=False) == 1
    with pytest.raises(FencedError, match="begins here"):
        inbox.begin(ONE, FIRST, 5, wait=False)
    ConsumerOffset.objects.update(updated_at=timezone.now() - timedelta(hours=1))
    assert inbox.begin(ONE, FIRST, 5, wait=False) == 2
