"""What receivers do: fail, hang, kill, deadlock, swallow, chain."""

from __future__ import annotations

from typing import Any

from tests.faults.harness import scenario
from tests.faults.stage import Stage


def _counts(stage: Stage) -> dict[str, int]:
    rows = stage.rows("SELECT state, count(*) FROM folio_events_delivery GROUP BY state")
    return dict(rows)


def _heal_and_retry(stage: Stage) -> None:
    """The fault is mended, and a person has every dead letter run again."""
    stage.heal()
    stage.command(
        "shell",
        "-c",
        "from folio_events import deliveries; from folio_events.models import Delivery;"
        "deliveries.retry(list(Delivery.objects.filter(state='dead')"
        ".values_list('pk', flat=True)))",
    )


@scenario("one event in 20 fails once, its key's followers wait")
def fails_once(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "fail-once/20"
    stage.settings["RETRY_BATCH_SIZE"] = 1000
    stage.open(consumers=2, retries=True)
    stage.repeat("retry_deliveries")


@scenario("one event in 200 fails for good until it is mended")
def fails_for_good(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "fail/200"
    stage.settings["RETRY_BATCH_SIZE"] = 1000
    stage.settings["MAX_HELD"] = 100_000
    stage.open(retries=True)
    stage.await_(lambda: _counts(stage).get("dead"), "the first dead letter")
    stage.write_until()
    stage.remarks.append(f"deliveries before the mending: {_counts(stage)}")
    _heal_and_retry(stage)


@scenario("one event in 800 kills the process")
def kills(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "kill/800"
    stage.settings |= {"RETRY_BATCH_SIZE": 1000, "MAX_HELD": 100_000}
    stage.open(writers=0)
    # Each struck event costs three starts of the process.
    stage.writer(rate=25)
    stage.await_(lambda: sum(_counts(stage).values()), "a parked event", 120)
    stage.write_until()
    stage.pause(3, 4)
    stage.remarks.append(
        f"process ended {sum(a.ends for a in stage.actors)} times; deliveries {_counts(stage)}"
    )
    stage.heal()
    stage.repeat("retry_deliveries")
    stage.pause(2, 3)
    _heal_and_retry(stage)


@scenario("one event in 600 hangs its receiver")
def hangs(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "hang/600"
    stage.settings |= {"RETRY_BATCH_SIZE": 1000, "MAX_HELD": 100_000}
    stage.open(writers=0)
    # Each struck event costs three starts of the process.
    stage.writer(rate=25)
    stage.await_(lambda: sum(_counts(stage).values()), "a parked event", 120)
    ends = sum(actor.ends for actor in stage.cast("consumer"))
    stage.expect(ends, "the process did not end")
    stage.expect(
        any(actor.said("ran longer than") for actor in stage.cast("consumer")), "nothing was said"
    )
    stage.remarks.append(f"process ended {ends} times; deliveries {_counts(stage)}")
    stage.write_until()
    stage.heal()
    stage.repeat("retry_deliveries")
    stage.pause(2, 3)
    _heal_and_retry(stage)


@scenario("receivers of three consumers deadlock")
def deadlocks(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "deadlock"
    stage.execute("SELECT 1")
    stage.open(consumers=3, retries=True)
    stage.write_until()
    struck = stage.execute(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    stage.remarks.append(f"{struck} deadlocks; deliveries {_counts(stage)}")


@scenario("receivers swallow errors of the database")
def swallows(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "swallow/30"
    stage.settings["RETRY_BATCH_SIZE"] = 1000
    stage.open(retries=True)


@scenario("receivers swallow errors that Django does not see", short_size=300)
def swallows_unseen(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "swallow-psycopg/30"
    stage.settings["RETRY_BATCH_SIZE"] = 1000
    stage.open(retries=True)


@scenario("receivers record events and then fail")
def chains(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "chain/20"
    stage.settings["RETRY_BATCH_SIZE"] = 1000
    stage.open(consumers=2, retries=True)

    def check(evidence: Any) -> None:
        caused = evidence.notices()
        effects = {str(row[0]) for row in stage.rows("SELECT event_id FROM bank_effect")}
        stage.expect(caused.keys() == effects, "effects and the events they recorded differ")
        stage.expect(set(caused.values()) <= {1}, "an effect recorded its event twice")

    stage.checks.append(check)


@scenario("two retry passes and two persons at the same dead letters")
def retried_at_once(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "fail/40"
    stage.settings |= {"RETRY_BATCH_SIZE": 1000, "MAX_HELD": 100_000}
    stage.open(retries=True)
    for _ in range(3):
        stage.repeat("retry_deliveries", 0.05)
    stage.write_until()
    stage.await_(lambda: _counts(stage).get("dead"), "dead letters")
    _heal_and_retry(stage)
    _heal_and_retry(stage)
