"""Planted defects: each breaks one rule of the library, and the oracle must see it.

Planted by the harness's app when FAULTS_DEFECT names one; never part of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any


def plant(name: str) -> None:
    if name:
        _DEFECTS[name]()


def _two_statements() -> None:
    """Gaps are read by one statement, what lies above the cursor by the next."""
    from folio_events.cursor import OutboxCursor
    from tests.faults.failpoints import hold

    def read_in_two(self: OutboxCursor, asked: Any, limit: int, *, tail: bool) -> Any:
        snapshot, late = _read_once(self, asked, limit, tail=False)
        hold("relay.looked")
        _, new = _read_once(self, [], limit, tail=tail)
        return snapshot, sorted([*late, *new])[:limit]

    _read_once = OutboxCursor._read_once
    OutboxCursor._read_once = read_in_two  # type: ignore[method-assign]


def _kafka_first() -> None:
    """Kafka's offset is committed before the database, and the consumer goes by it."""
    from folio_events.consumer import Consumer

    dispatch = Consumer._dispatch

    def commit_then_dispatch(self: Consumer, records: Any, subscription: Any) -> None:
        subscription.commit({r.topic_partition: r.offset + 1 for r in records})
        subscription._consumer.commit(offsets=subscription._offsets(), asynchronous=False)
        dispatch(self, records, subscription)

    def no_positions(self: Consumer, states: Any) -> Mapping[Any, Any]:
        found = {}
        for place, state in states.items():
            if state.committed is not None:
                found[place] = state.committed
                for lane in self._lanes:
                    lane.lane.rows([place]).update(offset=state.committed)
        return found

    Consumer._dispatch = commit_then_dispatch  # type: ignore[method-assign]
    Consumer._positions = no_positions  # type: ignore[method-assign]


def _no_inbox() -> None:
    """Nobody remembers what took effect."""
    from folio_events import inbox

    def all_fresh(effects: Collection[Any], *, using: str) -> set[Any]:
        return set(effects)

    inbox.record = all_fresh
    inbox.seen = lambda effect, *, using: False


def _purge_by_age() -> None:
    """The purge looks at nothing but the age of a row."""
    from folio_events.operations import retention

    retention.horizon = lambda *, using="default": 2**62


def _pass_over_refused() -> None:
    """The followers of a refused row are published ahead of it."""
    from folio_events.cursor import OutboxRow

    OutboxRow.chain = property(lambda row: None)  # type: ignore[assignment, method-assign]


def _no_fence() -> None:
    """Whoever comes writes its offsets, whatever they are by now."""
    from folio_events import inbox

    inbox.lock = lambda lane, expected, *, wait: None


_DEFECTS: dict[str, Callable[[], None]] = {
    "two-statements": _two_statements,
    "kafka-first": _kafka_first,
    "no-inbox": _no_inbox,
    "purge-by-age": _purge_by_age,
    "pass-over-refused": _pass_over_refused,
    "no-fence": _no_fence,
}
