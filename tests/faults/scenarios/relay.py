"""What becomes of relays: killed, frozen, cut off, too many."""

from __future__ import annotations

from tests.faults.harness import scenario
from tests.faults.stage import Stage

_POINTS = ("relay.read", "relay.produced", "relay.acknowledged", "relay.saved", "relay.committed")


@scenario("relay killed at five points of a drain", telling=True)
def killed(stage: Stage) -> None:
    stage.open(relays=0)
    rounds = 2 if stage.size >= 2000 else 1
    for _ in range(rounds):
        for point in stage.chance.sample(_POINTS, len(_POINTS)):
            at = stage.chance.randint(1, 12)
            relay = stage.relay(f"{point}=kill@{at}", supervised=False)
            stage.await_end(relay, f"the kill at {point}")
    stage.relay()


@scenario("relay killed at random, under a supervisor")
def killed_at_random(stage: Stage) -> None:
    stage.open(relays=2)
    for _ in range(6):
        stage.pause(0.5, 2)
        relay = stage.chance.choice(stage.cast("relay"))
        if relay.running:
            relay.process.kill()


@scenario("a frozen relay wakes up after its successor took over")
def zombie(stage: Stage) -> None:
    stage.open(relays=0)
    # Stopped between acknowledgement and cursor, and before what it read was sent.
    for point in ("relay.acknowledged", "relay.read"):
        frozen = stage.relay(f"{point}=stop@{stage.chance.randint(2, 8)}", supervised=False)
        stage.await_freeze(frozen, f"the stop at {point}")
        # The frozen relay's connection lives and holds the lock: the server has to end it.
        stage.terminate_backends("relay")
        successor = stage.relay()
        stage.await_published(50)
        frozen.thaw()
        stage.pause(1, 2)
        successor.stop()
        frozen.stop()
    stage.relay()


@scenario("pg_terminate_backend strikes the relay")
def terminated(stage: Stage) -> None:
    stage.open(relays=2)
    struck = 0
    for _ in range(10):
        stage.pause(0.2, 0.8)
        struck += stage.terminate_backends("relay")
    stage.expect(struck, "no connection was struck")


@scenario("a standby takes over every second")
def takeovers(stage: Stage) -> None:
    stage.open(relays=2)
    for _ in range(8 if stage.size >= 2000 else 3):
        stage.pause(0.8, 1.5)
        stage.cast("relay")[0].kill()
        stage.relay()


@scenario("four relays, beat and a command at once")
def many_relays(stage: Stage) -> None:
    stage.open(relays=4)
    celery(stage)
    stage.repeat("relay_events_once", 0.2)


def celery(stage: Stage) -> None:
    """Beat and a worker of two processes, which drain every second."""
    program = ("-m", "celery", "-A", "tests.faults.celery_app")
    (stage.folder / "queue").mkdir(exist_ok=True)
    stage.start(
        "worker", "worker", "--concurrency=2", "--loglevel=INFO", program=program, supervised=True,
    )  # fmt: skip
    schedule = str(stage.folder / "schedule")
    stage.start("beat", "beat", "-s", schedule, program=program, supervised=True)


@scenario("beat and a Celery worker alone, killed and restarted")
def beat_alone(stage: Stage) -> None:
    stage.open(relays=0)
    celery(stage)
    stage.await_(lambda: stage.published() > 50, "the first drain by beat")
    for _ in range(2):
        stage.pause(1, 2)
        worker = stage.one("worker")
        worker.process.kill()
        stage.pause(1, 2)
