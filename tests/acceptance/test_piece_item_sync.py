"""A piece and its item keep each other up to date, both ways, through events alone."""

from __future__ import annotations

import uuid

import pytest

from folio_events.testing import deliver_all
from tests.acceptance.conftest import recorded

pytestmark = [pytest.mark.django_db, pytest.mark.urls("sample_project.urls")]

FIELD_MAP = {
    "displaySummary": "displaySummary",
    "enumeration": "enumeration",
    "copyNumber": "copyNumber",
    "chronology": "chronology",
    "barcode": "barcode",
    "accessionNumber": "accessionNumber",
    "callNumber": "itemLevelCallNumber",
}


def events_since(before):
    return {
        name: count - before.get(name, 0)
        for name, count in recorded().items()
        if count != before.get(name)
    }


@pytest.mark.usefixtures("any_broker")
class TestPieceToItem:
    def test_a_new_linked_piece_gives_the_item_its_enumeration_and_chronology(self, library):
        item = library.new_item()
        library.new_piece(item, enumeration="v.1", chronology="1913")
        deliver_all()
        assert library.get(item)["enumeration"] == "v.1"
        assert library.get(item)["chronology"] == "1913"

    def test_editing_a_piece_edits_its_item(self, library):
        item = library.new_item(enumeration="v.1", chronology="1913")
        piece = library.new_piece(item, enumeration="v.1", chronology="1913")
        deliver_all()
        library.edit(piece, enumeration="v.2", chronology="1914")
        deliver_all()
        assert library.get(item)["enumeration"] == "v.2"
        assert library.get(item)["chronology"] == "1914"

    def test_linking_a_piece_later_counts_as_writing_what_it_says(self, library):
        item = library.new_item(enumeration="v.1", chronology="1913")
        piece = library.new_piece(enumeration="v.2")
        deliver_all()
        library.edit(piece, itemId=item.rpartition("/")[2])
        deliver_all()
        assert library.get(item)["enumeration"] == "v.2"
        assert library.get(item)["chronology"] == "1913"

    @pytest.mark.parametrize(("on_piece", "on_item"), FIELD_MAP.items(), ids=FIELD_MAP)
    def test_every_field_of_the_map_arrives_under_the_items_name(self, library, on_piece, on_item):
        item = library.new_item()
        piece = library.new_piece(item)
        library.edit(piece, **{on_piece: "new"})
        deliver_all()
        assert library.get(item)[on_item] == "new"


@pytest.mark.usefixtures("any_broker")
class TestItemToPiece:
    def test_editing_an_item_edits_every_linked_piece_and_no_other(self, library):
        item, other = library.new_item(), library.new_item()
        linked = [library.new_piece(item), library.new_piece(item)]
        unlinked = [library.new_piece(other), library.new_piece()]
        library.edit(item, enumeration="v.3", chronology="1915")
        deliver_all()
        for piece in linked:
            assert library.get(piece)["enumeration"] == "v.3"
            assert library.get(piece)["chronology"] == "1915"
        for piece in unlinked:
            assert "enumeration" not in library.get(piece)

    @pytest.mark.parametrize(("on_piece", "on_item"), FIELD_MAP.items(), ids=FIELD_MAP)
    def test_every_field_of_the_map_arrives_under_the_pieces_name(self, library, on_piece, on_item):
        item = library.new_item()
        piece = library.new_piece(item)
        library.edit(item, **{on_item: "new"})
        deliver_all()
        assert library.get(piece)[on_piece] == "new"


@pytest.mark.usefixtures("any_broker")
class TestNoLoop:
    def test_an_edit_of_a_piece_settles_after_one_event_each_way(self, library):
        item = library.new_item(enumeration="v.1")
        piece = library.new_piece(item, enumeration="v.1")
        deliver_all()
        before = recorded()
        library.edit(piece, enumeration="v.2")
        deliver_all()
        assert events_since(before) == {"orders.piece UPDATE": 1, "inventory.item UPDATE": 1}

    def test_an_edit_of_an_item_settles_after_one_event_of_each_piece(self, library):
        item = library.new_item(enumeration="v.1")
        for _ in range(3):
            library.new_piece(item, enumeration="v.1")
        deliver_all()
        before = recorded()
        library.edit(item, enumeration="v.2")
        deliver_all()
        assert events_since(before) == {"inventory.item UPDATE": 1, "orders.piece UPDATE": 3}

    def test_a_piece_that_says_what_the_item_says_changes_nothing(self, library):
        item = library.new_item(enumeration="v.1", chronology="1913")
        before = recorded()
        library.new_piece(item, enumeration="v.1", chronology="1913")
        deliver_all()
        assert events_since(before) == {"orders.piece CREATE": 1}

    def test_an_edit_of_another_field_crosses_to_nobody(self, library):
        item = library.new_item(enumeration="v.1")
        piece = library.new_piece(item, enumeration="v.1")
        deliver_all()
        before = recorded()
        library.edit(item, status={"name": "Checked out"})
        library.edit(piece, receivingStatus="Claimed")
        deliver_all()
        assert events_since(before) == {"inventory.item UPDATE": 1, "orders.piece UPDATE": 1}

    def test_the_same_edit_on_both_sides_sends_nothing_back(self, library):
        item = library.new_item(enumeration="v.1")
        piece = library.new_piece(item, enumeration="v.1")
        deliver_all()
        before = recorded()
        library.edit(item, enumeration="v.2")
        library.edit(piece, enumeration="v.2")
        deliver_all()
        assert events_since(before) == {"inventory.item UPDATE": 1, "orders.piece UPDATE": 1}


