"""The REST API as its pages show it: typed in, with curl, against a running project."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import yaml

from folio_events.api.access import OVERVIEW
from folio_events.api.schema import FILE
from tests.acceptance.test_docs import APP, PROJECT, five_steps
from tests.bare_project import BareProject
from tests.pages import Block, Command, page

HOWTO, REFERENCE = page("docs/howto/use-the-api.md"), page("docs/reference/rest-api.md")
#: The README's receiver, which fails for good.
RECEIVER = """# library/receivers.py
from folio_events import Event, RejectEvent, receiver

@receiver("library.book")
def announce(event: Event) -> None:
    raise RejectEvent("no shelf for it")
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.once
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page calls by curl")
def test_a_program_finds_and_retries_a_dead_letter_as_the_page_shows(tmp_path: Path) -> None:
    """Its user does what its permissions say; what else it asks for is refused in words."""
    project = BareProject(tmp_path)
    project.start(PROJECT, APP)
    project.follow(block for block in five_steps() if block.path)
    project.write(Block("python", RECEIVER))
    code = (
        "from django.core.management import call_command as call; from library.models import Book; "
        "call('makemigrations', 'library'); call('migrate'); Book.objects.create(title='Dune'); "
        "call('relay_events', once=True); call('consume_events', once=True)"
    )
    project.run(Command(f'python manage.py shell -c "{code}"'))
    port = str(free_port())
    try:
        project.follow(
            Block(block.language, block.text.replace("8000", port))
            for block in HOWTO.blocks("python", "console")
        )
        call = f"dead_letters('http://127.0.0.1:{port}', 'Basic cm9ib3Q6bGV0IG1lIGlu')"
        code = f"from library.dead_letters import dead_letters; print(list({call}))"
        project.run(Command(f'python manage.py shell -c "{code}"', ["[]"]))
    finally:
        project.stop()


def test_the_reference_has_every_operation_with_its_permissions() -> None:
    """And no other."""
    described: dict[str, set[str]] = {}
    for path, methods in yaml.safe_load(FILE.read_text())["paths"].items():
        for method, what in methods.items():
            named = what["description"].partition("Permissions: ")[2].rstrip(".")
            wanted = {name.strip("`") for name in named.split(", ")}
            operation = f"`{method.upper()} {path.removeprefix('/folio-events')}`"
            described[operation] = {"the dashboard's"} if wanted == set(OVERVIEW) else wanted

    table = REFERENCE.text.partition("## Operations")[2].partition("\n*")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [operation for operation, _, _ in rows] == list(described)
    for operation, _, permissions in rows:
        usual = permissions.partition(";")[0]
        assert {name.strip("`") for name in usual.split(", ")} == described[operation], operation
