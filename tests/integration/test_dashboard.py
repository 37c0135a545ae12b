"""The dashboard shows how the delivery fares: to whom it may, quickly, whatever is away."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from folio_events import counts, publish, tenant_context
from folio_events.admin.charts import chart
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.counts import Outcome, Series
from folio_events.models import (
    ConsumerOffset,
    Delivery,
    EventCount,
    OutboxMessage,
    Process,
    Publication,
    ReceiverState,
    RelayCursor,
)
from folio_events.monitoring import broker_report
from folio_events.relay import drain
from folio_events.topics import wire_topic
from tests.busy_library import furnish
from tests.note_topic import NoteTopic, note_receiver

pytest_plugins = ("tests.second_connection",)
pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/admin/folio_events/dashboard/"
CATALOGUE = "/admin/folio_events/dashboard/catalogue/"
HOSTILE = "<script>alert('x')</script>\"' onmouseover='alert(1)"
#: Statements of the page, the session's and the user's among them.
MOST_STATEMENTS = 45


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    counts._pending.clear()
    broker_report._inquiries.forget()
    yield
    broker_report._inquiries.forget()


def client(*models: str) -> Client:
    """Of a member of staff who may view these models; without any name: of a superuser."""
    user = User.objects.create_user(
        f"staff-{uuid.uuid4().hex[:8]}", is_staff=True, is_superuser=not models
    )
    for model in models:
        user.user_permissions.add(Permission.objects.get(codename=f"view_{model}"))
    browser = Client()
    browser.force_login(user)
    return browser


def page(**parameters: str) -> str:
    response = client().get(PAGE, parameters)
    assert response.status_code == 200
    return response.content.decode()


def words(html: str) -> str:
    """What a person reads of a page."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


ALL = (
    "outboxmessage", "withheldmessage", "delivery", "orphan", "relaycursor", "consumeroffset",
    "receiverstate", "process",
)  # fmt: skip


class TestPermission:
    @pytest.mark.parametrize("address", [PAGE, CATALOGUE])
    def test_who_may_view_all_of_it_sees_it(self, address: str) -> None:
        """The view permissions of the models that it shows are enough."""
        assert client(*ALL).get(address).status_code == 200

    @pytest.mark.parametrize("missing", ALL)
    def test_who_may_not_view_one_of_the_models_sees_nothing(self, missing: str) -> None:
        """Neither the page, nor the catalogue, nor a link to them."""
        browser = client(*(name for name in ALL if name != missing))
        assert browser.get(PAGE).status_code == 403
        assert browser.get(CATALOGUE).status_code == 403
        for address in ("/admin/", "/admin/folio_events/"):
            assert "dashboard/" not in browser.get(address).content.decode()

    def test_who_is_no_staff_is_sent_to_the_login(self) -> None:
        """As by every page of the admin."""
        assert Client().get(PAGE)["Location"].startswith("/admin/login/")

    @pytest.mark.parametrize("model", ALL)
    def test_the_index_and_each_list_lead_to_it(self, model: str) -> None:
        """One click from wherever somebody looks."""
        browser = client()
        for address in ("/admin/", "/admin/folio_events/"):
            assert f'href="{PAGE}"' in browser.get(address).content.decode()
        assert f'href="{PAGE}"' in browser.get(f"/admin/folio_events/{model}/").content.decode()


