"""The description of the REST API: it is what the code says, and the API holds to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import yaml
from django.contrib.auth.models import User
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.config import (
    GenerationConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from folio_events.api.schema import FILE
from tests.integration.api.rows import one_of_each
from tests.unit.test_pages import load

SCHEMA = yaml.safe_load(FILE.read_text())


def test_the_description_says_what_the_code_says() -> None:
    """The file is what its script writes from operations and serializers."""
    script = load(Path(__file__).parents[3] / "docs" / "openapi_file.py")

    assert FILE.read_text() == script.render(), "run python docs/openapi_file.py"


@pytest.fixture(autouse=True)
def _one_connection() -> Iterator[None]:
    """Requests do not close the connection that holds the test's transaction."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


#: Examples of each operation and kind; chosen anew with each run.
_EXAMPLES = 3
_BASIC = {"Authorization": "Basic YWRtaW46cGFzc3dvcmQ="}


def fuzz(headers: dict[str, str], *, kinds: list[GenerationMode]) -> Counter[int]:
    """Call every operation with what its description allows, and with what it does not.

    Returns:
        The statuses that came, by number.
    """
    app = get_wsgi_application()
    own = ProjectConfig(generation=GenerationConfig(with_security_parameters=False))
    schema = schemathesis.openapi.from_dict(
        {**SCHEMA, "servers": [{"url": "/"}]},
        config=SchemathesisConfig(projects=ProjectsConfig(default=own)),
    )
    schema.app = app
    statuses: Counter[int] = Counter()
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        takes_nothing = not (operation.query or operation.path_parameters or operation.body)
        for kind in kinds:
            if takes_nothing and kind == GenerationMode.NEGATIVE:
                continue

            @settings(
                max_examples=_EXAMPLES, deadline=None, database=None,
                suppress_health_check=list(HealthCheck), phases=[Phase.generate],
            )  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=kind))
            def run(case: schemathesis.Case[Any]) -> None:
                response = case.call_and_validate(
                    headers=headers, excluded_checks=[ignored_auth, positive_data_acceptance]
                )
                statuses[response.status_code] += 1

            run()
    return statuses


@pytest.mark.django_db
def test_whatever_comes_the_api_answers_as_described(admin_user: User, settings: Any) -> None:
    """No call of a superuser ends in an error; statuses, types and bodies are those described."""
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"folio_events": None}}
    one_of_each()

    statuses = fuzz(_BASIC, kinds=list(GenerationMode))

    assert statuses[200]
    assert statuses[400]


@pytest.mark.django_db
def test_nobody_gets_anything_without_logging_in(settings: Any) -> None:
    """Every call is refused, whatever it says."""
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"folio_events": None}}
    one_of_each()

    statuses = fuzz({}, kinds=[GenerationMode.POSITIVE])
    assert set(statuses) <= {401, 403}
