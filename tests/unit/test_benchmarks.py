"""The benchmarks' results are published whole, as they were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.bench.page import render

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
RESULTS: list[dict[str, Any]] = json.loads((FOLDER / "results.json").read_text())


def figures(pattern: str) -> list[dict[str, Any]]:
    found = [row for row in RESULTS if re.fullmatch(pattern, row["name"])]
    assert found, pattern
    return found


def test_the_page_shows_the_results_as_they_were_written() -> None:
    """No number of it was copied by hand, and none was left out."""
    assert (FOLDER / "figures.md").read_text() == render(RESULTS)


def test_every_result_says_what_it_is() -> None:
    """Name, value and unit always; whether a goal was met wherever there is one."""
    for row in RESULTS:
        assert {"name", "value", "unit", "control", "ratio", "goal", "met"} <= row.keys()
        assert (row["goal"] is None) is (row["met"] is None)
        assert row["rounds"] >= 5


@pytest.mark.parametrize("share", [50, 99])
@pytest.mark.parametrize("way", ["wake-up", "relay polls every 0.1 s", "Celery task once a second"])
def test_the_delay_from_commit_to_receiver_is_published(way: str, share: int) -> None:
    """Median and 99th percentile, at both rates, of each way to learn of new events."""
    for rate in (50, 500):
        [row] = figures(rf"commit to receiver's commit, {rate} events/s, {way}, p{share}")
        assert (row["unit"], row["value"] > 0) == ("ms", True)


@pytest.mark.parametrize("database", ["PostgreSQL", "SQLite"])
@pytest.mark.parametrize("write", ["create", "update", "ten create", "ten update"])
def test_what_recording_costs_a_write_is_published(database: str, write: str) -> None:
    """Over the same write without events, and beside the same work done by hand."""
    [cost] = figures(f"recording, {write}, {database}, cost over save\\(\\)")
    assert cost["ratio"] is not None
    assert figures(f"recording, {write}, {database}")


def test_the_three_parts_of_the_delay_are_published() -> None:
    """Waiting for the relay, for the consumer, and for the receiver's commit."""
    assert (
        len(figures(r"(commit to the relay's send|the relay's send to the consumer), 50 .*")) == 6
    )
    assert len(figures(r"the consumer to the receiver's commit, 50 .*")) == 3


def test_a_batch_is_at_least_four_times_as_fast_as_single_messages() -> None:
    """For a receiver that writes one row, as the run measured it."""
    [row] = figures("consumer by batch, receiver writes one row in SQL")
    assert row["ratio"] >= 4


def test_the_cost_of_a_dispatch_stands_beside_that_of_a_callback() -> None:
    """For a receiver that writes a row, and for one that writes nothing."""
    for what in ("one row", "nothing"):
        [row] = figures(f"dispatch to a receiver that writes {what}")
        assert row["against"] == "an HTTP callback for each event"
        assert row["ratio"] > 1


def test_one_hot_key_is_at_least_half_as_fast_as_many() -> None:
    """No waiting for each message of a key."""
    [row] = figures("relay with one hot key")
    assert row["ratio"] >= 0.5


def test_the_wake_up_was_measured_against_writers_without_it() -> None:
    """Its goals, met or missed, stand beside the figures."""
    [latency] = figures(r"commit to receiver's commit, 50 events/s, wake-up, p50")
    [cost] = figures(r"8 writers with the wake-up")
    assert latency["goal"] == "value at most 10"
    assert cost["goal"] == "ratio at least 0.9"
