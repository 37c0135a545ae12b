"""What receivers do: fail, hang, kill, deadlock, swallow, chain."""

from __future__ import annotations

from typing import Any

from tests.faults.harness import scenario
from tests.faults.stage import Stage


def _counts(stage: Stage) -> dict[str, int]:
    rows = stage.rows("SELECT state, count(*) FROM folio_events_delivery GROUP BY state")
    return dict(rows)


def _heal(stage: Stage) -> None:
    """The fault is mended, and a person has every dead letter run again, also those to come."""
    stage.heal()
    stage.repeat("retry_dead_letters", 0.5)


def _expect_struck(stage: Stage, what: str, least: int) -> None:
    """Count the events that the receivers had trouble with, once all is settled."""
    stage.happened(len(list(stage.folder.glob("seen-*"))), what, least)


@scenario("one event in 20 fails once, its key's followers wait")
def fails_once(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "fail-once/20"
    stage.settings["RETRY_BATCH_SIZE"] = 1000
    stage.open(consumers=2, retries=True)
    stage.repeat("retry_deliveries")
    stage.checks.append(lambda _: _expect_struck(stage, "first failures", stage.size // 40))


@scenario("one event in 200 fails for good until it is mended")
def fails_for_good(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "fail/200"
    stage.settings["RETRY_BATCH_SIZE"] = 1000
    stage.settings["MAX_HELD"] = 100_000
    stage.open(retries=True)
    stage.await_(lambda: _counts(stage).get("dead"), "the first dead letter")
    stage.write_until()
    stage.happened(sum(_counts(stage).values()), "deliveries before the mending", 5)
    _heal(stage)


@scenario("one event in 800 kills the process")
def kills(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "kill/800"
    stage.settings |= {"RETRY_BATCH_SIZE": 1000, "MAX_HELD": 100_000}
    stage.open(writers=0)
    # Each struck event costs three starts of the process.
    stage.writer(rate=25)
    stage.await_(lambda: sum(_counts(stage).values()), "a parked event", 120)
    stage.write_until()
    stage.happened(sum(actor.ends for actor in stage.actors), "ends of the process", 3)
    stage.repeat("retry_deliveries")
    _heal(stage)


@scenario("one event in 600 hangs its receiver")
def hangs(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "hang/600"
    stage.settings |= {"RETRY_BATCH_SIZE": 1000, "MAX_HELD": 100_000}
    stage.open(writers=0)
    # Each struck event costs three starts of the process.
    stage.writer(rate=25)
    stage.await_(lambda: sum(_counts(stage).values()), "a parked event", 120)
    stage.write_until()
    consumer = stage.one("consumer")
    stage.happened(consumer.ends, "ends of the process", 3)
    stage.expect(consumer.said("ran longer than"), "the process did not say why")
    stage.repeat("retry_deliveries")
    _heal(stage)


@scenario("receivers of three consumers deadlock")
def deadlocks(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "deadlock/3"
    stage.settings["CONSUMER_BATCH_SIZE"] = 20
    stage.execute(f"ALTER DATABASE {stage.id} SET deadlock_timeout = '20ms'")
    stage.open(consumers=3, retries=True)
    stage.write_until()
    stage.await_(lambda: stage.effects() >= stage.size * 0.8, "most effects", 120)
    struck = stage.execute(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    stage.happened(struck, "deadlocks", 10)
    # Struck three times in a row, an event is left to the retry pass.
    stage.remarks.append(f"{sum(_counts(stage).values())} deliveries")
    stage.expect(not _counts(stage).get("dead"), "a deadlock made a dead letter")


@scenario("receivers swallow errors of the database")
def swallows(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "swallow/100"
    stage.settings["RETRY_BATCH_SIZE"] = 1000
    stage.open(retries=True)
    _swallow(stage)


@scenario("receivers swallow errors that Django does not see", short_size=300)
def swallows_unseen(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "swallow-psycopg/100"
    stage.settings["RETRY_BATCH_SIZE"] = 1000
    stage.open(retries=True)
    _swallow(stage)


def _swallow(stage: Stage) -> None:
    stage.checks.append(lambda _: _expect_struck(stage, "errors swallowed", stage.size // 200))


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
        _expect_struck(stage, "failures after an event was recorded", stage.size // 40)

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
    stage.happened(sum(_counts(stage).values()), "deliveries before the mending", stage.size // 80)
    _heal(stage)
    _heal(stage)
