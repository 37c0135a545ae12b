"""The lists of the REST API read a bounded number of rows, however many the tables have."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from folio_events.api import paging
from folio_events.models import (
    Delivery,
    Orphan,
    OutboxMessage,
    Publication,
    RelayCursor,
    WithheldMessage,
)
from tests.integration.api.conftest import Api
from tests.integration.test_query_plans import explain, fill, nodes_of

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

_ROWS = 20_000
#: Rows that a page looks at where no index serves: the same part of them as of 5 million.
_LOOKED_AT = 100
#: Most rows of the tables that one request may look at.
_MOST = 1500
_TABLES = {
    model._meta.db_table
    for model in (OutboxMessage, Publication, WithheldMessage, Delivery, Orphan)
}


@pytest.fixture(scope="module")
def filled(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Settled rows in their thousands, one in two hundred open, and fresh statistics."""
    with django_db_blocker.unblock():
        _fill()
        yield
        with connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {', '.join(sorted(_TABLES))}")
        RelayCursor.objects.all().delete()


def _fill() -> None:
    now = timezone.now()
    fill(
        OutboxMessage(
            event_id=uuid.uuid4(), topic="library.book", event_type="UPDATE", key="0",
            payload=b"x", repeating_headers=b"[]", own_headers=b"", occurred_at=now,
        ),
        rows=_ROWS, event_id="gen_random_uuid()", key="n::text",
    )  # fmt: skip
    first = OutboxMessage.objects.order_by("id").values_list("id", flat=True)[0]
    fill(
        Publication(outbox_message_id=first, topic="t", partition=0, offset=0, published_at=now),
        rows=_ROWS, outbox_message_id="outbox_message_id + n", offset="n",
    )  # fmt: skip
    is_open = "n % 200 = 0"
    fill(
        WithheldMessage(
            outbox_message_id=first, topic="library.book", key="0", state="published",
            withheld_at=now,
        ),
        rows=_ROWS, outbox_message_id="outbox_message_id + n", key="n::text",
        state=f"CASE WHEN {is_open} THEN 'refused' ELSE 'published' END",
    )  # fmt: skip
    fill(
        Delivery(
            receiver="receiver 0", group="events", event_id=uuid.uuid4(), state="resolved",
            order="key", topic="folio.library.book", partition=0, offset=0, key="0",
            headers=b"[]", payload=b"x", published_at=now, created_at=now, fingerprint="f1",
        ),
        rows=_ROWS, event_id="gen_random_uuid()", offset="n", key="n::text",
        state=f"CASE WHEN {is_open} THEN 'dead' ELSE 'resolved' END",
    )  # fmt: skip
    fill(
        Orphan(
            topic="folio.library.book", partition=0, offset=0, fault="missing", error="e",
            headers=b"[]", published_at=now, found_at=now, state="assigned", key="0",
        ),
        rows=_ROWS, offset="n", key="n::text",
        state=f"CASE WHEN {is_open} THEN 'open' ELSE 'assigned' END",
    )  # fmt: skip
    last = OutboxMessage.objects.order_by("-id").values_list("id", flat=True)[0]
    RelayCursor.objects.create(position=last, version=1, updated_at=now)
    with connection.cursor() as cursor:
        for table in sorted(_TABLES):
            cursor.execute(f"ANALYZE {table}")


def looked_at(sql: str) -> float:
    """How many rows of the filled tables a statement looks at."""
    rows: float = sum(
        (
            node["Actual Rows"]
            + sum(count for name, count in node.items() if name.startswith("Rows Removed"))
        )
        * node["Actual Loops"]
        for node in nodes_of(explain(sql))
        if node.get("Relation Name") in _TABLES
    )
    return rows


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("outbox", {}),
        ("outbox", {"before": "5000"}),
        ("outbox", {"key": "77"}),
        ("outbox", {"event_id": uuid.uuid4()}),
        ("outbox", {"topic": "library.loan"}),
        ("outbox", {"tenant": "diku", "event_type": "CREATE"}),
        *(("outbox", {"state": state}) for state in ("waiting", "published", "withheld")),
        ("withheld", {}),
        *(("withheld", {"state": state}) for state in ("open", "refused", "waiting", "discarded")),
        ("withheld", {"topic": "library.loan"}),
        ("deliveries", {}),
        ("deliveries", {"key": "77"}),
        ("deliveries", {"event_id": uuid.uuid4()}),
        ("deliveries", {"receiver": "receiver 1"}),
        ("deliveries", {"state": "dead"}),
        ("deliveries", {"state": "dead", "receiver": "receiver 1", "tenant": "diku"}),
        ("deliveries", {"state": "open", "fingerprint": "f2"}),
        ("deliveries", {"state": "discarded"}),
        ("orphans", {}),
        ("orphans", {"state": "open"}),
        ("orphans", {"state": "discarded", "fault": "invalid"}),
        ("orphans", {"key": "77"}),
    ],
    ids=str,
)
def test_a_list_looks_at_a_bounded_number_of_rows(
    admin_user: User, monkeypatch: pytest.MonkeyPatch, path: str, query: dict[str, object]
) -> None:
    """Also where nothing matches, which without a bound would mean the whole table."""
    monkeypatch.setattr(paging, "LOOKED_AT", _LOOKED_AT)
    with CaptureQueriesContext(connection) as queries:
        assert Api(admin_user).get(path, **query).status_code == 200
    lists = [one["sql"] for one in queries if any(table in one["sql"] for table in _TABLES)]
    assert lists

    assert sum(map(looked_at, lists)) < _MOST
