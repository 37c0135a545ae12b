"""The queries that poll go by an index, whatever the tables hold and the statistics say."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from django.db import connection, models, transaction
from django.utils import timezone

from folio_events import deliveries, inbox, outbox, publish, withheld
from folio_events.brokers import get_broker
from folio_events.cursor import _READ
from folio_events.inbox import Effect, Lane
from folio_events.message import TopicPartition
from folio_events.models import (
    BrokerPartition,
    BrokerRecord,
    ConsumerOffset,
    Delivery,
    InboxEntry,
    OutboxMessage,
    Publication,
    WithheldMessage,
)
from folio_events.monitoring import search
from folio_events.monitoring.history import history
from folio_events.monitoring.positions import stopped_partitions
from folio_events.monitoring.search import By
from folio_events.operations.dead_letters import Selection
from folio_events.relay import _relay_lock
from tests.note_topic import note_receiver

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

_ROWS = 4000
#: Most rows that one statement may look at: the relay's batch, or twice a chain of 500.
_MOST_TOUCHED = 1600
_FEW = 100
_FILLED = (
    OutboxMessage,
    Publication,
    WithheldMessage,
    Delivery,
    InboxEntry,
    ConsumerOffset,
    BrokerRecord,
)


def fill(template: models.Model, *, rows: int = _ROWS, **expressions: str) -> None:
    """Insert rows like the template, but for columns that are computed from ``n``."""
    model = type(template)
    model._base_manager.bulk_create([template])
    quote = connection.ops.quote_name
    names = [
        field.column
        for field in model._meta.concrete_fields
        if field.column and not isinstance(field, models.BigAutoField)
    ]
    columns = ", ".join(quote(name) for name in names)
    values = ", ".join(expressions.get(name, quote(name)) for name in names)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {model._meta.db_table} ({columns}) "
            f"SELECT {values} FROM {model._meta.db_table}, generate_series(1, {rows - 1}) AS n"
        )


def analyze() -> None:
    with connection.cursor() as cursor:
        for model in _FILLED:
            cursor.execute(f"ANALYZE {model._meta.db_table}")


def explain(sql: str, params: Any = None) -> dict[str, Any]:
    """The plan of a statement, which is run."""
    with connection.cursor() as cursor:
        # Some thousand rows stand for millions: of so few, to read them all may be cheaper than
        # to fetch a hundred pages at random, as PostgreSQL reckons unless it is told better.
        cursor.execute("SELECT set_config('random_page_cost', '1.1', true)")
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", params)
        (found,) = cursor.fetchone()
    plan: dict[str, Any] = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    return plan


def fill_outbox(rows: int = _ROWS) -> list[int]:
    """Messages of 500 keys; their ids."""
    template = OutboxMessage(
        event_id=uuid.uuid4(),
        topic="library.book",
        event_type="UPDATE",
        key="0",
        payload=b"x" * 300,
        repeating_headers=b"[]",
        own_headers=b"",
        occurred_at=timezone.now(),
    )
    fill(template, rows=rows, event_id="gen_random_uuid()", key="(n % 500)::text")
    return list(OutboxMessage.objects.order_by("id").values_list("id", flat=True))


class Distribution(NamedTuple):
    """Key and state of the n-th row, in SQL; ``n`` counts from 1, row 0 is the oldest."""

    key: str
    withheld_state: str
    delivery_state: str
    next_attempt_at: str = "now() - interval '1 second'"


#: One row in a hundred is open, in short chains.
FEW_OPEN = Distribution(
    key="(n % 500)::text",
    withheld_state="CASE WHEN n % 100 > 0 THEN 'published' WHEN n % 300 > 0 THEN 'waiting' ELSE 'refused' END",
    delivery_state="CASE WHEN n % 100 > 0 THEN 'resolved' WHEN n % 300 > 0 THEN 'retrying' ELSE 'dead' END",
)
#: Hundreds of rows wait behind the oldest one of a key.
LONG_CHAIN = Distribution(
    key="'0'",
    withheld_state="CASE WHEN n < 500 THEN 'waiting' ELSE 'published' END",
    delivery_state="CASE WHEN n < 500 THEN 'retrying' ELSE 'resolved' END",
)
#: Nearly every delivery waits for its next attempt, each with a key of its own.
BACKING_OFF = Distribution(
    key="n::text",
    withheld_state="'published'",
    delivery_state="'retrying'",
    next_attempt_at="now() + interval '1 hour'",
)


def fill_tables(distribution: Distribution) -> None:
    now = timezone.now()
    first = fill_outbox()[0]
    fill(
        Publication(outbox_message_id=first, topic="t", partition=0, offset=0, published_at=now),
        outbox_message_id="outbox_message_id + n",
        offset="n",
    )
    fill(
        WithheldMessage(
            outbox_message_id=first,
            topic="library.book",
            key="0",
            state="refused",
            withheld_at=now,
        ),
        outbox_message_id="outbox_message_id + n",
        key=distribution.key,
        state=distribution.withheld_state,
    )
    fill(
        Delivery(
            receiver="receiver 0",
            group="events",
            event_id=uuid.uuid4(),
            state="dead",
            order="key",
            next_attempt_at=now - timedelta(seconds=1),
            topic="folio.library.book",
            partition=0,
            offset=0,
            key="0",
            headers=b"[]",
            payload=b"x" * 300,
            traceback="x" * 1000,
            published_at=now,
            created_at=now,
        ),
        event_id="gen_random_uuid()",
        offset="n",
        key=distribution.key,
        state=distribution.delivery_state,
        next_attempt_at=distribution.next_attempt_at,
    )
    fill(
        InboxEntry(receiver="receiver 0", event_id=uuid.uuid4(), handled_at=now),
        receiver="'receiver ' || n % 10",
        event_id="gen_random_uuid()",
    )
    fill(
        ConsumerOffset(
            group="group 0",
            topic="folio.library.book",
            partition=0,
            database="default",
            offset=0,
            updated_at=now,
        ),
        group="'group ' || n % 40",
        partition="n / 40",
        offset="n",
    )
    fill(
        BrokerRecord(
            topic="folio.library.book",
            partition=0,
            offset=0,
            value=b"x" * 300,
            headers=b"[]",
            timestamp=0,
        ),
        partition="n % 4",
        offset="n / 4",
    )
    BrokerPartition.objects.bulk_create(
        BrokerPartition(topic="folio.library.book", partition=n, next_offset=_ROWS // 4)
        for n in range(4)
    )


@pytest.fixture(
    params=[FEW_OPEN, LONG_CHAIN, BACKING_OFF], ids=["few open", "long chain", "backing off"]
)
def filled(request: pytest.FixtureRequest) -> None:
    """Thousands of rows in each table, and fresh statistics."""
    fill_tables(request.param)
    analyze()


def looked_at(node: dict[str, Any]) -> float:
    """How many rows of a filled table a node of a plan that was run has looked at."""
    if node.get("Relation Name") not in {model._meta.db_table for model in _FILLED}:
        return 0
    useless = sum(count for name, count in node.items() if name.startswith("Rows Removed"))
    return float((node["Actual Rows"] + useless) * node["Actual Loops"])


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes_of(part)


def faults_of(sql: str, params: Any) -> list[str]:
    """What is wrong with the plan of a statement."""
    nodes = list(nodes_of(explain(sql, params)))
    # A LIMIT may end a sequential scan after its first rows.
    faults = [
        f"reads all of {node['Relation Name']}"
        for node in nodes
        if node["Node Type"] == "Seq Scan" and looked_at(node) > _FEW
    ]
    if (touched := sum(map(looked_at, nodes))) > _MOST_TOUCHED:
        faults.append(f"looks at {touched} rows")
    return faults


def faults_of_all(polls: Mapping[str, Callable[[], object]]) -> dict[str, list[str]]:
    """What is wrong with the plans of the statements that calls send, by call."""
    statements: list[tuple[str, Any]] = []

    def note(execute, sql, params, many, context):
        if sql.lstrip().startswith(("SELECT", "UPDATE", "DELETE")):
            statements.append((sql, params))
        return execute(sql, params, many, context)

    found: dict[str, list[str]] = {}
    for name, poll in polls.items():
        statements.clear()
        with connection.execute_wrapper(note):
            poll()
        assert statements, f"{name} asked nothing"
        for sql, params in list(statements):
            found.setdefault(name, []).extend(f"{fault}: {sql}" for fault in faults_of(sql, params))
    return {name: faults for name, faults in found.items() if faults}


_LANE = Lane(group="group 7", database="default")
_PLACES = [TopicPartition("folio.library.book", number) for number in range(6)]
_RECEIVERS = ["receiver 0", "receiver 1"]
_KEYS = [str(number) for number in range(500)]


def read_from_broker() -> None:
    subscription = get_broker().subscribe("events", ["folio.library.book"], lambda places: {})
    assert subscription.poll(500, 0)


_POLLS_OF_RELAY: dict[str, Callable[[], object]] = {
    "withheld.any_open": lambda: withheld.any_open(using="default"),
    "withheld.open_chains": lambda: withheld.open_chains(_KEYS[:50], using="default"),
    "withheld.publishable": lambda: withheld.publishable(1000, using="default"),
}
_POLLS: dict[str, Callable[[], object]] = {
    "deliveries.due": lambda: deliveries.due(_RECEIVERS, using="default").first(),
    "deliveries.claim": lambda: deliveries.claim(_RECEIVERS, using="default"),
    "deliveries.standing": lambda: deliveries.standing(
        _RECEIVERS, _KEYS[:50], [uuid.uuid4() for _ in range(50)], _PLACES, using="default"
    ),
    "deliveries.count_open": lambda: deliveries.count_open("receiver 1", 100, using="default"),
    "inbox.positions": lambda: inbox.positions(_LANE, _PLACES),
    "inbox.lock": lambda: inbox.lock(_LANE, {p: 40 * p.partition + 7 for p in _PLACES}, wait=False),
    "inbox.advance": lambda: inbox.advance(_LANE, dict.fromkeys(_PLACES, 9999)),
    "inbox.seen": lambda: inbox.seen(Effect("receiver 1", uuid.uuid4()), using="default"),
    "number of dead letters": lambda: Selection().dead(using="default")[:1000].count(),
    "outbox.backlog": lambda: outbox.backlog(using="default"),
    "brokers.database": read_from_broker,
}


@pytest.mark.usefixtures("filled")
def test_no_polling_query_reads_a_whole_table():
    """What is asked again and again goes by an index where tables hold thousands of rows."""
    assert faults_of_all(_POLLS) == {}


@pytest.mark.usefixtures("filled")
def test_no_polling_query_of_the_relay_reads_a_whole_table():
    """Under the relay's lock too, however many messages are withheld."""
    with _relay_lock("default", get_broker()) as locked:
        assert locked
        assert faults_of_all(_POLLS_OF_RELAY) == {}


