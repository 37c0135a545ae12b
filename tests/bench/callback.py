"""An event through the consumer against an HTTP callback for each event, as mod-pubsub delivers."""

from __future__ import annotations

import functools
import http.client
import json
import time

from tests.bench.consumer import TOPIC, by_hand, consume, nothing
from tests.bench.harness import Bench, Figure, Sample
from tests.bench.relay import drain_all, fill
from tests.bench.stage import OUTBOX, empty, program, wait_until

_BODY = json.dumps(
    {"id": "0" * 36, "eventType": "ITEM_CHECKED_OUT", "eventPayload": "x" * 300}
).encode()


def call_back(port: int, path: str, count: int, *, kept: bool) -> float:
    """Events a second, one request for each, over one connection or each over its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    start = time.perf_counter()
    for _ in range(count):
        if not kept:
            connection.close()
        connection.request("POST", path, _BODY, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        if response.status != 204:
            raise RuntimeError(f"the callback answers {response.status}")
    return count / (time.perf_counter() - start)


def run(bench: Bench) -> None:
    """Measure both, with a receiver that writes one row and one that writes nothing."""
    from folio_events.brokers import get_broker
    from folio_events.brokers.base import TopicSpec
    from folio_events.topics import wire_topic

    count, calls = bench.size(10_000, 2_000), bench.size(2_000, 200)
    get_broker().create_topics([TopicSpec(wire_topic(TOPIC, ""), 6, 1)])
    empty(*OUTBOX)
    fill(count + 2_000, topic=TOPIC)
    drain_all()
    port = _free_port()

    def by_consumer(name: str, *, writes: bool) -> Sample:
        empty("bench_effect", "folio_events_inboxentry")
        return {name: consume(by_hand if writes else nothing, count, 500)}

    def by_callback(name: str, path: str, *, kept: bool) -> Sample:
        return {name: call_back(port, path, calls, kept=kept)}

    with program("tests.bench.subscriber", str(port)):
        wait_until(functools.partial(_answers, port), "the subscriber's start")
        consume(nothing, 100, 100)  # the group's own topic is made on first use
        bench.measure(
            [
                functools.partial(by_consumer, "row", writes=True),
                functools.partial(by_consumer, "nothing", writes=False),
                functools.partial(by_callback, "row by callback", "/row", kept=True),
                functools.partial(by_callback, "callback", "/", kept=True),
                functools.partial(by_callback, "new connection", "/", kept=False),
            ],
            [
                Figure(
                    f"dispatch to a receiver that {what}",
                    "events/s",
                    name,
                    control,
                    None,
                    against,
                )
                for what, name, control, against in (
                    ("writes one row", "row", "row by callback", "an HTTP callback for each event"),
                    ("writes nothing", "nothing", "callback", "an HTTP callback for each event"),
                    (
                        "writes nothing, callbacks by new connections",
                        "nothing",
                        "new connection",
                        "an HTTP callback for each event, each over a connection of its own",
                    ),
                )
            ]
            + [
                Figure(
                    "cost of an event by dispatch, one row",
                    "µs",
                    lambda sample: 1e6 / sample["row"],
                    lambda sample: 1e6 / sample["row by callback"],
                    None,
                    "by an HTTP callback",
                )
            ],
        )


def _answers(port: int) -> bool:
    try:
        call_back(port, "/", 1, kept=False)
    except OSError:
        return False
    return True


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
