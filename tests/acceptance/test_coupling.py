"""The apps know each other's topics and JSON, and nothing else of each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from folio_events.receivers import registry
from folio_events.testing import deliver_all

SAMPLE = Path(__file__).resolve().parents[2] / "sample_project"
#: Whom each part may not import.
FORBIDDEN = {
    "inventory": {"orders", "receiving", "demo"},
    "orders": {"inventory", "receiving", "demo"},
    "sync": {"inventory", "orders", "receiving", "demo", "contracts"},
}


def imported(part):
    """What the modules of a part import of the sample project, by its first name."""
    found = set()
    for source in (SAMPLE / part).rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{source} imports relatively"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name.split(".")[1] for name in names if name.startswith("sample_project.")}
    return found


@pytest.mark.parametrize("part", FORBIDDEN)
def test_neither_app_imports_the_other(part):
    assert imported(part)
    assert imported(part) & FORBIDDEN[part] == set()


def test_what_both_apps_import_of_the_project_is_the_contract_and_no_model():
    shared = imported("inventory") & imported("orders") - {"inventory", "orders"}
    assert shared == {"contracts", "record_admin", "storage_api", "sync"}


def test_the_contract_names_no_model():
    tree = ast.parse((SAMPLE / "contracts.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "sample_project.sync.declaration", "sample_project.sync.rule"}


def test_every_receiver_has_a_name_that_outlives_a_move_of_its_code():
    ours = {r.name for r in registry if r.function.__module__.startswith("sample_project")}
    assert ours == {
        "inventory.follow_title",
        "inventory.update_item",
        "orders.follow_title",
        "orders.update_pieces",
        "receiving.process_item",
    }


@pytest.mark.django_db
@pytest.mark.urls("sample_project.urls")
class TestStyles:
    def test_a_storage_module_writes_its_own_tables(self, library):
        item = library.new_item()
        library.new_piece(item, enumeration="v.1")
        deliver_all()
        assert library.get(item)["enumeration"] == "v.1"

    def test_a_business_module_changes_a_storage_modules_data_through_its_door(self, library):
        item = library.new_item(status={"name": "On order"})
        piece = library.new_piece(item)
        library.edit(piece, receivingStatus="Received")
        deliver_all()
        assert library.get(item)["status"]["name"] == "In process"

    def test_a_received_piece_leaves_an_item_alone_that_is_not_on_order(self, library):
        item = library.new_item(status={"name": "Checked out"})
        piece = library.new_piece(item)
        library.edit(piece, receivingStatus="Received")
        deliver_all()
        assert library.get(item)["status"]["name"] == "Checked out"
