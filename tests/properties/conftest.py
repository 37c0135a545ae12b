"""Profiles of the property tests: a bounded run that is always the same, and a deep one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

# An example starts threads and connections, so its time says nothing.
_COMMON: dict[str, Any] = {
    "database": None,
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}
settings.register_profile(
    "bounded", max_examples=60, stateful_step_count=30, derandomize=True, **_COMMON
)
# pytest tests/properties --hypothesis-profile=deep [--hypothesis-seed=N]
settings.register_profile("deep", max_examples=2000, stateful_step_count=60, **_COMMON)
settings.load_profile("bounded")


@pytest.fixture
def holds() -> Callable[[type[RuleBasedStateMachine]], None]:
    """Try a machine's rules in the many orders of the profile."""

    def run(machine: type[RuleBasedStateMachine]) -> None:
        run_state_machine_as_test(machine, settings=settings())

    return run


@pytest.fixture
def is_broken() -> Callable[[type[RuleBasedStateMachine]], None]:
    """See that a machine finds something within a few hundred examples; which one is enough."""

    def run(machine: type[RuleBasedStateMachine]) -> None:
        search = settings(
            max_examples=300,
            stateful_step_count=30,
            derandomize=True,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )
        with pytest.raises(AssertionError):
            run_state_machine_as_test(machine, settings=search)

    return run


@pytest.fixture
def writers() -> int:
    """How many transactions may be open at once."""
    return 3 if connection.vendor == "postgresql" else 1