class TestContents:
    def test_numbers_lead_to_the_lists_behind_them(self) -> None:
        """Each as the list counts it."""
        furnish()
        html = page()
        for address, number in {
            "deadletter/": 3,
            "delivery/?state__exact=retrying": 6,
            "withheldmessage/?state__exact=refused": 1,
            "orphan/?state__exact=open": 1,
        }.items():
            tile = re.search(
                rf'href="/admin/folio_events/{re.escape(address)}">\s*<span(.*?)</a>', html, re.S
            )
            assert tile, address
            assert f'-number">{number}<' in tile[1]
            rows = client().get(f"/admin/folio_events/{address}").content.decode()
            if address == "deadletter/":
                assert f"{number} dead letters" in words(rows)
            else:
                assert rows.count('class="action-select"') == number

    def test_a_receiver_has_breaker_open_deliveries_and_the_last_hour(
        self, notes: NoteTopic
    ) -> None:
        """With links into the deliveries of it alone."""
        note_receiver("sync", group="library")
        counts.add(Outcome.HANDLED, "sync", 7, using="default")
        counts.add(Outcome.FAILED, "sync", 2, using="default")
        counts.flush(using="default", at_once=True)
        now = timezone.now()
        ReceiverState.objects.create(receiver="sync", failures=9, probe_at=now, updated_at=now)
        delivery("sync", "dead")
        html = page()
        assert 'href="/admin/folio_events/delivery/?receiver=sync&amp;state__exact=dead">1<' in html
        assert "sync: 7 handled, 2 failed" in html
        assert "breakers are open: sync" in words(html)
        assert "9 failures in a row" in words(html)

    def test_a_receiver_that_is_no_more_is_named(self) -> None:
        """Its deliveries wait to be re-pointed."""
        delivery("gone", "retrying")
        assert "gone not registered" in words(page())

    def test_overdue_events_stand_at_the_top_with_their_error(self) -> None:
        """Tenant, type, receiver, last error, and the way to the event's own page."""
        late = delivery(
            "sync", "retrying", tenant="diku", error="no such loan", age=timedelta(hours=1)
        )
        html = page()
        assert f'href="{reverse("admin:folio_events_event", args=[late.event_id])}"' in html
        text = words(html)
        assert "Overdue events" in text
        assert "diku · inventory.item UPDATE k sync ValueError: no such loan" in text

    def test_lag_is_shown_by_group_topic_and_partition(self, notes: NoteTopic) -> None:
        """As the broker and the offsets have it."""
        note_receiver("sync")
        notes.put_all("ab")
        notes.consume()
        notes.put_all("abc")
        text = words(page())
        assert re.search(r"events library\.note 3 [\d: -]+ 1 0: at 2, lag 3", text)
        assert re.search(r"Consumer lag 3 ", text)

    @pytest.mark.kafka
    def test_kafka_says_how_far_a_group_is_behind(
        self, kafka_broker: Broker, only_test_receivers: None
    ) -> None:
        """Also of a group that has not begun."""
        note_receiver("sync", group="library")
        kafka_broker.create_topics([TopicSpec(wire_topic("library.note", None), 1, 1)])
        for number in range(3):
            publish("library.note", key="k", payload={"number": number})
        drain()
        assert not broker_report.broker_report(patience=20).error
        text = words(page())
        assert "library library.note 3 not begun 1 0: not begun, lag 3" in text

    def test_lag_is_shown_by_tenant(
        self, memory_broker: MemoryBroker, folio_events: Callable[..., None],
        only_test_receivers: None,
    ) -> None:  # fmt: skip
        """In the outbox and behind the groups."""
        folio_events(
            TENANCY="folio", BROKER={"BACKEND": "folio_events.brokers.memory.MemoryBroker"}
        )
        note_receiver("sync")
        for tenant, number in (("diku", 2), ("uni", 1)):
            for _ in range(number):
                note(tenant)
        drain()
        note("uni")
        assert "diku 0 2 uni 1 1" in words(page())

    def test_processes_are_shown_with_what_they_do(self) -> None:
        """And those that have vanished."""
        furnish()
        text = words(page())
        assert "listens for wake-ups" in text
        assert "500 records for" in text
        assert "vanished" in text
        assert "4 1 vanished" in text

    def test_a_relay_that_polls_is_amber_only_where_it_could_listen(
        self, folio_events: Callable[..., None]
    ) -> None:
        """On PostgreSQL, unless wake-ups are switched off."""
        folio_events(WAKE_UP=True)
        furnish()
        Process.objects.filter(state="listening").update(state="polling")
        can_listen = connection.vendor == "postgresql"
        tones = "folio-events-held" if can_listen else "folio-events-good"
        assert f'{tones}">polls<' in page()
        folio_events(WAKE_UP=False)
        assert 'folio-events-good">polls<' in page()

    @pytest.mark.postgres
    def test_who_holds_the_relay_back_is_named(
        self, memory_broker: MemoryBroker, other: Callable[[Callable[[], Any]], Future[Any]]
    ) -> None:
        """The session that has an id below the cursor and has not committed."""
        from django.db import transaction

        def begin() -> int:
            transaction.set_autocommit(False)
            publish("library.note", key="k", payload={"number": 1})
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                return int(cursor.fetchone()[0])

        def end() -> None:
            transaction.rollback()
            transaction.set_autocommit(True)

        pid = other(begin).result(20)
        try:
            publish("library.note", key="k2", payload={"number": 2})
            drain()
            assert f"held back by pid {pid}" in words(page())
        finally:
            other(end).result(20)

    def test_the_part_is_the_page_without_its_frame(self) -> None:
        """What the script fetches."""
        part = page(part="1")
        assert "folio-events-tiles" in part
        assert "<html" not in part

    def test_what_rows_hold_is_escaped(self) -> None:
        """In every part of the page; nothing is inline that a policy would refuse."""
        furnish()
        Process.objects.update(host=HOSTILE[:255], detail=HOSTILE, partitions={HOSTILE: [1]})
        EventCount.objects.filter(outcome="handled").delete()
        EventCount.objects.filter(outcome="failed", name="inventory.follow_title").update(
            name=HOSTILE
        )
        Delivery.objects.update(receiver=HOSTILE, error=HOSTILE, key=HOSTILE, tenant=HOSTILE)
        ConsumerOffset.objects.update(group=HOSTILE, topic=HOSTILE)
        ReceiverState.objects.update(receiver=HOSTILE)
        html = page()
        assert HOSTILE not in html
        assert "onmouseover=" not in "".join(attributes(html))
        assert not {"style", "onclick", "onload"} & set(attributes(html))
        assert re.findall(r"<script(?![^>]*src=)[^>]*>", html) == []

    def test_the_catalogue_leads_to_the_messages(self, memory_broker: MemoryBroker) -> None:
        """Topics, who sends, what was seen, who receives."""
        publish("inventory.item", type="UPDATE", key="k", payload={"new": {}})
        response = client().get(CATALOGUE)
        html = response.content.decode()
        assert 'href="/admin/folio_events/outboxmessage/?topic=inventory.item"' in html
        text = words(html)
        assert "inventory.Item inventory team" in text
        assert "orders.update_pieces" in text


