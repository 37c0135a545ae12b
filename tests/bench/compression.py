"""Each kind of compression, with and without linger: how fast, how many bytes, how much CPU."""

from __future__ import annotations

import functools
import json
import random
import time
import uuid
from typing import Any

from django.conf import settings

from folio_events.brokers.base import Acknowledgement, TopicSpec
from folio_events.brokers.kafka import KafkaBroker
from folio_events.message import Message
from tests.bench.harness import Bench, Figure, Form, Results, Sample, percentile

KINDS = ("none", "gzip", "zstd", "lz4")
LINGERS = (0, 5)
#: What a full outbox is published in, and what it is when users work one by one.
BATCH = 1_000


def item(seed: random.Random) -> dict[str, Any]:
    """An item as FOLIO's inventory has it, about 1.2 kB; ids and barcodes differ, names repeat."""

    def new_id() -> str:
        return str(uuid.UUID(int=seed.getrandbits(128), version=4))

    return {
        "id": new_id(),
        "_version": seed.randrange(9),
        "hrid": f"it{seed.randrange(10**11):011}",
        "holdingsRecordId": new_id(),
        "formerIds": [],
        "discoverySuppress": False,
        "barcode": str(seed.randrange(10**13, 10**14)),
        "effectiveShelvingOrder": f"QA {seed.randrange(9999)} M{seed.randrange(99)} {seed.randrange(1950, 2026)}",
        "itemLevelCallNumber": f"QA{seed.randrange(9999)} .M{seed.randrange(99)}",
        "effectiveCallNumberComponents": {
            "callNumber": f"QA{seed.randrange(9999)} .M{seed.randrange(99)}",
            "prefix": None,
            "suffix": None,
            "typeId": "512173a7-bd09-490e-b773-17d83f2b63fe",
        },
        "volume": f"v. {seed.randrange(60)}",
        "enumeration": f"v.{seed.randrange(60)}:no.{seed.randrange(12)}",
        "chronology": f"{seed.randrange(1950, 2026)}",
        "copyNumber": str(seed.randrange(4)),
        "administrativeNotes": [],
        "notes": [],
        "circulationNotes": [],
        "status": {"name": "Available", "date": "2026-03-14T09:26:53.589+00:00"},
        "materialTypeId": "1a54b431-2e4f-452d-9cae-9cee66c9a892",
        "permanentLoanTypeId": "2b94c631-fca9-4892-a730-03ee529ffe27",
        "effectiveLocationId": seed.choice(_LOCATIONS),
        "electronicAccess": [],
        "statisticalCodeIds": [],
        "tags": {"tagList": []},
        "metadata": {
            "createdDate": "2024-11-02T16:00:21.113+00:00",
            "createdByUserId": _USERS[0],
            "updatedDate": "2026-03-14T09:26:53.589+00:00",
            "updatedByUserId": seed.choice(_USERS),
        },
    }


_ids = random.Random(7)
_LOCATIONS = [str(uuid.UUID(int=_ids.getrandbits(128), version=4)) for _ in range(12)]
_USERS = [str(uuid.UUID(int=_ids.getrandbits(128), version=4)) for _ in range(12)]


def messages(topic: str, count: int) -> list[Message]:
    """Updates of items as the relay would publish them, with old and new."""
    seed = random.Random(count)
    made = []
    for number in range(count):
        old = item(seed)
        event_id = str(uuid.UUID(int=seed.getrandbits(128), version=4))
        body = {
            "eventId": event_id,
            "eventTs": 1_790_000_000_000 + number,
            "type": "UPDATE",
            "tenant": "diku",
            "old": old,
            "new": {**old, "barcode": str(seed.randrange(10**13, 10**14))},
        }
        headers = {
            "ce_specversion": "1.0",
            "ce_id": event_id,
            "ce_type": "inventory.item.UPDATE",
            "ce_source": "/inventory",
            "ce_time": "2026-03-14T09:26:53.589793Z",
            "ce_sequence": str(number),
            "content-type": "application/json",
            "x-okapi-tenant": "diku",
        }
        made.append(
            Message(
                topic,
                str(old["id"]).encode(),
                json.dumps(body).encode(),
                [(name, value.encode()) for name, value in headers.items()],
            )
        )
    return made


