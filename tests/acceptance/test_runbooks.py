"""A drill for each runbook: something is broken, and the page's own commands mend it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from django.utils import timezone

from folio_events.relay import LOCK
from tests.acceptance.drill import Drill, Server, build
from tests.pages import ROOT, Command
from tests.services import KafkaCluster, kafka

pytestmark = [pytest.mark.postgres, pytest.mark.kafka]

RUNBOOKS = sorted(path.stem for path in (ROOT / "docs/runbooks").glob("*.md"))
WORK = "    Arrival.objects.create(title=event.new["


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    """A Kafka that may be killed, and in which the names of the pages are free."""
    with kafka(private=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(os.environ["DATABASE_URL"])


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory, server: Server, cluster: KafkaCluster
) -> Iterator[tuple[Path, str]]:
    """The project of the README with its tables, which each drill copies."""
    folder, name = tmp_path_factory.mktemp("project"), f"drills_{uuid.uuid4().hex[:10]}"
    with server.database(name) as address:
        build(folder, address, cluster)
        yield folder, name


@pytest.fixture
def drill(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server: Server,
    template: tuple[Path, str],
    cluster: KafkaCluster,
) -> Iterator[Drill]:
    """The drill of the page that the test is named after."""
    folder, database = template
    page = request.function.__name__.removeprefix("test_").replace("_", "-")
    with server.database(f"drill_{uuid.uuid4().hex[:10]}", database) as address:
        drill = Drill(page, tmp_path / "project", folder, address, cluster)
        try:
            yield drill
        finally:
            drill.clean_up()


def test_every_runbook_has_a_drill() -> None:
    """Each page of the folder but its contents is followed by a test here."""
    names = {name.removeprefix("test_").replace("_", "-") for name in globals()}

    assert set(RUNBOOKS) - {"README"} <= names


def test_broker_down(drill: Drill) -> None:
    """With Kafka killed the site goes on, and everything arrives once it is back."""
    drill.start_daemons("relay_events", "consume_events")
    drill.add_books("Emma")
    drill.await_arrivals("Emma")
    drill.kafka.kill()
    try:
        drill.add_books("Dune")
        drill.follow_page("What you see")
        drill.follow_page("Steps")
    finally:
        drill.kafka.start()

    drill.await_arrivals("Dune", "Emma")
    drill.follow_page("How you know that it is over")
    drill.finish()


def test_lag_grows(drill: Drill) -> None:
    """A group without consumers falls behind, and one that is started makes up for it."""
    drill.one_partition()
    drill.start_daemons("relay_events")
    drill.add_books("Emma", "Dune", "Ubik")
    drill.follow_page("What you see")

    drill.follow_page("Steps")

    drill.await_arrivals("Dune", "Emma", "Ubik")
    drill.follow_page("How you know that it is over")
    drill.finish()


def test_dead_letters_grow(drill: Drill) -> None:
    """The cause is found, mended and deployed; the dead letter and its follower take effect."""
    bug = "    if event.new['title'] == 'Dune':\n        raise ValueError('no shelf for it')\n"
    drill.deploy("attempts=5", "attempts=1")
    drill.deploy('types=["CREATE"], ', "")
    drill.deploy(WORK, bug + WORK)
    drill.start_daemons("relay_events", "consume_events")
    drill.add_books("Emma", "Dune")
    drill.shell(
        "from library.models import Book; b = Book.objects.get(title='Dune');"
        "b.title = 'Dune II'; b.save()"
    )
    drill.follow_page("What you see")
    drill.follow_page("Steps", 2)

    drill.deploy(bug, "")
    drill.restart("relay_events", "consume_events")
    drill.follow_page("Steps")

    assert drill.arrivals() == ["Dune", "Dune II", "Emma"]
    drill.follow_page("How you know that it is over")
    drill.finish()


def test_poison_event(drill: Drill) -> None:
    """Bytes that are no event are set aside, looked at and discarded; their key goes on."""
    drill.start_daemons("relay_events", "consume_events")
    drill.add_books("Emma")
    drill.await_arrivals("Emma")
    drill.produce(b"\xff\xfe", b"13")
    drill.follow_page("What you see")
    drill.shell("from library.models import Book; Book.objects.create(pk=13, title='Dune')")
    drill.await_rows("folio_events_delivery", 2)
    assert drill.arrivals() == ["Emma"]

    drill.follow_page("Steps")

    assert drill.arrivals() == ["Dune", "Emma"]
    drill.follow_page("How you know that it is over")
    drill.finish()


def test_receiver_down(drill: Drill) -> None:
    """The breaker opens, events wait without an attempt, and run when the receiver works again."""
    bug = "    raise ConnectionError('the shelf does not answer')\n"
    drill.deploy("import Event,", "import CircuitBreaker, Event,")
    drill.deploy("attempts=5)", "attempts=5), breaker=CircuitBreaker(failures=2, pause=0.5)")
    drill.deploy(WORK, bug + WORK)
    drill.start_daemons("relay_events", "consume_events")
    drill.add_books("Emma", "Dune", "Ubik")
    drill.follow_page("What you see")
    drill.follow_page("Steps", 1)

    drill.deploy(bug, "")
    drill.restart("relay_events", "consume_events")
    drill.follow_page("Steps")

    drill.retry_until_arrived("Dune", "Emma", "Ubik")
    drill.follow_page("How you know that it is over")
    drill.finish()


def test_replay_after_a_bug(drill: Drill) -> None:
    """What a buggy receiver did is undone, and the window runs again, nothing else."""
    drill.start_daemons("relay_events", "consume_events")
    drill.add_books("Emma")
    drill.await_arrivals("Emma")
    drill.export("SINCE", timezone.now().isoformat())
    right = 'event.new["title"]'
    drill.deploy(right, f"{right}[:3]")
    drill.restart("relay_events", "consume_events")
    drill.add_books("Dune", "Ubik")
    drill.await_arrivals("Dun", "Emma", "Ubi")
    drill.follow_page("What you see")
    drill.follow_page("Steps", 1)

    drill.deploy(f"{right}[:3]", right)
    drill.restart("relay_events", "consume_events")
    drill.follow_page("Steps")

    drill.follow_page("How you know that it is over")
    drill.finish()


def test_relay_blocked(drill: Drill) -> None:
    """A relay that hangs, a session that never commits, a prepared transaction: each is ended."""
    drill.start_daemons("relay_events", "consume_events")
    drill.add_books("Emma")
    drill.await_arrivals("Emma")
    with drill.session("relay of host 4") as hanging, drill.session("night import") as holder:
        record(holder)
        hanging.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
        drill.export("RELAY_PID", hanging.info.backend_pid)
        drill.export("HOLDER_PID", holder.info.backend_pid)
        drill.add_books("Dune")
        drill.follow_page("What you see", 1)
        drill.follow_page("Steps", 1)
        drill.await_arrivals("Dune", "Emma")
        drill.follow_page("What you see")
        drill.follow_page("Steps", 2)
    with drill.session("transaction manager") as prepared:
        record(prepared)
        prepared.execute("PREPARE TRANSACTION 'loan 118'")
    drill.add_books("Ubik")
    drill.await_arrivals("Dune", "Emma", "Ubik")
    drill.follow_page("Steps")

    drill.await_rows("folio_events_publication", 4)
    drill.follow_page("How you know that it is over")
    drill.finish()


def record(session: psycopg.Connection) -> None:
    """Write an event as a site's transaction does, and do not commit it."""
    session.execute(
        "INSERT INTO folio_events_outboxmessage (event_id, topic, event_type, tenant, key, payload,"
        " repeating_headers, own_headers, occurred_at) SELECT gen_random_uuid(), topic, event_type,"
        " tenant, key, payload, repeating_headers, own_headers, now()"
        " FROM folio_events_outboxmessage LIMIT 1"
    )


