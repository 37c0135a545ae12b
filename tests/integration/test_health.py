"""Health is asked of what is there: each reason turns it, and nothing keeps it green."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import connections, transaction
from django.db.utils import OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client, RequestFactory
from django.urls import include, path, reverse
from django.utils import timezone

from folio_events import CircuitBreaker, RetryPolicy, probes, publish
from folio_events.consumer import Consumer
from folio_events.exceptions import BrokerUnavailableError
from folio_events.management.health_file import health_file
from folio_events.models import Delivery, Orphan, OutboxMessage, Process
from folio_events.monitoring.health import LONG_BATCH, Health, health, readiness
from folio_events.monitoring.overview import Thresholds
from folio_events.processes import Heartbeat
from folio_events.relay import drain
from tests.faulty_broker import FaultyBroker
from tests.note_topic import LOGICAL, Mood, NoteTopic, note_receiver

pytest_plugins = ("tests.second_connection",)
pytestmark = pytest.mark.django_db(transaction=True)
urlpatterns = [path("health/", include("folio_events.probes"))]


@pytest.fixture
def alive(notes: NoteTopic) -> Heartbeat:
    """A relay and a consumer of the one group are alive, and nothing waits."""
    note_receiver("one")
    Heartbeat(Process.Kind.RELAY, "default", using="default").beat(Process.State.POLLING)
    consumer = Heartbeat(Process.Kind.CONSUMER, "events", using="default")
    consumer.beat(Process.State.WAITING)
    return consumer


def test_all_is_well_where_nothing_is_wrong(alive: Heartbeat) -> None:
    """Without a reason there is none."""
    found = health()
    assert (found.state, found.reasons) == ("ok", [])
    assert readiness().state == "ok"


def no_relay() -> None:
    Process.objects.filter(kind="relay").delete()


def no_relay_while_messages_wait() -> None:
    publish(LOGICAL, key="a", payload={})
    OutboxMessage.objects.update(occurred_at=timezone.now() - timedelta(seconds=5))
    no_relay()


def a_vanished_consumer() -> None:
    Process.objects.filter(kind="consumer").update(
        heartbeat_at=timezone.now() - timedelta(seconds=31)
    )


def a_stalled_relay() -> None:
    Process.objects.filter(kind="relay").update(state="stalled", detail="no answer")


def a_long_batch() -> None:
    Process.objects.filter(kind="consumer").update(
        busy_since=timezone.now() - timedelta(seconds=LONG_BATCH)
    )


def an_old_message() -> None:
    publish(LOGICAL, key="a", payload={})
    OutboxMessage.objects.update(occurred_at=timezone.now() - timedelta(seconds=61))


def a_very_old_message() -> None:
    publish(LOGICAL, key="a", payload={})
    OutboxMessage.objects.update(occurred_at=timezone.now() - timedelta(seconds=601))


def a_dead_letter(notes: NoteTopic) -> None:
    note_receiver("fails", Mood(1), retry=RetryPolicy(attempts=1))
    notes.put("a", 1)
    notes.consume()


def an_open_breaker(notes: NoteTopic) -> None:
    breaker = CircuitBreaker(failures=1, pause=60)
    note_receiver("fails", Mood(1), retry=RetryPolicy(attempts=5), breaker=breaker)
    notes.put("a", 1)
    notes.consume()


def a_withheld_message() -> None:
    broker = FaultyBroker({})
    broker.refuses = lambda _message: True
    publish(LOGICAL, key="a", payload={})
    drain(broker=broker)


def an_orphan() -> None:
    now = timezone.now()
    Orphan.objects.create(
        topic="t", partition=0, offset=0, fault="missing", error="", headers=b"",
        published_at=now, found_at=now,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "state", "reason"),
    [
        (no_relay, "degraded", "no relay of database default is alive"),
        (no_relay_while_messages_wait, "failing", "no relay of database default is alive"),
        (a_vanished_consumer, "failing", "no consumer of group events is alive"),
        (a_stalled_relay, "degraded", "waits: no answer"),
        (a_long_batch, "degraded", "has worked on one batch for 300 s"),
        (an_old_message, "degraded", "the oldest unpublished message is 61 s old"),
        (a_very_old_message, "failing", "the oldest unpublished message is 601 s old"),
        (a_dead_letter, "degraded", "1 delivery is dead"),
        (an_open_breaker, "degraded", "breakers are open: fails"),
        (a_withheld_message, "degraded", "the broker refused 1 message"),
        (an_orphan, "degraded", "1 message has no owner"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_reason_turns_it(
    wrong: Callable[..., None], state: str, reason: str, alive: Heartbeat, notes: NoteTopic
) -> None:
    """To the state that it deserves, and it is named."""
    wrong(*[notes] * wrong.__code__.co_argcount)
    found = health()
    assert found.state == state
    assert any(reason in text for text in found.reasons), found.reasons


def test_thresholds_and_groups_are_the_projects_own(alive: Heartbeat) -> None:
    """A group that runs by the clock need not be alive all the time."""
    a_vanished_consumer()
    an_old_message()
    assert health(groups=[], thresholds=Thresholds(degraded_age=None)).state == "ok"


def test_a_lag_turns_it(alive: Heartbeat, notes: NoteTopic) -> None:
    """Of a group that is alive and does not keep up."""
    notes.put_all(["a"] * 5)
    limits = Thresholds(degraded_lag=5)
    assert health(thresholds=limits).reasons == ["a group is 5 records behind in a partition"]
    notes.consume()
    assert health(thresholds=limits).state == "ok"


def refused(*_args: object, **_options: object) -> Any:
    raise OperationalError("connection refused: password=hunter2")


def test_a_database_that_is_away_fails_both(
    alive: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own words, which may tell too much, are not repeated."""
    monkeypatch.setattr(connections["default"], "ensure_connection", refused)
    for found in (readiness(), health()):
        assert (found.state, found.reasons) == ("failing", ["database default does not answer"])


