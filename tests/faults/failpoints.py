"""Kill points: named places at which a process of the harness ends, stops or waits.

Installed by the harness's app when FAULTS_FAILPOINTS names some, such as
``relay.acknowledged=kill@3``: at the third passage. The product knows nothing of them.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Action = Callable[[], None]


def _points() -> dict[str, tuple[Any, str, str]]:
    """Name to the owner of a function, its name, and whether the point lies before or after it."""
    from folio_events import consumer, inbox, relay_daemon
    from folio_events.brokers.kafka import KafkaBroker, KafkaSubscription
    from folio_events.brokers.kafka.producer import BatchProducer
    from folio_events.cursor import OutboxCursor

    return {
        "relay.looked": (OutboxCursor, "_snapshot", "after"),
        "relay.read": (OutboxCursor, "read", "after"),
        "relay.produced": (BatchProducer, "_flush", "before"),
        "relay.acknowledged": (KafkaBroker, "publish", "after"),
        "relay.saved": (OutboxCursor, "save", "after"),
        "relay.committed": (relay_daemon, "drain", "after"),
        "consumer.polled": (KafkaSubscription, "poll", "after"),
        "consumer.begun": (consumer, "dispatch", "before"),
        "consumer.worked": (inbox, "advance", "after"),
        "consumer.committed": (consumer, "dispatch", "after"),
        "consumer.told": (KafkaSubscription, "commit", "after"),
    }


def install(wanted: str) -> None:
    """Install the points of a comma-separated list."""
    if not wanted:
        return
    known = _points()
    for item in wanted.split(","):
        name, _, what = item.partition("=")
        owner, function, when = known[name]
        _wrap(owner, function, when, _action(name, what))


def _action(name: str, what: str) -> Action:
    kind, _, at = what.partition("@")
    if kind == "hold":
        return functools.partial(hold, name)
    left = int(at or "1")

    def act() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])

    return act


def hold(name: str) -> None:
    """Wait here for as long as the scenario holds this place; see ``Stage.held()``."""
    folder = Path(os.environ["FAULTS_FOLDER"])
    while (folder / f"hold-{name}").exists():
        (folder / f"held-{name}").touch()
        time.sleep(0.005)


def _wrap(owner: Any, name: str, when: str, act: Action) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            act()
        result = function(*args, **kwargs)
        # A read or a poll that brought nothing is no passage.
        if when == "after" and not (name in ("read", "poll") and not result):
            act()
        return result

    setattr(owner, name, wrapped)
