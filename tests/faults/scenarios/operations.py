"""What operators do: deploy, purge, turn clocks; and the soak."""

from __future__ import annotations

from collections import Counter

import psycopg

from tests.faults.evidence import Evidence
from tests.faults.harness import scenario
from tests.faults.scenarios.outbox import change_account, quiet_account
from tests.faults.stage import ScenarioError, Stage


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
    stops = sum(actor.stopped for actor in stage.actors)
    stage.happened(stops, "graceful stops", 4)
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


@scenario("a purge races relay, late commits and an absent relay")
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
    rows = stage.execute("SELECT count(*) FROM folio_events_outboxmessage")
    drawn = stage.execute("SELECT last_value FROM folio_events_outboxmessage_id_seq")
    stage.happened(drawn - rows, "rows purged or rolled back meanwhile", 100)

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
    stage.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no purge today'; END $$"
    )
    stage.execute(
        "CREATE TRIGGER refuse BEFORE DELETE ON folio_events_outboxmessage"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
    )
    failures = 0
    # Three days go by in the rows' own times.
    for day in (1, 2, 3):
        stage.write_until(0.25 * day)
        stage.execute(
            "UPDATE folio_events_outboxmessage SET occurred_at = occurred_at - interval '1 day'"
        )
        try:
            stage.command("purge_events")
        except ScenarioError as error:
            failures += "no purge today" in str(error)
    stage.happened(failures, "failed purges", 2)
    old = "SELECT count(*) FROM folio_events_outboxmessage WHERE occurred_at < now() - interval '1 day'"
    before = stage.execute(old)
    stage.execute("DROP TRIGGER refuse ON folio_events_outboxmessage")
    stage.write_until()
    stage.await_(stage.relay_is_done, "the relay's way to the end")
    stage.command("purge_events")
    left = stage.execute(old)
    stage.happened(before, "old rows when it could purge again", 100)
    stage.expect(not left, f"{left} old rows were not purged")


@scenario("clocks jump an hour forward and back")
def clocks(stage: Stage) -> None:
    moment = stage.folder / "clock"
    moment.write_text("0")
    stage.environment["FAULTS_CLOCK"] = str(moment)
    stage.settings |= {"OUTBOX_RETENTION": 1800}
    # Runs are stamped by clocks that jump.
    stage.forgiven.add("rerun")
    stage.environment["FAULTS_BEHAVIOUR"] = "fail-once/40"
    stage.open(retries=True)
    stage.repeat("purge_events", 0.3)
    stage.await_published(1)
    # The last one forward: a retry that was put off waits for as long as the clock goes back.
    jumps = ("3600", "-3600", "0", "3600")
    for jump in jumps:
        moment.write_text(jump)
        stage.await_published(1)
        stage.pause(1, 2.5)
    stage.happened(len(jumps), "jumps")
    apart = stage.execute(
        "SELECT extract(epoch FROM max(published_at) - min(published_at)) / 3600"
        " FROM folio_events_publication"
    )
    stage.expect(apart > 0.9, "the processes' clocks did not jump")


@scenario(
    "soak: 100,000 events, everything struck at random", size=100_000, short_size=1500, limit=900
)
def soak(stage: Stage) -> None:
    stage.environment["FAULTS_BEHAVIOUR"] = "fail-once/2000"
    # A batch with a failing event runs again one by one: small ones keep that cheap.
    stage.settings |= {
        "RETRY_BATCH_SIZE": 1000,
        "RELAY_BATCH_SIZE": 1000,
        "CONSUMER_BATCH_SIZE": 100,
    }
    stage.patience = 240
    stage.open(relays=2, consumers=2, writers=0, retries=True)
    for _ in range(2):
        stage.writer(rate=2000, threads=4, hold=0.2)
    struck: Counter[str] = Counter()
    while stage.committed() < stage.size * 0.9:
        stage.pause(2, 6)
        struck[_strike(stage)] += 1
    told = ", ".join(f"{n} {what}" for what, n in sorted(struck.items()))
    stage.happened(struck.total(), f"faults: {told}", stage.size // 5000)
    stage.write_until()


_FAULTS = {
    "kills": 6, "connections ended": 3, "freezes": 3, "deploys": 3,
    "restarts of PostgreSQL": 1, "restarts of Kafka": 1,
}  # fmt: skip


def _strike(stage: Stage) -> str:
    """One fault that the schedule chooses; returns its name."""
    what = stage.chance.choices(list(_FAULTS), list(_FAULTS.values()))[0]
    role = stage.chance.choice(["relay", "consumer"])
    actor = stage.chance.choice(stage.cast(role))
    if what == "connections ended":
        stage.terminate_backends(role)
    elif what == "restarts of PostgreSQL":
        stage.parts.postgres.restart()
    elif what == "restarts of Kafka":
        stage.kafka.restart()
    elif what == "deploys":
        actor.stop()
        (stage.relay if role == "relay" else stage.consumer)()
    elif what == "kills":
        actor.crash()
    elif actor.running:
        actor.freeze()
        stage.pause(0.5, 3)
        actor.thaw()
    return what
