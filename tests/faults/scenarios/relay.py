"""What becomes of relays: killed, frozen, cut off, too many."""

from __future__ import annotations

from tests.faults.harness import scenario
from tests.faults.stage import Actor, Stage

_POINTS = ("relay.read", "relay.produced", "relay.acknowledged", "relay.saved", "relay.committed")


@scenario("relay killed at five points of a drain", telling=True)
def killed(stage: Stage) -> None:
    stage.open(relays=0)
    points = stage.chance.sample(_POINTS, len(_POINTS)) * (2 if stage.size >= 2000 else 1)
    for point in points:
        at = stage.chance.randint(1, 12)
        relay = stage.relay(f"{point}=kill@{at}", supervised=False)
        stage.await_end(relay, f"the kill at {point}")
    stage.happened(len(points), "kills, each at its point")
    stage.relay()


@scenario("relay killed at random, under a supervisor")
def killed_at_random(stage: Stage) -> None:
    stage.open(relays=2)
    struck = 0
    for _ in range(6):
        stage.pause(0.5, 2)
        relay = stage.chance.choice(stage.cast("relay"))
        if relay.running:
            relay.crash()
            struck += 1
    stage.happened(struck, "kills", 3)


@scenario("a frozen relay wakes up after its successor took over")
def zombie(stage: Stage) -> None:
    stage.open(relays=0)
    # Stopped between acknowledgement and cursor, and before what it read was sent.
    points = ("relay.acknowledged", "relay.read")
    for point in points:
        frozen = stage.relay(f"{point}=stop@{stage.chance.randint(2, 8)}", supervised=False)
        stage.await_freeze(frozen, f"the stop at {point}")
        # The frozen relay's connection lives and holds the lock: the server has to end it.
        stage.terminate_backends("relay")
        successor = stage.relay()
        stage.await_published(50)
        frozen.thaw()
        stage.await_word(frozen, "cannot be used")
        stage.pause(1, 2)
        successor.stop()
        frozen.stop()
    stage.happened(len(points), "zombies")
    stage.relay()


@scenario("pg_terminate_backend strikes the relay")
def terminated(stage: Stage) -> None:
    stage.open(relays=2)
    struck = 0
    for _ in range(10):
        stage.pause(0.2, 0.8)
        struck += stage.terminate_backends("relay")
    stage.happened(struck, "connections ended", 10)


@scenario("a standby takes over every second")
def takeovers(stage: Stage) -> None:
    stage.open(relays=2)
    stage.await_published(1)
    rounds = 8 if stage.size >= 2000 else 3
    for _ in range(rounds):
        stage.pause(0.8, 1.5)
        # The oldest one is at work, or would be soon.
        stage.cast("relay")[0].kill()
        stage.await_published(1)
        stage.relay()
    stage.happened(rounds, "takeovers")


@scenario("four relays, beat and a command at once")
def many_relays(stage: Stage) -> None:
    stage.open(relays=4)
    worker = celery(stage)
    stage.repeat("relay_events_once", 0.2)
    stage.await_word(worker, "relay_events")
    stage.happened(len([actor for actor in stage.actors if actor.running]), "processes at once", 8)


def celery(stage: Stage) -> Actor:
    """Beat and a worker of two processes, which drain every second; returns the worker."""
    program = ("-m", "celery", "-A", "tests.faults.celery_app")
    (stage.folder / "queue").mkdir(exist_ok=True)
    worker = stage.start(
        "worker", "worker", "--concurrency=2", "--loglevel=INFO", program=program, supervised=True,
    )  # fmt: skip
    schedule = str(stage.folder / "schedule")
    stage.start("beat", "beat", "-s", schedule, program=program, supervised=True)
    return worker


@scenario("beat and a Celery worker alone, killed and restarted")
def beat_alone(stage: Stage) -> None:
    stage.open(relays=0)
    worker = celery(stage)
    stage.await_(lambda: stage.published() > 50, "the first drain by beat")
    for _ in range(2):
        stage.pause(1, 2)
        worker.crash()
        stage.pause(1, 2)
        stage.await_published(1)
    stage.happened(worker.ends, "kills of the worker", 2)


@scenario("writers are killed in the midst of their transactions")
def writers_killed(stage: Stage) -> None:
    stage.open(writers=3)
    for _ in range(8):
        stage.pause(0.2, 1)
        stage.chance.choice(stage.cast("writer")).crash()
    rows = stage.execute("SELECT count(*) FROM folio_events_outboxmessage")
    stage.happened(8, "kills")
    stage.remarks.append(f"{rows} rows in the outbox then")