class TestQuickness:
    def test_a_silent_broker_does_not_keep_the_page(
        self, memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The page says that it does not answer, and what the database knows."""
        free = threading.Event()
        monkeypatch.setattr(type(memory_broker), "list_topics", lambda *_args: free.wait(20) and {})
        ConsumerOffset.objects.create(
            group="library", topic="folio.library.note", partition=0, offset=4,
            database="default", updated_at=timezone.now(),
        )  # fmt: skip
        try:
            began = time.monotonic()
            text = words(page())
            assert time.monotonic() - began < 3
            assert "The broker does not answer" in text
            assert "0: at 4, lag ?" in text
        finally:
            free.set()

    def test_a_broker_that_is_away_is_said_with_its_reason(
        self, folio_events: Callable[..., None]
    ) -> None:
        """And the page is there."""
        folio_events(BROKER={"BACKEND": "tests.faulty_broker.AbsentBroker"})
        assert "The broker does not answer" in words(page())

    def test_the_broker_is_asked_once_for_many_looks(
        self, memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many people have the page open."""
        asked: list[object] = []
        real = type(memory_broker).list_topics

        def list_topics(*arguments: Any) -> Any:
            asked.append(arguments)
            return real(*arguments)

        monkeypatch.setattr(type(memory_broker), "list_topics", list_topics)
        browser = client()
        for _ in range(5):
            browser.get(PAGE)
        assert len(asked) == 1
        assert get_broker() is memory_broker

    def test_statements_do_not_grow_with_the_rows(self) -> None:
        """Twice the receivers, deliveries, processes and partitions: as many statements."""
        furnish()
        browser = client()
        browser.get(PAGE)

        def statements() -> int:
            with CaptureQueriesContext(connection) as queries:
                assert browser.get(PAGE).status_code == 200
            return len(queries)

        before = statements()
        for number in range(30):
            delivery(f"receiver {number}", "dead", age=timedelta(hours=1))
            counts.add(Outcome.HANDLED, f"receiver {number}", using="default")
            ConsumerOffset.objects.create(
                group=f"group {number}", topic="folio.library.note", partition=number, offset=4,
                database="default", updated_at=timezone.now(),
            )  # fmt: skip
        counts.flush(using="default", at_once=True)
        assert statements() == before <= MOST_STATEMENTS

    @pytest.mark.postgres
    def test_no_statement_reads_the_whole_outbox(self, memory_broker: MemoryBroker) -> None:
        """Of 20,000 published messages, the page touches a few."""
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {OutboxMessage._meta.db_table} (event_id, topic, event_type, tenant,"
                " key, payload, repeating_headers, own_headers, occurred_at)"
                " SELECT gen_random_uuid(), 'library.note', 'UPDATE', '', n::text, 'x', '[]', '',"
                " now() - interval '1 hour' FROM generate_series(1, 20000) AS n"
            )
            cursor.execute(
                f"INSERT INTO {Publication._meta.db_table} SELECT id, 'folio.library.note', 0, id,"
                f" now() FROM {OutboxMessage._meta.db_table}"
            )
            cursor.execute(f"ANALYZE {OutboxMessage._meta.db_table}, {Publication._meta.db_table}")
        last = OutboxMessage.objects.latest("id")
        RelayCursor.objects.create(id=1, position=last.pk, version=1, updated_at=timezone.now())
        with CaptureQueriesContext(connection) as queries:
            client().get(PAGE)
        for query in queries:
            if "SELECT" in query["sql"] and "folio_events" in query["sql"]:
                with connection.cursor() as cursor:
                    cursor.execute("EXPLAIN " + query["sql"])
                    plan = "\n".join(line for (line,) in cursor.fetchall())
                assert "Seq Scan on folio_events_outboxmessage" not in plan, query["sql"]
                assert "Seq Scan on folio_events_publication" not in plan, query["sql"]


class TestCharts:
    def test_bars_stand_on_each_other_within_the_drawing(self) -> None:
        """Handled below, failed above, the highest at a round number."""
        drawn = chart(series(published=[0, 3], handled=[0, 15], failed=[0, 3]))
        assert (drawn.top, drawn.half) == (20, 10)
        assert drawn.handled_bars == "M1.1 100.0v-75.0h0.8v75.0z"
        assert drawn.failed_bars == "M1.1 25.0v-15.0h0.8v15.0z"
        assert drawn.line == "0.5,100.0 1.5,85.0"

    def test_one_failure_among_thousands_is_seen(self) -> None:
        """It takes its place from the bar below."""
        drawn = chart(series(published=[0], handled=[99_999], failed=[1]))
        assert drawn.handled_bars == "M0.1 100.0v-98.0h0.8v98.0z"
        assert drawn.failed_bars == "M0.1 2.0v-2.0h0.8v2.0z"

    def test_without_events_there_is_a_drawing_too(self) -> None:
        """A new installation has an empty one."""
        drawn = chart(series(published=[0], handled=[0], failed=[0]))
        assert (drawn.line, drawn.top) == ("", 4)


def series(*, published: list[int], handled: list[int], failed: list[int]) -> Series:
    now = timezone.now()
    starts = tuple(now + timedelta(minutes=number) for number in range(len(published)))
    return Series(
        starts=starts,
        counts={
            ("published", "t"): published,
            ("handled", "r"): handled,
            ("failed", "r"): failed,
        },
    )


def note(tenant: str) -> None:
    with tenant_context(tenant):
        publish("library.note", key="k", payload={"number": 1})


def delivery(
    receiver: str, state: str, *, tenant: str = "", error: str = "", age: timedelta = timedelta(0)
) -> Delivery:
    now = timezone.now()
    return Delivery.objects.create(
        receiver=receiver, group="library", event_id=uuid.uuid4(), state=state, order="key",
        attempts=1, topic="folio.inventory.item" if not tenant else "inventory.item", partition=0,
        offset=1, headers=b"[]", payload=b"{}", key="k", event_type="UPDATE", tenant=tenant,
        published_at=now - age, created_at=now, next_attempt_at=now, error_class="ValueError",
        error=error,
    )  # fmt: skip


class _Attributes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names += [name for name, _ in attrs]


def attributes(html: str) -> list[str]:
    parser = _Attributes()
    parser.feed(html)
    return parser.names
