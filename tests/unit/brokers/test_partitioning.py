"""Which partition a key stands in: Java's murmur2."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from folio_events.brokers.base import murmur2, partition_of

#: What Kafka's own Java client computed: tests/contract/java/PartitionVectors.java.
COMPUTED = Path(__file__).parents[1] / "vectors" / "partitions.csv"

#: Source: org.apache.kafka.common.utils.UtilsTest, testMurmur2.
PUBLISHED = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_murmur2_is_javas(key: bytes) -> None:
    """As a signed number of 32 bits it is what Kafka's own test expects."""
    unsigned = murmur2(key)

    assert 0 <= unsigned < 2**32
    assert (unsigned if unsigned < 2**31 else unsigned - 2**32) == PUBLISHED[key]


@pytest.mark.parametrize("key", PUBLISHED)
@pytest.mark.parametrize("partitions", [1, 2, 6, 50])
def test_a_key_has_its_partition(key: bytes, partitions: int) -> None:
    """Java's toPositive and modulo of the hash."""
    assert partition_of(key, partitions) == (PUBLISHED[key] & 0x7FFFFFFF) % partitions


def test_every_key_has_javas_partition() -> None:
    """Of 410 keys, empty ones, ids, UTF-8 and any bytes up to 64, for seven sizes of a topic."""
    with COMPUTED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 410

    for row in rows:
        key = bytes.fromhex(row.pop("key"))
        assert murmur2(key) == int(row.pop("murmur2")) % 2**32, key
        for name, partition in row.items():
            assert partition_of(key, int(name.removeprefix("of "))) == int(partition), key


def test_a_message_without_key_may_stand_anywhere() -> None:
    """They are spread over all partitions."""
    counts = Counter(partition_of(None, 4) for _ in range(2000))

    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 300


def test_an_empty_key_is_a_key() -> None:
    """It keeps its order like any other."""
    assert {partition_of(b"", 50) for _ in range(50)} == {(275646681 & 0x7FFFFFFF) % 50}


def test_keys_spread_evenly() -> None:
    """No partition has twice its share of many ids."""
    counts = Counter(partition_of(b"%d" % number, 8) for number in range(8000))

    assert len(counts) == 8
    assert max(counts.values()) < 2000