class Sender:
    """One broker object, and what its producer has put on the wire."""

    def __init__(self, kind: str, linger: int) -> None:
        self.name = f"{kind}, linger {linger}"
        options = {
            "compression.type": kind,
            "linger.ms": linger,
            "statistics.interval.ms": 50,
            "stats_cb": self._note,
        }
        given = settings.FOLIO_EVENTS["BROKER"]["OPTIONS"]
        self.broker = KafkaBroker({**given, "producer": options})
        self._written = 0
        self._notes = 0

    def _note(self, statistics: str) -> None:
        brokers = json.loads(statistics)["brokers"].values()
        self._written = sum(broker["txbytes"] for broker in brokers)
        self._notes += 1

    def written(self) -> int:
        """Bytes sent to Kafka so far."""
        seen = self._notes
        while self._notes < seen + 2:  # the first may have been made before the last answer
            self.broker._producer._get().poll(0.1)
        return self._written

    def send(self, batch: list[Message]) -> None:
        reports = self.broker.publish(batch, timeout=60)
        if not all(isinstance(report, Acknowledgement) for report in reports):
            raise RuntimeError(f"{self.name}: not all was acknowledged")


def form(sender: Sender, bulk: list[Message], singles: list[Message]) -> Sample:
    before, cpu, start = sender.written(), time.process_time(), time.perf_counter()
    for first in range(0, len(bulk), BATCH):
        sender.send(bulk[first : first + BATCH])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    between = sender.written()
    waits = []
    for message in singles:
        start = time.perf_counter()
        sender.send([message])
        waits.append(time.perf_counter() - start)
    return {
        f"{sender.name}: events/s": len(bulk) / seconds,
        f"{sender.name}: bytes": (between - before) / len(bulk),
        f"{sender.name}: CPU": cpu / len(bulk) * 1e6,
        f"{sender.name}: bytes alone": (sender.written() - between) / len(singles),
        f"{sender.name}: ms alone": percentile(waits, 0.5) * 1000,
    }


#: What is measured, and its unit.
_MEASURES = {
    "events/s": ("in batches", "events/s"),
    "bytes": ("in batches", "bytes/event on the wire"),
    "CPU": ("in batches", "µs of CPU/event"),
    "bytes alone": ("one by one", "bytes/event on the wire"),
    "ms alone": ("one by one", "ms until acknowledged, median"),
}


def run(bench: Bench) -> None:
    """Measure updates of items, in batches as of a full outbox, and one by one.

    The figures go into a file of their own, compression.json.
    """
    topic = f"bench.compression.{uuid.uuid4().hex[:8]}"
    bulk = messages(topic, bench.size(10_000, 2_000))
    singles = bulk[: bench.size(100, 20)]
    senders = [Sender(kind, linger) for kind in KINDS for linger in LINGERS]
    senders[0].broker.create_topics([TopicSpec(topic, 6, 1)])
    for sender in senders:
        sender.send(bulk[:100])
    forms: list[Form] = [functools.partial(form, sender, bulk, singles) for sender in senders]
    results = Results.open(bench.results.path.with_name("compression.json"), bench.results.note)
    Bench(results, bench.rounds, bench.quick).measure(
        forms,
        [
            Figure(
                f"{sender.name} ms, {how}: {measure.removesuffix(' alone')}",
                unit,
                f"{sender.name}: {measure}",
                f"none, linger {LINGERS[-1]}: {measure}",
                None,
                "no compression, linger 5 ms",
            )
            for measure, (how, unit) in _MEASURES.items()
            for sender in senders
        ],
    )
    for sender in senders:
        sender.broker.close()