class TestSimultaneousEdits:
    def test_the_later_edit_holds_on_both_sides(self, library):
        item = library.new_item(enumeration="v.1")
        piece = library.new_piece(item, enumeration="v.1")
        deliver_all()
        library.edit(piece, enumeration="by the buyer")
        library.edit(item, enumeration="by the cataloguer")
        deliver_all()
        assert library.get(item)["enumeration"] == "by the cataloguer"
        assert library.get(piece)["enumeration"] == "by the cataloguer"

    def test_a_field_that_only_one_side_edited_is_not_overwritten_by_the_other(self, library):
        item = library.new_item(enumeration="v.1", chronology="1913")
        piece = library.new_piece(item, enumeration="v.1", chronology="1913")
        deliver_all()
        library.edit(item, enumeration="v.2")
        library.edit(piece, chronology="1914")
        deliver_all()
        for path in (item, piece):
            record = library.get(path)
            assert (record["enumeration"], record["chronology"]) == ("v.2", "1914")

    def test_two_pieces_of_one_item_and_the_item_end_equal(self, library):
        item = library.new_item(enumeration="v.1")
        pieces = [library.new_piece(item, enumeration="v.1") for _ in range(2)]
        deliver_all()
        library.edit(pieces[0], enumeration="first")
        library.edit(item, enumeration="second")
        library.edit(pieces[1], enumeration="third")
        deliver_all()
        assert [library.get(path)["enumeration"] for path in (item, *pieces)] == ["third"] * 3


class TestBlanks:
    def test_a_blank_of_a_new_piece_says_nothing(self, library):
        item = library.new_item(enumeration="v.1", barcode="12345")
        library.new_piece(item, chronology="1913")
        deliver_all()
        record = library.get(item)
        assert (record["enumeration"], record["barcode"]) == ("v.1", "12345")

    @pytest.mark.parametrize("field", ["enumeration", "chronology", "displaySummary", "copyNumber"])
    def test_a_linked_piece_keeps_what_only_the_item_may_blank(self, library, field):
        item = library.new_item(**{field: "kept"})
        piece = library.new_piece(item, **{field: "kept"})
        assert library.edit(piece, **{field: None})[field] == "kept"
        deliver_all()
        assert library.get(item)[field] == "kept"

    @pytest.mark.parametrize(("on_piece", "on_item"), FIELD_MAP.items(), ids=FIELD_MAP)
    def test_what_is_blanked_on_the_item_is_blanked_on_the_piece(self, library, on_piece, on_item):
        item = library.new_item(**{on_item: "gone"})
        piece = library.new_piece(item, **{on_piece: "gone"})
        library.edit(item, **{on_item: ""})
        deliver_all()
        assert on_piece not in library.get(piece)

    @pytest.mark.parametrize(
        ("on_piece", "on_item"),
        [
            ("barcode", "barcode"),
            ("accessionNumber", "accessionNumber"),
            ("callNumber", "itemLevelCallNumber"),
        ],
    )
    def test_barcode_accession_and_call_number_may_be_blanked_on_the_piece_too(
        self, library, on_piece, on_item
    ):
        item = library.new_item(**{on_item: "gone"})
        piece = library.new_piece(item, **{on_piece: "gone"})
        deliver_all()
        library.edit(piece, **{on_piece: ""})
        deliver_all()
        assert on_item not in library.get(item)


class TestWhatIsNotThere:
    def test_a_piece_of_an_item_that_does_not_exist_changes_nothing(self, library):
        library.new_piece(f"/item-storage/items/{uuid.uuid4()}", enumeration="v.1")
        deliver_all()
        assert recorded() == {"orders.piece CREATE": 1}

    def test_deleting_either_side_leaves_the_other_as_it_is(self, library):
        item, doomed = library.new_item(enumeration="v.1"), library.new_item(enumeration="v.2")
        piece, lasting = library.new_piece(item), library.new_piece(doomed, enumeration="v.2")
        deliver_all()
        library.client.delete(piece)
        library.client.delete(doomed)
        deliver_all()
        assert library.get(item)["enumeration"] == "v.1"
        assert library.get(lasting)["enumeration"] == "v.2"
