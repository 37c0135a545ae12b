"""The code of the documentation, typed in and run as a reader would."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bare_project import BareProject
from tests.pages import Block, Command, commands, page, pages

README = page("README.md")
#: The project that README and how-to pages assume.
PROJECT, APP = "mysite", "library"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[BareProject]:
    project = BareProject(tmp_path)
    yield project
    project.stop()


def five_steps(when: str | None = None) -> list[Block]:
    """The blocks of the README's five steps, with the one for a variant before the last step."""
    blocks = README.blocks("python", "console")
    own = [block for block in blocks if block.when is None]
    first_command = next(i for i, block in enumerate(own) if "manage.py" in block.text)
    chosen = [block for block in blocks if block.when == when and when is not None]
    assert chosen or when is None
    return [*own[:first_command], *chosen, *own[first_command:]]


@pytest.mark.once
def test_the_five_steps_of_the_readme_bring_an_event_to_its_receiver(project: BareProject) -> None:
    """A bare project that follows the README on SQLite sees the receiver's row."""
    project.start(PROJECT, APP)
    project.follow(five_steps())

    assert project.stop() == [0, 0], "both daemons end cleanly on SIGTERM"


@pytest.mark.once
def test_the_five_steps_work_with_tenants(project: BareProject) -> None:
    """With the README's lines for tenants the event reaches its receiver on the tenant's topic."""
    project.start(PROJECT, APP)
    *steps, run = [b for b in five_steps("tenants") if b.path or "manage.py" in b.text]
    assert run.path == "library/accession.py"
    project.follow([*steps[:-1], run])
    start, save, see = _run_step(steps[-1])
    for command in start:
        project.run(command)
    project.run(_accession("diku", "Dune"))
    project.run(see)
    project.run(
        _shell(
            "from folio_events.models import Publication; print(Publication.objects.get().topic)",
            "folio.diku.library.book",
        )
    )
    with pytest.raises(AssertionError, match="MissingTenantError"):
        project.run(save)


@pytest.mark.kafka
@pytest.mark.parametrize("form", ["broker setting", "environment"])
def test_the_five_steps_work_on_kafka(tmp_path: Path, form: str) -> None:
    """With the README's lines for Kafka the same models, events and receivers work there."""
    host, port = os.environ["KAFKA_HOST"], os.environ.get("KAFKA_PORT", "9092")
    environment = f"docs-{uuid.uuid4().hex[:12]}"
    project = BareProject(tmp_path, KAFKA_HOST=host, KAFKA_PORT=port, ENV=environment)
    try:
        project.start(PROJECT, APP)
        for block in five_steps("Kafka" if form == "broker setting" else None):
            if block.when == "Kafka":
                address = block.text.replace("localhost:9092", f"{host}:{port}")
                assert address != block.text
                project.write(Block(block.language, address))
                project.add("mysite/settings.py", f"FOLIO_EVENTS['ENV'] = {environment!r}")
                continue
            if "manage.py" in block.text and form == "environment":
                line = "FOLIO_EVENTS = {**settings_from_env(environ.Env()), "
                assert line in README.prose
                rest = README.prose.partition(line)[2].partition("`")[0]
                project.add(
                    "mysite/settings.py",
                    f"import environ\nfrom folio_events import settings_from_env\n{line}{rest}",
                )
            project.follow([block])
        project.run(
            _shell(
                "from folio_events.brokers import get_broker; print(type(get_broker()).__name__)",
                "KafkaBroker",
            )
        )
        assert project.stop() == [0, 0]
    finally:
        project.stop()


def _run_step(block: Block) -> tuple[list[Command], Command, Command]:
    """The commands of the last step: those that start everything, the save, the look."""
    *start, save, see = commands(block)
    assert "create" in save.line
    assert see.shown
    return start, save, see


def _accession(tenant: str, title: str) -> Command:
    return _shell(f"from library.accession import accession; accession({tenant!r}, {title!r})")


def _shell(code: str, *shown: str) -> Command:
    return Command(f'python manage.py shell -c "{code}"', list(shown))


@pytest.mark.once
def test_the_tutorial_runs_as_written(project: BareProject) -> None:
    """Every file and command of the tutorial does what the page shows."""
    project.follow(page("docs/tutorial.md").blocks("python", "console"))

    assert project.stop() == [0, 0]


def pages_with_files() -> list[str]:
    """Pages of docs/ that show files of the README's project."""
    return [
        found.name
        for found in pages()
        if found.name.startswith(("docs/howto/", "docs/reference/"))
        and any(block.path for block in found.blocks("python"))
    ]


@pytest.mark.once
@pytest.mark.parametrize("name", pages_with_files())
def test_files_of_a_page_load_in_the_project_of_the_readme(tmp_path: Path, name: str) -> None:
    """What a page shows as files fits the README's project: it starts, and all its checks pass."""
    # Nothing is asked of Kafka there: an address will do.
    project = BareProject(tmp_path, KAFKA_HOST="kafka.example")
    project.start(PROJECT, APP)
    project.follow(block for block in five_steps() if block.path)
    check = Command("python manage.py check --fail-level WARNING")
    modules = []
    for block in page(name).blocks("python"):
        if block.path is None:
            continue
        project.write(block)
        if block.is_addition:
            project.run(check)  # the next may replace it
        else:
            modules.append(block.path.removesuffix(".py").replace("/", "."))
    if modules:
        project.run(check)
        project.run(_shell(f"import {', '.join(modules)}"))


@pytest.mark.once
def test_the_tests_of_the_page_about_tests_pass(project: BareProject) -> None:
    """The example tests run and pass in the README's project."""
    project.start(PROJECT, APP)
    project.follow(block for block in five_steps() if block.path)
    project.follow(page("docs/howto/test-your-receivers.md").blocks("python"))
    project.run(Command("python manage.py makemigrations library"))
    output = project.run(Command("python manage.py test", ["OK"]))
    assert "Ran 4 tests" in output
