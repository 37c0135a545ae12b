"""The package as others get it: what imports, what the wheel holds."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import folio_events

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "folio_events"


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that knows of no settings."""
    environ = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_package_imports_without_settings() -> None:
    """Django imports it before apps are ready, and a settings.py before that."""
    done = python("-c", "import folio_events; folio_events.settings_from_env; dir(folio_events)")

    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_loads_nothing_but_itself() -> None:
    """Neither Django's settings nor a broker's library: names are fetched when used."""
    show = "import sys, folio_events; print(*sorted(n.split('.')[0] for n in sys.modules))"

    done = python("-c", show)

    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "folio_events" in loaded
    assert not loaded & {"django", "confluent_kafka", "celery", "rest_framework", "psycopg"}


def test_a_settings_file_may_build_its_settings_with_the_package() -> None:
    """``settings_from_env`` needs no settings itself."""
    use = (
        "import environ, folio_events as f; e = environ.Env(); e.ENVIRON = {'KAFKA_HOST': 'k'};"
        "print(f.settings_from_env(e)['BROKER']['OPTIONS']['bootstrap.servers'])"
    )

    done = python("-c", use)

    assert (done.returncode, done.stdout) == (0, "k:9092\n"), done.stderr


@pytest.mark.parametrize("name", folio_events.__all__)
def test_every_public_name_resolves(name: str) -> None:
    """And is shown by ``dir()``."""
    assert getattr(folio_events, name) is not None
    assert name in dir(folio_events)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    """As of any module; submodules are no exception to it."""
    with pytest.raises(AttributeError, match=r"folio_events.*'publisher'"):
        folio_events.publisher  # noqa: B018 - reading it is the test


def test_public_names_are_sorted_and_unique() -> None:
    """Two people who add a name do not write the same line."""
    assert folio_events.__all__ == sorted(set(folio_events.__all__))


def test_no_module_has_the_name_of_a_public_one() -> None:
    """Importing such a module would put it in the name's place."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.name for path in PACKAGE.iterdir() if path.is_dir()
    }

    # The registry ``events`` and the module ``event`` differ.
    assert not modules & set(folio_events.__all__)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel that hatchling builds from the working copy."""
    folder = tmp_path_factory.mktemp("wheel")
    done = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_the_wheel_holds_the_whole_package(wheel: zipfile.ZipFile) -> None:
    """Every file of it: code, types, migrations, templates and what pages load."""
    files = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    inside = set(wheel.namelist())

    assert files <= inside
    for needed in ("py.typed", "migrations/0001_initial.py", "management/commands/relay_events.py"):
        assert f"folio_events/{needed}" in inside


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    """No tests, no sample project, no caches."""
    folders = {name.split("/")[0] for name in wheel.namelist()}

    assert {name for name in folders if not name.endswith(".dist-info")} == {"folio_events"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name or "/tests/" in name]


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    """Licence, the Pythons it runs on, and PostgreSQL's driver as an extra."""
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    metadata = wheel.read(name).decode()

    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "Provides-Extra: postgres" in metadata
    assert any(n.endswith("licenses/LICENSE") for n in wheel.namelist())


def test_the_wheel_imports_outside_of_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """What was built works by itself, not by the working copy beside it."""
    wheel.extractall(tmp_path)
    code = "import folio_events; folio_events.settings_from_env; print(folio_events.__file__)"

    done = python("-c", code, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
