"""Whose events are taken: the rules of Eureka's tenant filter, and who is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from folio_events import entitlement
from folio_events.exceptions import ConfigurationError, TenantDisabledError
from tests.unit.vectors import cases

Change = Callable[..., None]

#: What the function of the setting answers, or raises.
answers: list[Any] = []


def entitled_tenants() -> Any:
    answer = answers.pop(0)
    if isinstance(answer, Exception):
        raise answer
    return answer


FUNCTION = f"{__name__}.entitled_tenants"


@pytest.fixture(autouse=True)
def _no_answers() -> None:
    answers.clear()


@pytest.mark.parametrize("case", cases("tenant_filter"))
def test_the_filter_decides_as_eurekas_does(
    case: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Accept, skip, or fail, and a warning where there is no tenant to ask for."""
    try:
        result = "accept" if entitlement.admits(**case["input"]) else "skip"
    except TenantDisabledError as error:
        result = (
            "raise TenantsAreDisabled" if "No tenant" in str(error) else "raise TenantIsDisabled"
        )
    if any(record.levelno == logging.WARNING for record in caplog.records):
        result += " with warning"
    assert result == case["expected"]["result"]


def test_without_the_setting_everybody_is_taken() -> None:
    """And nobody is asked."""
    assert entitlement.takes("diku")
    assert entitlement.takes(None)


def test_an_answer_counts_for_a_while(folio_events: Change) -> None:
    """The next message does not ask again; after REFRESH seconds one does."""
    answers[:] = [["a"], ["b"]]
    folio_events(TENANT_FILTER={"ENTITLED": FUNCTION})
    assert [entitlement.takes(tenant) for tenant in ("a", "b", "a")] == [True, False, True]
    answers[:] = [["a"], ["b"]]
    folio_events(TENANT_FILTER={"ENTITLED": FUNCTION, "REFRESH": 0})
    assert [entitlement.takes("a"), entitlement.takes("a")] == [True, False]


def test_an_answer_that_does_not_come_leaves_the_last_one(
    folio_events: Change, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage of who knows makes nobody lose the module; the log says so without its words."""
    answers[:] = [["a"], OSError("away: token=secret")]
    folio_events(TENANT_FILTER={"ENTITLED": FUNCTION, "REFRESH": 0})
    assert entitlement.takes("a")
    assert entitlement.takes("a")
    assert f"{FUNCTION} failed: OSError" in caplog.text
    assert "secret" not in caplog.text


def test_before_the_first_answer_everything_waits(folio_events: Change) -> None:
    """Nobody knows whom to skip."""
    answers[:] = [OSError("away"), ["a"]]
    folio_events(TENANT_FILTER={"ENTITLED": FUNCTION})
    with pytest.raises(TenantDisabledError, match="does not say which tenants"):
        entitlement.takes("a")
    assert entitlement.takes("a")


def test_what_is_passed_over_is_counted_and_said_once_in_a_while(
    folio_events: Change, caplog: pytest.LogCaptureFixture
) -> None:
    """A burst of a tenant that is off is one line."""
    answers[:] = [["a"]]
    folio_events(TENANT_FILTER={"ENTITLED": FUNCTION})
    assert not any(entitlement.takes("b") for _ in range(100))
    assert entitlement.skipped() == {"b": 100}
    assert caplog.text.count("not entitled") == 1


@pytest.mark.parametrize(
    "given",
    [{}, {"ENTITLED": FUNCTION, "TENANT_DISABLED": "DROP"}, {"ENTITLED": FUNCTION, "TTL": 1}, 5],
    ids=["no function", "strategy", "unknown key", "no dict"],
)
def test_a_setting_that_cannot_be_meant_is_refused(folio_events: Change, given: Any) -> None:
    """By name."""
    folio_events(TENANT_FILTER=given)
    with pytest.raises(ConfigurationError, match="TENANT_FILTER"):
        entitlement.tenant_filter()