_EVENT = uuid.UUID(int=7)
_LOOKS: dict[str, Callable[[], object]] = {
    "search by key": lambda: search.search("7"),
    "search by the key of many": lambda: search.search("0"),
    "search by id": lambda: search.search(str(_EVENT)),
    "search by tenant": lambda: search.search("nobody", By.TENANT),
    "search by request id": lambda: search.search("nothing", By.REQUEST_ID),
    "history of an event": lambda: history(OutboxMessage.objects.latest("id").event_id),
    "history of a delivery": lambda: history(Delivery.objects.latest("id").event_id),
    "what it caused": lambda: search.caused_by(_EVENT, timezone.now() - timedelta(days=1)),
}


@pytest.mark.usefixtures("filled")
def test_no_look_at_an_event_reads_a_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has an index goes by it, and the rest is looked for in a piece."""
    for bound in ("LOOKED_AT", "LOOKED_AT_AFTER"):
        monkeypatch.setattr(search, bound, 500)
    assert faults_of_all(_LOOKS) == {}


def test_receivers_whose_deliveries_came_last_are_found_by_an_index() -> None:
    """To look for the first of many from the table's beginning would read all that came before."""
    fill_tables(FEW_OPEN)
    late = Delivery.objects.order_by("-id").values("id")[: _ROWS // 2]
    Delivery.objects.filter(id__in=late).update(receiver="receiver 1")
    analyze()
    found: list[deliveries.Standing] = []
    asked: tuple[Any, ...] = (["receiver 1", "receiver 2"], [], [], [])
    ask = lambda: found.append(deliveries.standing(*asked, using="default"))  # noqa: E731
    assert faults_of_all({"standing": ask}) == {}


@pytest.mark.usefixtures("filled", "only_test_receivers")
def test_stopped_partitions_are_found_by_an_index() -> None:
    """Few deliveries stop one, among thousands that do not."""
    note_receiver("receiver 1", order="partition")
    Delivery.objects.filter(pk=Delivery.objects.latest("id").pk).update(
        receiver="receiver 1", order="partition", state="dead"
    )
    found: list[int] = []
    look = {"stopped": lambda: found.append(len(stopped_partitions()))}
    assert faults_of_all(look) == {}
    assert set(found) == {1}


class TestRelayRead:
    @staticmethod
    def parameters(position: int, gaps: int = 0) -> dict[str, Any]:
        first = OutboxMessage.objects.order_by("id").values_list("id", flat=True)[0]
        starts = [first + 17 * number for number in range(gaps)]
        last = [start + 2 for start in starts]
        return {"first": starts, "last": last, "position": position, "limit": 1000}

    @pytest.mark.parametrize("gaps", [0, 1, 200], ids="{} gaps".format)
    @pytest.mark.parametrize("behind", [0, 100, _ROWS], ids="{} behind".format)
    def test_gaps_and_tail_go_by_the_index_of_ids(self, gaps, behind):
        """The relay's read touches the rows it asks for, at the end of the outbox or far behind."""
        ids = fill_outbox()
        analyze()
        assert faults_of(_READ, self.parameters(ids[-1] - behind, gaps)) == []

    @pytest.mark.parametrize("gaps", [0, 1, 200], ids="{} gaps".format)
    @pytest.mark.parametrize("rows", [300, _ROWS], ids="{} rows".format)
    @pytest.mark.django_db(transaction=True)  # a table that was never larger
    def test_statistics_of_an_empty_outbox_do_not_mislead(self, rows, gaps):
        """Under the relay's lock the index is used although the planner thinks the table empty."""
        analyze()
        ids = fill_outbox(rows)
        parameters = self.parameters(ids[-1] - 100, gaps)
        with _relay_lock("default", get_broker()) as locked:
            assert locked
            assert faults_of(_READ, parameters) == []

    def test_the_setting_of_the_relay_ends_with_its_transaction(self):
        """What the relay tells the planner holds for its own transaction only."""
        with transaction.atomic():
            with _relay_lock("default", get_broker()):
                pass
            transaction.set_rollback(True)
        with connection.cursor() as cursor:
            cursor.execute("SHOW enable_seqscan")
            assert cursor.fetchone() == ("on",)


@pytest.mark.usefixtures("filled")
def test_an_append_looks_nothing_up(django_assert_num_queries):
    """Writing an event reads no table, however much the outbox holds."""
    publish("library.note", key="1", payload={})
    with django_assert_num_queries(1):
        publish("library.note", key="1", payload={}, ordered=False)


@pytest.mark.usefixtures("filled")
def test_a_scan_would_be_seen():
    """The tests of this file see a table that is read from end to end."""
    scan = {"scan": lambda: list(Delivery.objects.filter(traceback="y"))}
    assert "reads all of folio_events_delivery" in faults_of_all(scan)["scan"][0]
