"""What stops a process before it does anything, as an operator sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_commands import RealCommand, environment

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]

#: What FOLIO_EVENTS has, and what the process says.
FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "collection": (
        {"TENANCY": "folio", "TENANT_COLLECTION": "bad_value"},
        "KAFKA_PRODUCER_TENANT_COLLECTION environment variable does not match [A-Z][A-Z0-9]{0,30}",
    ),
    "pattern": ({"CONSUMER_PATTERN": ".*"}, "takes topics of other environments"),
    "topic": ({"TOPICS": {"library.book": {"PARTITIONS": 0}}}, "Topic 'library.book': partitions"),
    "environment": ({"ENV": "folio.x"}, "ENV 'folio.x' does not match [a-zA-Z0-9\\-_]+"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_name_that_cannot_be_stops_the_start(name: str, tmp_path: Path) -> None:
    """The relay ends with another status than 0, and says what is wrong."""
    given, said = FAULTS[name]

    command = RealCommand(tmp_path, "relay_events", "--once", env=environment(folio_events=given))

    assert command.wait() == 1
    assert said in command.output


def test_a_bad_collection_in_the_environment_stops_the_start(tmp_path: Path) -> None:
    """In FOLIO's own words, when the settings are read."""
    (tmp_path / "of_the_environment.py").write_text(
        "import environ\n"
        "from tests.settings import *\n"
        "from folio_events import settings_from_env\n"
        "FOLIO_EVENTS = settings_from_env(environ.Env())\n"
    )
    env = environment(
        DJANGO_SETTINGS_MODULE="of_the_environment", KAFKA_PRODUCER_TENANT_COLLECTION="diku"
    )
    env["PYTHONPATH"] += f":{tmp_path}"

    command = RealCommand(tmp_path, "consume_events", "--once", env=env)

    assert command.wait() == 1
    assert (
        "KAFKA_PRODUCER_TENANT_COLLECTION environment variable does not match "
        "[A-Z][A-Z0-9]{0,30}" in command.output
    )
