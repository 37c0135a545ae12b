"""Tenant, request and cause cross Celery's queue, and the token does not."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, current_app
from django.db import transaction

from folio_events import Event, current_tenant, tenant_context
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import OutboxMessage
from folio_events.tenants import CallContext, call_context, current_context
from tests.note_topic import NoteTopic, note_receiver
from tests.real_commands import RealCommand, environment
from tests.testapp.tasks import publish_note, publish_note_at_the_second_try

pytestmark = pytest.mark.django_db(transaction=True)

TOKEN = "eyJhbGciOiJIUzI1NiJ9.secret.secret"
CAUSE = uuid.UUID("6713adda-72ce-11ec-90d6-0242ac120003")
REQUEST = CallContext(
    tenant="diku",
    headers={
        "x-okapi-tenant": "diku",
        "x-okapi-token": TOKEN,
        "x-okapi-request-id": "812/circulation",
        "x-okapi-user-id": "ann",
    },
    cause_id=CAUSE,
)


@pytest.fixture
def queue(tmp_path: Path, folio_events: Callable[..., None]) -> Iterator[Path]:
    """Tasks are sent to a folder of the test's own; tenancy is on."""
    folio_events(TENANCY="folio")
    for name in ("queue", "control"):
        (tmp_path / name).mkdir()
    before: Any = current_app._get_current_object()  # type: ignore[attr-defined]  # of proxies
    app = Celery("sender", set_as_current=True)
    app.conf.update(
        broker_url="filesystem://",
        broker_transport="sample_project.file_queue:Transport",
        broker_transport_options={
            "data_folder_in": str(tmp_path / "queue"),
            "data_folder_out": str(tmp_path / "queue"),
            "control_folder": str(tmp_path / "control"),
        },
    )
    yield tmp_path / "queue"
    app.close()
    before.set_current()


@pytest.fixture
def worker(queue: Path) -> Iterator[RealCommand]:
    """A real worker of the queue, in a process of its own."""
    started = RealCommand(
        queue.parent,
        *("worker", "--concurrency", "2", "--loglevel", "INFO"),
        env=environment(TESTS_CELERY_FOLDER=str(queue.parent)),
        program=[sys.executable, "-m", "celery", "-A", "tests.celery_app"],
    )
    yield started
    started.process.kill()


def queued(queue: Path) -> list[dict[str, Any]]:
    """The messages that lie in the queue, oldest first."""
    return [json.loads(path.read_text()) for path in sorted(queue.iterdir())]


def recorded() -> dict[str, tuple[str, dict[str, str]]]:
    """Tenant and own headers of each event, by key."""
    return {
        str(row.key): (row.tenant, dict(json.loads(bytes(row.own_headers) or b"[]")))
        for row in OutboxMessage.objects.all()
    }


SENT = {
    "x-okapi-tenant": "diku",
    "x-okapi-request-id": "812/circulation",
    "x-okapi-user-id": "ann",
    "ce_causationid": str(CAUSE),
}


def test_a_real_worker_runs_a_task_in_the_context_of_who_sent_it(worker: RealCommand) -> None:
    """And the task that it sends in turn; of two tenants' tasks each gets its own."""
    with call_context(REQUEST):
        publish_note.delay(1, further=1)
    with tenant_context("college"):
        publish_note.delay(10)
        publish_note_at_the_second_try.delay(20)
    worker.wait_for(lambda: OutboxMessage.objects.count() == 4)
    assert recorded() == {
        "1": ("diku", SENT),
        "2": ("diku", SENT),
        "10": ("college", {}),
        "20": ("college", {}),
    }


def test_a_task_sent_outside_of_any_context_inherits_none(worker: RealCommand, queue: Path) -> None:
    """Not even that of the task that ran before it in the same process."""
    with call_context(REQUEST):
        for number in range(4):
            publish_note.delay(number)
    worker.wait_for(lambda: OutboxMessage.objects.count() == 4)
    publish_note.delay(99)
    worker.wait_for(lambda: "No tenant for this event" in worker.output)
    assert OutboxMessage.objects.count() == 4


def test_no_token_lies_in_the_queue(queue: Path) -> None:
    """Nobody has to guard what Celery's broker writes down."""
    with call_context(REQUEST):
        publish_note.delay(1)
    [message] = queued(queue)
    headers = {name: value for name, value in SENT.items() if name.startswith("x-")}
    assert message["headers"]["folio_events"] == {
        "tenant": "diku",
        "cause": str(CAUSE),
        "headers": headers,
    }
    body = base64.b64decode(message["body"]).decode()
    assert "secret" not in json.dumps(message) + body


def test_a_task_without_a_context_is_sent_as_ever(queue: Path) -> None:
    """No header is added."""
    publish_note.delay(1)
    [message] = queued(queue)
    assert "folio_events" not in message["headers"]


def test_an_eager_task_stays_in_the_context_of_its_caller(
    folio_events: Callable[..., None],
) -> None:
    """Its token too: it crosses no queue. Afterwards the context is the caller's still."""
    folio_events(TENANCY="folio")
    with call_context(REQUEST):
        publish_note.apply((1,))
        assert current_context() == REQUEST
    tenant, headers = recorded()["1"]
    assert tenant == "diku"
    assert headers["x-okapi-token"] == TOKEN


def test_a_request_reaches_a_receivers_task_over_two_hops(
    queue: Path, memory_broker: MemoryBroker, only_test_receivers: None
) -> None:
    """Request, event, receiver, and a task that the receiver has sent after the commit."""
    notes = NoteTopic(memory_broker, wire="folio.diku.library.note")

    def react(event: Event) -> None:
        transaction.on_commit(partial(publish_note.delay, 1))
        publish_note.delay(2)

    note_receiver("notes", react)
    request = [("x-okapi-request-id", b"812/circulation"), ("folio.tenantId", b"diku")]
    event_id = uuid.uuid4()
    notes.put_raw(b'{"number": 1}', b"k", [*request, ("ce_id", str(event_id).encode())])
    notes.put_raw(b'{"number": 2}', b"k", [("x-okapi-request-id", b"other")])
    assert notes.consume() == 2
    sent = [message["headers"]["folio_events"] for message in queued(queue)]
    causes = [
        found["cause"]
        for found in sent
        if found["headers"] == {"x-okapi-request-id": "812/circulation"}
    ]
    assert causes == [str(event_id)] * 2
    assert {found["tenant"] for found in sent} == {"diku"}
    assert len(sent) == 4
    assert current_tenant() is None


PROJECT = """
import sys
{imports}
import django
from django.conf import settings

auth = ["django.contrib.contenttypes", "django.contrib.auth"]
settings.configure(INSTALLED_APPS=[*auth, "folio_events"])
django.setup()
celery = sys.modules.get("celery.signals")
print("celery" in sys.modules, celery and bool(celery.task_prerun.receivers))
"""


@pytest.mark.parametrize(
    ("imports", "said"),
    [("", "False None"), ("import celery", "True True")],
    ids=["without Celery", "with Celery"],
)
def test_a_project_without_celery_does_not_load_it(imports: str, said: str) -> None:
    """One that has imported it by the time its apps are ready is listened to."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROJECT.format(imports=imports)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == said, done.stderr
