"""Runs scenarios one after the other and has the oracle judge each."""

from __future__ import annotations

import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tests.faults.evidence import Evidence
from tests.faults.parts import Parts
from tests.faults.report import Result
from tests.faults.stage import ScenarioError, Stage
from tests.services import ServiceUnavailable

Play = Callable[[Stage], None]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fault, and how it is brought about."""

    name: str
    play: Play
    #: Which Kafka; see ``Parts.kafka()``.
    kafka: str
    #: Committed events of the full run, and of the short one.
    size: int
    short_size: int
    #: Part of the short run.
    telling: bool
    #: Seconds after which the scenario is given up.
    limit: int = 300


#: In the order in which they run.
SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str,
    *,
    kafka: str = "one",
    size: int = 2000,
    short_size: int = 500,
    telling: bool = False,
    limit: int = 300,
) -> Callable[[Play], Play]:
    """Register a scenario under the name that the report shows."""

    def register(play: Play) -> Play:
        SCENARIOS[name] = Scenario(
            name=name,
            play=play,
            kafka=kafka,
            size=size,
            short_size=short_size,
            telling=telling,
            limit=limit,
        )
        return play

    return register


def run(
    chosen: Scenario, parts: Parts, *, seed: int, size: int, defect: str = "", patience: float = 90
) -> Result:
    """Run one scenario and judge it."""
    began = time.monotonic()
    result = Result(scenario=chosen.name)
    try:
        stage = Stage(
            parts=parts,
            name=chosen.name,
            size=size,
            seed=seed,
            kafka_form=chosen.kafka,
            defect=defect,
            patience=patience,
        )
    except ServiceUnavailable as error:
        result.skipped = str(error)
        return result
    try:
        with _limited(chosen.limit):
            _play(chosen, stage, result)
    except ServiceUnavailable as error:
        result.skipped = str(error)
    except ScenarioError as error:
        result.failures.append(str(error))
    except Exception:  # noqa: BLE001 - one scenario that breaks must not end the others
        result.failures.append(traceback.format_exc())
    finally:
        result.failures += stage.failures
        result.remarks += stage.remarks
        stage.close()
        result.duration_s = round(time.monotonic() - began, 1)
    return result


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise ScenarioError(f"it did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _play(chosen: Scenario, stage: Stage, result: Result) -> None:
    chosen.play(stage)
    if stage.cast("writer"):
        stage.write_until()
    stage.stop_writers()
    evidence = Evidence(stage)
    try:
        left = evidence.settle()
        result.stuck = sum(left.values())
        result.recovery_s = round(stage.recovery_s, 1)
        if left:
            stage.remarks.append("stuck: " + ", ".join(f"{n} {kind}" for kind, n in left.items()))
        for check in stage.checks:
            check(evidence)
        result.events, breaches = evidence.breaches()
    finally:
        evidence.close()
    stage.expect(result.events >= stage.size, f"fewer than {stage.size} changes were committed")
    # Missing in the log and in the effects is missing once.
    counts = Counter(kind for kind, _change in set(breaches))
    result.lost, result.doubled = counts["lost"], counts["doubled"]
    result.inverted, result.phantom = counts["inverted"], counts["phantom"]
    result.rerun = counts["rerun"]
    if breaches:
        shown = ", ".join(f"{b.kind} {b.change.key} {b.change.number}" for b in breaches[:5])
        stage.remarks.append(f"first of {len(breaches)}: {shown}")
