"""On real rows: whatever the order in which edits and events meet, both sides end equal."""

from __future__ import annotations

import random
import uuid
from collections import deque

import pytest
from django.db import connection
from django.utils import timezone

from folio_events import tenant_context
from folio_events.models import OutboxMessage
from folio_events.receivers import registry
from folio_events.testing import captured_events
from sample_project.inventory.models import Item
from sample_project.orders.models import Piece
from sample_project.records import FolioRecord
from tests.acceptance.conftest import BOOK, CAN_CIRCULATE, TENANT

pytestmark = [pytest.mark.django_db, pytest.mark.once]


class Post:
    """Brings events to receivers one by one, as often as asked, in the order of each sender."""

    def __init__(self, times=1):
        self.times = times
        self.waiting = {}

    def watch(self, work):
        with captured_events() as caught:
            work()
        for event in caught:
            for receiver in registry:
                if receiver.wants(event):
                    queue = self.waiting.setdefault(
                        (event.topic, event.key, receiver.name), deque()
                    )
                    queue.extend([(receiver, event)] * self.times)

    def copy(self):
        other = Post(self.times)
        other.waiting = {place: deque(queue) for place, queue in self.waiting.items()}
        return other

    def places(self):
        return [place for place, queue in self.waiting.items() if queue]

    def bring(self, place):
        receiver, event = self.waiting[place].popleft()
        with tenant_context(event.tenant):
            self.watch(lambda: receiver.function(event))


def new_item(**fields):
    return Item.objects.create(
        holdings_record_id=uuid.uuid4(),
        material_type_id=BOOK,
        permanent_loan_type_id=CAN_CIRCULATE,
        status={"name": "Available"},
        **fields,
    )


def write(row, **values):
    """Save a fresh copy of the row with other values."""
    current = type(row).objects.get(pk=row.pk)
    for name, value in values.items():
        setattr(current, name, value)
    current.save()


def facts():
    return {
        (row.enumeration, row.chronology, row.barcode)
        for row in (*Item.objects.all(), *Piece.objects.filter(item_id__isnull=False))
    }


def walk(post, plan, choose=list):
    """Try the orders of what can happen next; yield what the rows say when all has happened.

    ``choose`` picks from the next steps those to try: all, unless told otherwise.
    """
    steps = [("edit", index) for index, edits in enumerate(plan) if edits]
    steps += [("bring", place) for place in post.places()]
    if not steps:
        yield facts()
        return
    for kind, what in choose(steps):
        savepoint = str(connection.savepoint())
        then, rest = post.copy(), [list(edits) for edits in plan]
        if kind == "edit":
            then.watch(rest[what].pop(0))
        else:
            then.bring(what)
        yield from walk(then, rest, choose)
        connection.savepoint_rollback(savepoint)


@pytest.fixture
def item(diku):
    return new_item(enumeration="v.1", chronology="1913", barcode="1")


@pytest.fixture
def piece(item):
    return Piece.objects.create(
        po_line_id=uuid.uuid4(), item_id=item.pk, enumeration="v.1", chronology="1913", barcode="1"
    )


class TestInterleavings:
    def test_every_order_of_an_edit_on_each_side_ends_equal(self, item, piece):
        plan = [
            [lambda: write(item, enumeration="item", barcode="item")],
            [lambda: write(piece, enumeration="piece", barcode="piece")],
        ]
        ends = list(walk(Post(), plan))
        assert len(ends) > 5
        assert all(len(end) == 1 for end in ends)

    def test_random_orders_of_two_edits_on_each_side_end_equal(self, item, piece):
        plan = [
            [lambda: write(item, enumeration="item"), lambda: write(item, enumeration="v.1")],
            [lambda: write(piece, enumeration="piece"), lambda: write(piece, chronology="1914")],
        ]
        for seed in range(60):
            rng = random.Random(seed)
            (end,) = walk(Post(), plan, choose=lambda steps, rng=rng: [rng.choice(steps)])
            assert len(end) == 1, f"seed {seed}"

    def test_every_order_of_a_link_and_an_edit_ends_equal(self, item):
        loose = Piece.objects.create(
            po_line_id=uuid.uuid4(), enumeration="v.9", chronology="9", barcode="9"
        )
        plan = [
            [lambda: write(item, enumeration="item", barcode="")],
            [lambda: write(loose, item_id=item.pk)],
        ]
        ends = list(walk(Post(), plan))
        assert len(ends) > 2
        assert all(len(end) == 1 for end in ends)

    def test_edits_at_one_microsecond_end_with_the_owners(self, item, piece, monkeypatch):
        moment = timezone.now()
        monkeypatch.setattr("sample_project.sync.models.timezone.now", lambda: moment)
        post = Post()
        post.watch(lambda: write(piece, enumeration="piece", barcode="piece"))
        post.watch(lambda: write(item, enumeration="item", barcode="item"))
        ends = list(walk(post, []))
        assert all(end == {("item", "1913", "piece")} for end in ends)

    def test_every_order_of_writes_that_stamp_nothing_ends_equal(self, item, piece):
        # As a bulk write does once its events are captured: the row changes, its stamps do not.
        def bulk(row, **values):
            current = type(row).objects.get(pk=row.pk)
            for name, value in values.items():
                setattr(current, name, value)
            FolioRecord.save(current, update_fields=list(values))

        plan = [
            [lambda: bulk(item, enumeration="item")],
            [lambda: bulk(piece, enumeration="piece")],
        ]
        ends = list(walk(Post(), plan))
        assert all(len(end) == 1 for end in ends)


class TestThreeTimes:
    def test_every_event_delivered_three_times_gives_the_same_result(self, item, piece):
        def run(times):
            savepoint = str(connection.savepoint())
            post = Post(times)
            post.watch(lambda: write(item, enumeration="item", chronology="1920"))
            post.watch(lambda: write(piece, enumeration="piece", receiving_status="Received"))
            post.watch(lambda: write(item, barcode=""))
            while places := post.places():
                post.bring(places[0])
            result = facts(), OutboxMessage.objects.count()
            connection.savepoint_rollback(savepoint)
            return result

        assert run(times=3) == run(times=1)

    def test_the_whole_stream_run_again_changes_no_value(self, item, piece):
        with captured_events() as caught:
            post = Post()
            post.watch(lambda: write(item, enumeration="item"))
            post.watch(lambda: write(piece, chronology="1920"))
            post.watch(lambda: write(item, enumeration="item again"))
            while places := post.places():
                post.bring(places[0])
        before = facts()
        for event in [*caught, *caught]:
            for receiver in registry:
                if receiver.wants(event):
                    receiver.function(event)
        assert facts() == before
        assert TENANT == "diku"
