"""Real books as FOLIO records: instance, holdings and order line, and an item with its piece."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BOOKS = Path(__file__).parent / "data" / "books.json"

#: Two libraries, so that two tenants' events are under way at once.
TENANTS = ("diku", "college")

_NAMESPACE = uuid.UUID("5f0c5b0e-8d0b-4f5e-9a55-0d1f2d3c4b5a")
_BOOK_TYPE = "1a54b431-2e4f-452d-9cae-9cee66c9a892"
_CAN_CIRCULATE = "2b94c631-fca9-4892-a730-03ee529ffe27"
_TEXT = "6312d172-f0cf-40f6-b27d-9fa8feaf332f"
_PERSONAL_NAME = "2b94c631-fca9-4892-a730-03ee529ffe2a"
_MAIN_LIBRARY = "fcd64ce1-6995-48f0-840e-89ffa2288371"


@dataclass(frozen=True, kw_only=True)
class Volume:
    """An item and the pieces that it was bought as."""

    tenant: str
    item: dict[str, Any]
    pieces: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Book:
    """A title with what hangs on it."""

    tenant: str
    instance: dict[str, Any]
    holdings: dict[str, Any]
    order_line: dict[str, Any]
    volumes: list[Volume] = field(default_factory=list)

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All records with the path that each is posted to, in an order that makes sense."""
        yield "/instance-storage/instances", self.instance
        yield "/holdings-storage/holdings", self.holdings
        yield "/orders-storage/po-lines", self.order_line
        for volume in self.volumes:
            yield "/item-storage/items", volume.item
            for piece in volume.pieces:
                yield "/orders-storage/pieces", piece


def read_books(source: Path = BOOKS) -> list[Book]:
    """Read the data set and make records of it, the same ones each time."""
    return [_book(number, entry) for number, entry in enumerate(json.loads(source.read_text()))]


def _book(number: int, entry: dict[str, Any]) -> Book:
    tenant = TENANTS[number % 4 == 3]
    ids = {kind: str(uuid.uuid5(_NAMESPACE, f"{kind}/{number}")) for kind in ("i", "h", "l")}
    publication = {name: value for name, value in entry["publication"].items() if value}
    instance = {
        "id": ids["i"],
        "hrid": f"in{number:011}",
        "title": entry["title"],
        "source": "FOLIO",
        "instanceTypeId": _TEXT,
        "contributors": [
            {"name": c["name"], "contributorNameTypeId": _PERSONAL_NAME}
            for c in entry.get("contributors", ())
        ],
        "publication": [publication] if publication else [],
        "languages": entry.get("languages", []),
    }
    holdings = {
        "id": ids["h"],
        "hrid": f"ho{number:011}",
        "instanceId": ids["i"],
        "permanentLocationId": _MAIN_LIBRARY,
    }
    order_line = {
        "id": ids["l"],
        "poLineNumber": f"{10_000 + number}-1",
        "titleOrPackage": entry["title"],
        "instanceId": ids["i"],
        "orderFormat": "Physical Resource",
        "source": "User",
    }
    volumes = [
        _volume(tenant, ids, number, position, part)
        for position, part in enumerate(entry.get("items", ()))
    ]
    return Book(
        tenant=tenant, instance=instance, holdings=holdings, order_line=order_line, volumes=volumes
    )


def _volume(
    tenant: str, ids: dict[str, str], number: int, position: int, part: dict[str, Any]
) -> Volume:
    said = {name: part[name] for name in ("enumeration", "chronology") if part.get(name)} | {
        "barcode": f"39{number:05}{position:04}"
    }
    if part.get("volume_title"):
        said["displaySummary"] = part["volume_title"]
    item = {
        "id": str(uuid.uuid5(_NAMESPACE, f"item/{number}/{position}")),
        "hrid": f"it{number:06}{position:05}",
        "holdingsRecordId": ids["h"],
        "materialTypeId": _BOOK_TYPE,
        "permanentLoanTypeId": _CAN_CIRCULATE,
        "status": {"name": "On order"},
    }
    # Every other volume was catalogued before; of the rest only orders knows what they are.
    if (number + position) % 2 == 0:
        item |= said
    copies = 2 if (number + position) % 20 == 19 else 1
    pieces = [
        {
            "id": str(uuid.uuid5(_NAMESPACE, f"piece/{number}/{position}/{copy}")),
            "poLineId": ids["l"],
            "itemId": item["id"],
            "format": "Physical",
            "receivingStatus": "Expected",
            **said,
        }
        for copy in range(copies)
    ]
    return Volume(tenant=tenant, item=item, pieces=pieces)
