"""What operators do: deploy, purge, turn clocks; and the soak."""

from __future__ import annotations

from pathlib import Path

import psycopg

from tests.faults.evidence import Evidence
from tests.faults.harness import scenario
from tests.faults.scenarios.outbox import change_account, quiet_account
from tests.faults.stage import Stage
from tests.services import ServiceUnavailable
from tests.services.packages import install


@scenario("rolling restarts by SIGTERM under load")
def rolling(stage: Stage) -> None:
    stage.open(relays=2, consumers=2, retries=True)
    slowest = 0.0
    for _ in range(3 if stage.size >= 2000 else 1):
        for role, start in (("relay", stage.relay), ("consumer", stage.consumer)):
            for actor in stage.cast(role):
                start()
                stage.pause(0.5, 1)
                slowest = max(slowest, actor.stop())
    stage.remarks.append(f"slowest stop {slowest:.1f} s")
    stage.expect(slowest < 15, "a process took too long to stop")

    def check(evidence: Evidence) -> None:
        ids = [
            event_id
            for topic in ("bank.account", "bank.entry")
            for *_, event_id in evidence.log(topic)
        ]
        twice = len(ids) - len(set(ids))
        stage.expect(not twice, f"{twice} events were published twice by graceful stops")

    stage.checks.append(check)


@scenario("a purge races relay, late commits and an absent relay", telling=True)
def purge_races(stage: Stage) -> None:
    stage.settings |= {"OUTBOX_RETENTION": 1, "PURGE_BATCH_SIZE": 100}
    stage.open()
    stage.repeat("purge_events", 0.1)
    stage.repeat("purge_events", 0.1)
    for _ in range(2):
        with psycopg.connect(stage.url) as late:
            change_account(late, quiet_account(stage))
            stage.pause(1, 2)
        stage.one("relay").kill()
        stage.pause(2.2, 3)
        stage.relay()
        stage.pause(0.5, 1)
    stage.write_until()

    def check(_evidence: Evidence) -> None:
        stage.pause(1.2, 1.3)
        stage.command("purge_events")
        left = stage.execute("SELECT count(*) FROM folio_events_outboxmessage")
        stage.expect(not left, f"{left} settled rows were not purged")

    stage.checks.append(check)


@scenario("the purge fails for three days, then catches up")
def purge_fails(stage: Stage) -> None:
    stage.settings |= {"OUTBOX_RETENTION": 86_400, "PURGE_BATCH_SIZE": 200}
    stage.open()
    stage.execute("REVOKE ALL ON folio_events_outboxmessage FROM PUBLIC")
    # Three days go by in the rows' own times.
    for days in (3, 2, 1):
        stage.write_until(0.25 * (4 - days))
        stage.execute(
            "UPDATE folio_events_outboxmessage SET occurred_at = occurred_at - interval '1 day'"
        )
    oldest = stage.execute(
        "SELECT now() - min(occurred_at) > '2 days' FROM folio_events_outboxmessage"
    )
    stage.expect(oldest, "no row is old")
    said = stage.command("purge_events")
    stage.remarks.append(said.splitlines()[0])
    stage.expect("messages: 0" not in said, "nothing was purged")


@scenario("clocks jump an hour forward and back")
def clocks(stage: Stage) -> None:
    library = _faketime()
    moment = stage.folder / "clock"
    moment.write_text("+0")
    stage.environment |= {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(moment),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    stage.settings |= {"OUTBOX_RETENTION": 1800}
    # Runs are stamped by clocks that jump.
    stage.forgiven.add("rerun")
    stage.environment["FAULTS_BEHAVIOUR"] = "fail-once/40"
    stage.open(retries=True)
    stage.repeat("purge_events", 0.3)
    for jump in ("+1h", "-1h", "+1h", "+0"):
        stage.pause(1, 2.5)
        moment.write_text(jump)


def _faketime() -> Path:
    pattern = "*/faketime/libfaketimeMT.so.1"
    found = next(Path("/usr/lib").glob(pattern), None)
    if found is None:
        install("libfaketime", ["libfaketime"])
        found = next(Path("/usr/lib").glob(pattern), None)
    if found is None:
        raise ServiceUnavailable("libfaketime was installed, but cannot be found.")
    return found


@scenario(
    "soak: 100,000 events, everything struck at random", size=100_000, short_size=1500, limit=900
)
def soak(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "fail-once/2000"
    stage.settings |= {
        "RETRY_BATCH_SIZE": 1000,
        "RELAY_BATCH_SIZE": 1000,
        "CONSUMER_BATCH_SIZE": 500,
    }
    stage.patience = 240
    stage.open(relays=2, consumers=2, writers=0, retries=True)
    for _ in range(2):
        stage.writer(rate=2000, threads=4, hold=0.2)
    struck = 0
    while stage.committed() < stage.size * 0.9:
        stage.pause(2, 6)
        _strike(stage)
        struck += 1
    stage.remarks.append(f"{struck} faults")
    stage.write_until()


def _strike(stage: Stage) -> None:
    """One fault that the schedule chooses."""
    what = stage.chance.choice(
        ["kill", "kill", "terminate", "freeze", "postgres", "kafka", "deploy"]
    )
    role = stage.chance.choice(["relay", "consumer"])
    actors = [actor for actor in stage.cast(role) if actor.running]
    if what == "terminate":
        stage.terminate_backends(role)
    elif what == "postgres" and stage.chance.random() < 0.3:
        stage.parts.postgres.restart()
    elif what == "kafka" and stage.chance.random() < 0.3:
        stage.kafka.restart()
    elif actors:
        actor = stage.chance.choice(actors)
        if what == "freeze":
            actor.freeze()
            stage.pause(0.5, 3)
            actor.thaw()
        elif what == "deploy":
            actor.stop()
            (stage.relay if role == "relay" else stage.consumer)()
        else:
            actor.process.kill()
