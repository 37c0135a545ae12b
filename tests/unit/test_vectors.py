"""Every fact about FOLIO that is known is run by a test, or waits by name."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from tests.unit.vectors import VECTORS

TESTS = Path(__file__).resolve().parent.parent
#: What concerns FOLIO's modules, which the sample project is to stand for, and not the package.
OF_THE_SAMPLE = {
    *("di_chunk", "di_chunking", "di_dedup", "di_flow_control", "di_init"),
    *("di_publish", "item_event_consumer", "messaging_descriptor", "outbox_relay", "outbox_table"),
    *("piece_to_item", "pubsub_delivery", "pubsub_http", "user_summary_projection"),
}


def _run() -> set[str]:
    """The categories of which a test asks for the cases."""
    found = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "cases":
                found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def test_the_vectors_are_complete() -> None:
    """None has been lost or doubled on its way here."""
    assert len(VECTORS) == 273
    assert max(Counter(vector["id"] for vector in VECTORS).values()) == 1
    assert all(vector["basis"] in ("test", "source", "derived", "measured") for vector in VECTORS)


def test_every_category_is_run_by_a_test_or_waits_for_the_sample() -> None:
    """One that is run waits no longer, and none is run that does not exist."""
    categories = {vector["category"] for vector in VECTORS}

    assert _run() == categories - OF_THE_SAMPLE
    assert categories >= OF_THE_SAMPLE
