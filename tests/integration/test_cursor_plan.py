"""What the cursor's statement reads of a large outbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from folio_events.cursor import _READ

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

_FILL = """
INSERT INTO folio_events_outboxmessage
    (event_id, topic, event_type, tenant, key, payload, repeating_headers, own_headers,
     occurred_at)
SELECT gen_random_uuid(), 'library.book', 'UPDATE', '', n, repeat('x', 300)::bytea, '[]', '', now()
FROM generate_series(1, %s) AS n RETURNING id
"""


def _scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if node.get("Relation Name") == "folio_events_outboxmessage":
        yield node
    for child in node.get("Plans", []):
        yield from _scans(child)


@pytest.mark.parametrize("gaps", [0, 1, 100])
def test_a_read_touches_no_rows_but_those_it_may_return(gaps: int) -> None:
    """However large the outbox is, gaps and tail are found by the index alone."""
    with connection.cursor() as cursor:
        cursor.execute(_FILL, [20_000])
        ids = [row_id for (row_id,) in cursor.fetchall()]
        missing = ids[10:][:gaps]
        cursor.execute("DELETE FROM folio_events_outboxmessage WHERE id = ANY(%s)", [missing])
        cursor.execute("ANALYZE folio_events_outboxmessage")
        cursor.execute("SET LOCAL enable_seqscan = off")
        parameters = {"first": missing, "last": missing, "position": ids[-11], "limit": 50}
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {_READ}", parameters)
        (plan,) = cursor.fetchone()
    found = json.loads(plan) if isinstance(plan, str) else plan
    read = sum(
        scan["Actual Rows"] * scan["Actual Loops"] + scan.get("Rows Removed by Filter", 0)
        for scan in _scans(found[0]["Plan"])
    )
    assert read <= 50