def test_topic_deleted(drill: Drill) -> None:
    """The group goes on in the new topic, and events that nobody had read are published again."""
    drill.export("SINCE", timezone.now().isoformat())
    drill.start_daemons("relay_events", "consume_events")
    drill.add_books("Emma")
    drill.await_arrivals("Emma")
    drill.delete_topic()
    drill.follow_page("What you see", 1)
    drill.await_end()
    drill.add_books("Dune")
    drill.await_rows("folio_events_publication", 2)
    drill.delete_topic()
    drill.add_books("Ubik")
    drill.await_rows("folio_events_publication", 3)
    drill.start_daemons("consume_events")
    drill.follow_page("What you see")

    drill.restart("relay_events")
    drill.follow_page("Steps", 2)
    drill.start_daemons("consume_events")
    drill.follow_page("Steps")

    drill.await_arrivals("Dune", "Emma", "Ubik")
    drill.follow_page("How you know that it is over")
    drill.finish()


def test_database_restored(drill: Drill) -> None:
    """Effects of after the backup come back, once; ghosts are listed and their ids passed over."""
    drill.start_daemons("relay_events", "consume_events")
    drill.add_books("Emma", "Persuasion")
    drill.await_arrivals("Emma", "Persuasion")
    drill.restart("consume_events")
    drill.add_books("Solaris")
    drill.export("SINCE", timezone.now().isoformat())
    drill.run(Command("pg_dump --format=custom --file=library.dump"))
    drill.start_daemons("relay_events")
    drill.add_books("Dune", "Ubik")
    drill.await_arrivals("Dune", "Emma", "Persuasion", "Solaris", "Ubik")
    drill.stop()

    drill.follow_page("Steps", 1)
    assert drill.arrivals() == ["Emma", "Persuasion"]
    drill.start_daemons("consume_events")
    drill.follow_page("What you see")
    drill.stop()
    drill.follow_page("Steps", 3)
    drill.start_daemons("relay_events", "consume_events")
    drill.follow_page("Steps")

    drill.await_arrivals("Dune", "Emma", "Persuasion", "Solaris", "Ubik")
    drill.follow_page("How you know that it is over")
    drill.add_books("Stalker")
    drill.await_arrivals("Dune", "Emma", "Persuasion", "Solaris", "Stalker", "Ubik")
    assert drill.ask("SELECT id FROM folio_events_outboxmessage WHERE id > 3") == [6, 7]
    drill.finish()
