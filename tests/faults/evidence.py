"""What the oracle is given: commits, log and effects, each read by somebody uninvolved."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from tests.faults import oracle
from tests.faults.oracle import Breach, Change
from tests.faults.stage import PARTITIONS, Stage, silent

_ENTRIES = """
SELECT account_id, id FROM bank_entry
ORDER BY account_id, pg_xact_commit_timestamp(xmin), id
"""
_EFFECTS = """
SELECT kind, key, number, event_id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float
FROM bank_effect ORDER BY id
"""


class Evidence:
    """What is known of a scenario from outside."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._reader = Consumer(
            {
                "bootstrap.servers": stage.kafka.bootstrap,
                "group.id": f"{stage.id}-oracle",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            },
            logger=silent,
        )

    def close(self) -> None:
        self._reader.close()

    # What is not settled yet

    def unsettled(self) -> Counter[str]:
        """What still has to happen, by kind."""
        found: Counter[str] = Counter()
        last, position, gaps, withheld, retrying, dead = self._stage.rows(
            "SELECT (SELECT coalesce(max(id), 0) FROM folio_events_outboxmessage),"
            " (SELECT coalesce(max(position), 0) FROM folio_events_relaycursor),"
            " (SELECT count(*) FROM folio_events_relaygap),"
            " (SELECT count(*) FROM folio_events_withheldmessage"
            "  WHERE state IN ('refused', 'waiting')),"
            " (SELECT count(*) FROM folio_events_delivery WHERE state = 'retrying'),"
            " (SELECT count(*) FROM folio_events_delivery WHERE state = 'dead')"
        )[0]
        found["outbox"] = max(last - position, 0)
        found["gaps"], found["withheld messages"] = gaps, withheld
        found["retrying deliveries"], found["dead letters"] = retrying, dead
        at = {
            (topic, partition): offset
            for topic, partition, offset in self._stage.rows(
                'SELECT topic, partition, min("offset") FROM folio_events_consumeroffset'
                ' WHERE "group" = %s GROUP BY topic, partition',
                self._stage.id,
            )
        }
        for topic in ("bank.account", "bank.entry"):
            for place, (low, high) in self._bounds(topic).items():
                if high > low and at.get((place.topic, place.partition)) != high:
                    found["offsets"] += 1
        return Counter(
            {kind: n for kind, n in found.items() if n and kind not in self._stage.forgiven}
        )

    def _bounds(self, topic: str) -> dict[TopicPartition, tuple[int, int]]:
        places = [TopicPartition(self._stage.topic(topic), n) for n in range(PARTITIONS)]
        return {
            place: self._reader.get_watermark_offsets(place, timeout=10, cached=False)
            for place in places
        }

    def settle(self) -> Counter[str]:
        """Wait until nothing is left to happen; returns what is stuck, if anything is."""
        stage = self._stage
        began = time.monotonic()
        while True:
            try:
                left = self.unsettled()
            except KafkaException:
                left = Counter({"kafka": 1})
            took = time.monotonic() - began
            if not left or took > stage.patience:
                stage.recovery_s = took
                if left:
                    stage.dump_stacks()
                return left
            time.sleep(0.15)

    # What happened

    def log(self, topic: str) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Key, body and event id of each record, in the order of its partition."""
        for place, (low, high) in self._bounds(topic).items():
            if high == low:
                continue
            self._reader.assign([TopicPartition(place.topic, place.partition, low)])
            while True:
                message: Any = self._reader.poll(15)
                if message is None:
                    raise RuntimeError(f"{place} could not be read to its end, {high}")
                if message.error():
                    raise KafkaException(message.error())
                try:
                    body = json.loads(message.value() or b"")
                except ValueError:
                    body = {}
                headers = dict(message.headers() or [])
                if headers.get("ce_id"):
                    yield (message.key() or b"").decode(), body, headers["ce_id"].decode()
                if message.offset() >= high - 1:
                    break

    def breaches(self) -> tuple[int, list[Breach]]:
        """How many changes were committed, and all that the oracle finds."""
        stage = self._stage
        committed = {
            f"account/{key}": int(number)
            for key, number in stage.rows("SELECT id, number FROM bank_account")
            if number
        }
        ranks: dict[int, int] = {}
        of_key: Counter[str] = Counter()
        for account, entry in stage.rows(_ENTRIES):
            of_key[f"entry/{account}"] += 1
            ranks[entry] = of_key[f"entry/{account}"]
        committed |= of_key

        def change(kind: str, key: str, number: int) -> Change:
            return Change(
                f"{kind}/{key}", number if kind == "account" else ranks.get(number, -number)
            )

        log: list[tuple[Change, str]] = []
        for topic in ("bank.account", "bank.entry"):
            kind = topic.rpartition(".")[2]
            for key, body, event_id in self.log(topic):
                new = body["new"]
                number = new["number"] if kind == "account" else new["id"]
                log.append((change(kind, key, number), event_id))
        effects: list[Change] = []
        times: dict[str, tuple[Change, float]] = {}
        for kind, key, number, event_id, committed_at in stage.rows(_EFFECTS):
            effects.append(change(kind, key, number))
            times.setdefault(event_id, (effects[-1], committed_at))
        found = oracle.breaches_of_log(committed, [one for one, _ in log])
        found += oracle.breaches_of_identity(log)
        found += oracle.breaches_of_effects(committed, effects)
        found += oracle.breaches_of_runs(times, self._runs())
        return sum(committed.values()), [one for one in found if one.kind not in stage.forgiven]

    def _runs(self) -> Iterator[tuple[str, float]]:
        for path in self._stage.folder.glob("runs-*"):
            for line in path.read_text().splitlines():
                event_id, _, began_at = line.partition(" ")
                if began_at:
                    yield event_id, float(began_at)

    def notices(self) -> dict[str, int]:
        """Of chained events: the causing event's id to how many different events it caused."""
        found: dict[str, set[str]] = defaultdict(set)
        for _key, body, event_id in self.log("bank.notice"):
            found[body["data"]["cause"] if "data" in body else body["cause"]].add(event_id)
        return {cause: len(ids) for cause, ids in found.items()}
