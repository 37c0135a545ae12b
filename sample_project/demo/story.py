"""What happens in the demo: load, edit, break, repair."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar
from uuid import UUID

from django.contrib.auth.models import User

from folio_events import deliveries
from folio_events.models import Delivery
from sample_project.demo import counts
from sample_project.demo.client import LibraryClient
from sample_project.demo.collection import Book, Volume
from sample_project.demo.progress import DemoError, Progress, wait_for

T = TypeVar("T")

#: Connections at once: enough to overlap, few enough for two cores.
_CLIENTS = 2
#: Most volumes that are edited on one side, on the other, and on both at the same time.
_EDITS = 40


class Story:
    """The demo's acts, against a running library.

    Args:
        books: What the library is filled with.
        client: Speaks to its site.
        alive: Raises when a process has ended.
        admin_url: Shown to the operator.
    """

    def __init__(
        self,
        books: Sequence[Book],
        client: LibraryClient,
        *,
        alive: Callable[[], None],
        admin_url: str,
    ) -> None:
        self._books = books
        self._volumes = [volume for book in books for volume in book.volumes]
        self._client = client
        self._alive = alive
        self._admin_url = admin_url
        #: Events that waited for the operator.
        self.repaired: list[UUID] = []

    def load(self) -> None:
        """Create all records over HTTP."""
        first, *others = self._books
        self._create(first)
        # From here on every process is at work, and delays tell of the work, not of its start.
        wait_for("first events handled", counts.settled, alive=self._alive)
        records = sum(len(list(book.records())) for book in others)
        self._in_parallel("records created over HTTP", others, self._create, total=records)
        self._settle()

    def _create(self, book: Book) -> int:
        created = 0
        for path, record in book.records():
            self._client.post(book.tenant, path, record)
            created += 1
        return created

    def edit(self) -> None:
        """Edit items, pieces, and items with their pieces at the same time."""
        volumes, each = iter(self._volumes), min(_EDITS, len(self._volumes) // 3)
        edits = [(self._edit_item, volume) for volume in islice(volumes, each)]
        edits += [(self._receive_piece, volume) for volume in islice(volumes, each)]
        edits += [(self._edit_both, volume) for volume in islice(volumes, each)]
        self._in_parallel(
            "volumes edited over HTTP", edits, lambda edit: edit[0](edit[1]), total=len(edits)
        )
        self._settle()

    def _edit_item(self, volume: Volume) -> int:
        reprint = f"{_said(volume, 'chronology')} (reprint)"
        self._client.edit(volume.tenant, _item(volume), chronology=reprint)
        return 1

    def _receive_piece(self, volume: Volume) -> int:
        self._client.edit(
            volume.tenant,
            _piece(volume),
            receivingStatus="Received",
            enumeration=f"{_said(volume, 'enumeration')} pt.1",
        )
        return 1

    def _edit_both(self, volume: Volume) -> int:
        ready, former = threading.Barrier(2), _said(volume, "enumeration")

        def edit(path: str, value: str) -> None:
            ready.wait()
            self._client.edit(volume.tenant, path, enumeration=value)

        with ThreadPoolExecutor(2) as pool:
            both = [
                pool.submit(edit, _item(volume), f"{former} (as catalogued)"),
                pool.submit(edit, _piece(volume), f"{former} (as ordered)"),
            ]
        for one in both:
            one.result()
        return 1

    def break_and_repair(self) -> None:
        """Make a receiver fail, see the dead letter, mend the cause, retry."""
        volume, other = self._books[-1].volumes[0], self._books[-2].volumes[0]
        line = f"/orders-storage/po-lines/{volume.pieces[0]['poLineId']}"
        self._client.edit(volume.tenant, line, lockedFor="the fiscal year rollover")
        print("  An order line is locked: its pieces must not change, so their receiver fails.")
        self._client.edit(volume.tenant, _item(volume), enumeration="v.1 rev.")
        wait_for("dead letters", lambda: (_count(Delivery.State.DEAD), 1), alive=self._alive)
        self._client.edit(volume.tenant, _item(volume), chronology="2nd printing")
        wait_for("events held behind it, in the order of their key", _held, alive=self._alive)
        self._client.edit(other.tenant, _item(other), chronology="3rd printing")
        self._settle()
        dead = Delivery.objects.get(state=Delivery.State.DEAD, key=volume.item["id"])
        self._show(dead)

        self._client.edit(volume.tenant, line, lockedFor="")
        print("  The line is unlocked, and the dead letter retried.")
        self.repaired = list(Delivery.objects.values_list("event_id", flat=True))
        deliveries.retry([dead.pk], by=User.objects.get())
        wait_for(
            "deliveries resolved", lambda: (_count(Delivery.State.RESOLVED), 2), alive=self._alive
        )
        self._settle()

    def leave_broken(self) -> None:
        """Make a receiver fail once more, and leave the rest to whoever looks."""
        volume = self._books[-1].volumes[0]
        line = f"/orders-storage/po-lines/{volume.pieces[0]['poLineId']}"
        self._client.edit(volume.tenant, line, lockedFor="the stock-taking")
        self._client.edit(volume.tenant, _item(volume), enumeration="v.1 copy 2")
        wait_for("dead letters", lambda: (_count(Delivery.State.DEAD), 1), alive=self._alive)

    def _show(self, dead: Delivery) -> None:
        print(f"  A dead letter, as in {self._admin_url}folio_events/delivery/{dead.pk}/change/ :")
        for name, value in (
            ("receiver", dead.receiver),
            ("event", f"{dead.event_type} {dead.event_id}"),
            ("tenant, key", f"{dead.tenant}, {dead.key}"),
            ("topic/partition/offset", f"{dead.topic}/{dead.partition}/{dead.offset}"),
            ("attempts", str(dead.attempts)),
            ("error", f"{dead.error_class}: {dead.error}"),
        ):
            print(f"    {name:<24}{value}")

    def _settle(self) -> None:
        wait_for("events handled by their receivers", counts.settled, alive=self._alive)

    def _in_parallel(
        self, title: str, parts: Sequence[T], work: Callable[[T], int], *, total: int
    ) -> None:
        progress, done = Progress(title), 0
        with ThreadPoolExecutor(_CLIENTS) as pool:
            try:
                for count in pool.map(work, parts):
                    done += count
                    progress.show(done, total)
            except (OSError, DemoError):
                pool.shutdown(wait=False, cancel_futures=True)
                self._alive()
                raise
        progress.finish(f"{done}")


def _item(volume: Volume) -> str:
    return f"/item-storage/items/{volume.item['id']}"


def _piece(volume: Volume) -> str:
    return f"/orders-storage/pieces/{volume.pieces[0]['id']}"


def _said(volume: Volume, name: str) -> str:
    said: str = volume.pieces[0].get(name, "v.1")
    return said


def _count(state: Delivery.State) -> int:
    return Delivery.objects.filter(state=state).count()


def _held() -> tuple[int, int]:
    return Delivery.objects.filter(state=Delivery.State.RETRYING, attempts=0).count(), 1
