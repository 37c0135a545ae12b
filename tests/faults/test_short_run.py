"""The short run of the fault harness: the oracle sees, and the most telling faults do no harm."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.postgres
@pytest.mark.kafka
@pytest.mark.timeout(480)
def test_real_processes_survive_the_most_telling_faults(tmp_path: Path) -> None:
    """Each planted defect turns the oracle red; without one nothing is lost, doubled or stuck."""
    results = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--short", "--results", str(results)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"seed \d+\n", done.stdout)
    assert results.exists()