def test_missing_tables_fail_both(alive: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that makes them."""
    monkeypatch.setattr(OutboxMessage._meta, "db_table", "folio_events_none")
    for found in (readiness(), health()):
        assert found.state == "failing"
        assert "manage.py migrate" in found.reasons[0]


@pytest.mark.postgres
def test_a_locked_table_fails_both(
    alive: Heartbeat, monkeypatch: pytest.MonkeyPatch, other: Callable[..., Future[Any]]
) -> None:
    """Writes with events would wait too; the probe itself does not, and blames no migration."""
    monkeypatch.setattr("folio_events.monitoring.overview._PATIENCE", 0.2)
    locked, seen = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(), connections["default"].cursor() as cursor:
            cursor.execute("LOCK TABLE folio_events_outboxmessage IN ACCESS EXCLUSIVE MODE")
            locked.set()
            assert seen.wait(5)

    holding = other(hold)
    assert locked.wait(5)
    found = [readiness(), health()]
    seen.set()
    holding.result(5)

    reason = "somebody has locked tables of folio_events in database default"
    assert [(one.state, one.reasons) for one in found] == [("failing", [reason])] * 2


def test_a_full_outbox_is_not_ready(alive: Heartbeat, folio_events: Callable[..., None]) -> None:
    """Writes would be refused, so requests should go elsewhere."""
    publish(LOGICAL, key="a", payload={})
    folio_events(OUTBOX_HARD_LIMIT=1)
    assert readiness().reasons == ["1 outbox messages wait: writes with events are refused"]


@pytest.mark.urls(__name__)
class TestViews:
    @pytest.fixture(autouse=True)
    def each_look_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probes, "_LIFETIME", 0.0)

    def ask(self, view: Callable[..., HttpResponse], user: object = None, **options: Any) -> Any:
        request: HttpRequest = RequestFactory().get("/")
        request.user = user or AnonymousUser()  # type: ignore[assignment]  # a stand-in
        response = view(request, **options)
        assert isinstance(response, JsonResponse)
        import json

        return response.status_code, json.loads(response.content)

    def test_they_are_found_by_url(self, client: Any, alive: Heartbeat) -> None:
        """Whoever asks, without a session."""
        for name in ("live", "ready", "health"):
            response = client.get(reverse(f"folio_events_{name}"))
            assert (response.status_code, response.json()) == (200, {"state": "ok"})
            assert "no-store" in response.headers["Cache-Control"]

    def test_reasons_are_for_staff(self, alive: Heartbeat) -> None:
        """Others see the state, and no names."""
        no_relay()
        staff, other = User(is_staff=True), User()
        reasons = ["no relay of database default is alive"]
        assert self.ask(probes.health, staff) == (200, {"state": "degraded", "reasons": reasons})
        assert self.ask(probes.health, other) == (200, {"state": "degraded"})
        assert self.ask(probes.health) == (200, {"state": "degraded"})
        assert self.ask(probes.health, User(is_staff=True, is_active=False))[1].keys() == {"state"}

    def test_what_fails_is_503(self, alive: Heartbeat, folio_events: Callable[..., None]) -> None:
        """Of both; that the process lives is another question."""
        a_vanished_consumer()
        publish(LOGICAL, key="a", payload={})
        folio_events(OUTBOX_HARD_LIMIT=1)
        for view in (probes.health, probes.ready):
            assert self.ask(view) == (503, {"state": "failing"})
        assert self.ask(probes.live) == (200, {"state": "ok"})

    def test_options_come_from_the_url(self, alive: Heartbeat) -> None:
        """Each set of them is looked at by itself."""
        a_vanished_consumer()
        assert self.ask(probes.health, groups=()) == (200, {"state": "ok"})
        assert self.ask(probes.health)[0] == 503

    def test_who_asks_often_gets_the_last_look(
        self, alive: Heartbeat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Within five seconds, so that anybody may ask."""
        monkeypatch.setattr(probes, "_LIFETIME", 60.0)
        looks: list[int] = []

        def look(**_options: object) -> Health:
            looks.append(1)
            return Health()

        monkeypatch.setattr(probes, "_looks", {})
        monkeypatch.setattr("folio_events.monitoring.health.health", look)
        for _ in range(3):
            self.ask(probes.health)
        assert len(looks) == 1


class Silence:
    """What a broker says that is away: nothing, until the test ends it."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()

    def __call__(self, *_args: object) -> Any:
        self.begun.set()
        assert self.over.wait(5)
        raise BrokerUnavailableError("nobody is there")


@pytest.mark.urls(__name__)
class TestWhileAnotherLooks:
    @pytest.fixture(autouse=True)
    def each_look_is_stale(self, alive: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probes, "_looks", {})
        monkeypatch.setattr(probes, "_LIFETIME", 0.0)

    @pytest.fixture
    def silence(self) -> Iterator[Silence]:
        silence = Silence()
        yield silence
        silence.over.set()

    @pytest.fixture
    def look(
        self,
        silence: Silence,
        notes: NoteTopic,
        monkeypatch: pytest.MonkeyPatch,
        other: Callable[..., Future[Any]],
    ) -> Callable[[], Future[Any]]:
        """Begins a look that has to wait for the broker."""

        def begin() -> Future[Any]:
            monkeypatch.setattr(notes.broker, "list_topics", silence)
            looking = other(lambda: Client().get(reverse("folio_events_health")))
            assert silence.begun.wait(5)
            return looking

        return begin

    def test_others_get_the_last_look_at_once(
        self, client: Any, look: Callable[[], Future[Any]], silence: Silence
    ) -> None:
        """And how old it is; of all who ask, one waits for a broker that is away."""
        url = reverse("folio_events_health")
        assert client.get(url).json() == {"state": "ok"}
        looking = look()

        answer = client.get(url)
        for name in ("live", "ready"):
            assert client.get(reverse(f"folio_events_{name}")).status_code == 200

        assert not looking.done()
        assert answer.json() == {"state": "ok"}
        assert 0 <= int(answer.headers["Age"]) < 5
        silence.over.set()
        assert looking.result(5).json() == {"state": "degraded"}

    def test_who_asks_during_the_first_look_hears_of_the_database(
        self, client: Any, look: Callable[[], Future[Any]]
    ) -> None:
        """There is none before it, and the broker is being asked already."""
        looking = look()

        assert client.get(reverse("folio_events_health")).json() == {"state": "ok"}
        assert not looking.done()


def test_the_health_file_stays_young_during_a_long_batch(
    tmp_path: Any, notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the consumer tells its group that it lives."""
    from folio_events import consumer as consumer_module

    monkeypatch.setattr(consumer_module, "_KEEP_ALIVE_INTERVAL", 0.01)
    touched = threading.Event()
    heard: list[int] = []
    stop = threading.Event()

    def work_long(_event: object) -> None:
        heard.clear()
        assert touched.wait(20)

    def alive() -> None:
        heard.append(1)
        file.alive("events")
        # Twice within the batch: the first may have been the poll before it.
        if len(heard) >= 2:
            touched.set()

    note_receiver("slow", work_long)
    notes.put("a", 1)
    consumer = Consumer("events", broker=notes.broker)

    def end() -> None:
        assert touched.wait(20)
        stop.set()

    ender = threading.Thread(target=end)
    ender.start()
    with health_file(str(tmp_path / "alive"), ["events"]) as file:
        consumer.run(stop, alive=alive)
        assert (tmp_path / "alive").exists()
    consumer.close()
    ender.join()
    assert not Delivery.objects.exists()
