"""What inventory and orders agree on: topics, and the fields that they share.

Both apps read this; neither reads the other.
"""

from __future__ import annotations

from sample_project.sync.declaration import FieldSync, declare
from sample_project.sync.rule import SyncedField

ITEM = "inventory.item"
HOLDINGS = "inventory.holdings-record"
INSTANCE = "inventory.instance"
PIECE = "orders.piece"
ORDER_LINE = "orders.po-line"

# The field map is that of FOLIO's mod-orders. What a volume is called belongs to the
# catalogue; barcode and accession number are given when a piece is received.
PIECE_ITEM = declare(
    FieldSync(
        name="piece-item",
        hub=ITEM,
        spoke=PIECE,
        link="itemId",
        fields=(
            SyncedField(hub="enumeration", spoke="enumeration", owner=ITEM),
            SyncedField(hub="chronology", spoke="chronology", owner=ITEM),
            SyncedField(hub="displaySummary", spoke="displaySummary", owner=ITEM),
            SyncedField(hub="copyNumber", spoke="copyNumber", owner=ITEM),
            SyncedField(hub="itemLevelCallNumber", spoke="callNumber", owner=ITEM, blankable=True),
            SyncedField(hub="barcode", spoke="barcode", owner=PIECE, blankable=True),
            SyncedField(
                hub="accessionNumber", spoke="accessionNumber", owner=PIECE, blankable=True
            ),
        ),
    )
)

TITLE = declare(
    FieldSync(
        name="title",
        hub=INSTANCE,
        spoke=ORDER_LINE,
        link="instanceId",
        fields=(SyncedField(hub="title", spoke="titleOrPackage", owner=INSTANCE),),
    )
)
