"""The table at the end, and whether everything adds up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from django.db.models import Count

from folio_events.models import Delivery, OutboxMessage, Publication, WithheldMessage
from sample_project.demo import counts
from sample_project.demo.collection import Book


def print_table(*, repaired: Collection[UUID]) -> None:
    """Print what the tables hold."""
    by_state = _deliveries_by_state()
    handled = counts.handled_by_receiver()
    rows = [
        ("events recorded", OutboxMessage.objects.count()),
        ("events published", Publication.objects.count()),
        ("handled by receivers", sum(handled.values())),
        *((f"  {name}", handled.get(name, 0)) for name in sorted(counts.expected_by_receiver())),
        ("retried: deliveries that failed or waited", sum(by_state.values())),
        ("dead: letters left", by_state.get(Delivery.State.DEAD, 0)),
        ("resolved: deliveries that took effect later", by_state.get(Delivery.State.RESOLVED, 0)),
    ]
    print()
    for name, count in rows:
        print(f"  {name:<46}{count:>8}")
    print(f"  {'delay in seconds':<38}{'median':>8}{'p99':>8}")
    for delay in counts.delays(without=repaired):
        print(f"    {delay.name:<36}{delay.median:>8.2f}{delay.p99:>8.2f}")
    print()


def find_faults(books: Sequence[Book], *, repaired: Collection[UUID]) -> list[str]:
    """Name everything that does not add up.

    Args:
        books: What was created.
        repaired: Events whose deliveries a person had to look after.
    """
    recorded, acknowledged = OutboxMessage.objects.count(), Publication.objects.count()
    faults = [
        f"{recorded} events were recorded, {acknowledged} published." * (recorded != acknowledged),
        f"{WithheldMessage.objects.count()} messages were withheld."
        * WithheldMessage.objects.exists(),
        *_creation_faults(books),
        *_receiver_faults(),
        *_delivery_faults(repaired),
        *counts.differences(),
    ]
    return [fault for fault in faults if fault]


def _creation_faults(books: Sequence[Book]) -> list[str]:
    volumes = [volume for book in books for volume in book.volumes]
    wanted = {
        "inventory.instance": len(books),
        "inventory.holdings-record": len(books),
        "inventory.item": len(volumes),
        "orders.po-line": len(books),
        "orders.piece": sum(len(volume.pieces) for volume in volumes),
    }
    rows = OutboxMessage.objects.filter(event_type="CREATE").values("topic").annotate(n=Count("id"))
    found = {row["topic"]: row["n"] for row in rows}
    return [
        f"{count} records of {topic} were created, {found.get(topic, 0)} CREATE events recorded."
        for topic, count in wanted.items()
        if found.get(topic, 0) != count
    ]


def _receiver_faults() -> list[str]:
    handled = counts.handled_by_receiver()
    return [
        f"Receiver {name} has to get {count} events and handled {handled.get(name, 0)}."
        for name, count in counts.expected_by_receiver().items()
        if handled.get(name, 0) != count
    ]


def _delivery_faults(repaired: Collection[UUID]) -> list[str]:
    by_state = _deliveries_by_state()
    if by_state == {Delivery.State.RESOLVED: len(repaired)} and len(repaired) == 2:
        return []
    return [
        f"One dead letter and one event behind it should be resolved; deliveries are {by_state}."
    ]


def _deliveries_by_state() -> dict[str, int]:
    rows = Delivery.objects.order_by().values("state").annotate(n=Count("id"))
    return {row["state"]: row["n"] for row in rows}
