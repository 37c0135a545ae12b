"""What stands in Kafka's topics, and how far groups have read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from folio_events.brokers.base import TopicUse


def read_use(
    client: AdminClient, places: Collection[TopicPartition], timeout: float
) -> dict[str, TopicUse]:
    """Read the ends of partitions, the newest record, and every group's offsets.

    Args:
        client: Asked for all of it.
        places: All partitions of the topics.
        timeout: Seconds for one call.

    Raises:
        KafkaException: Kafka does not answer, or not us.
    """
    if not places:
        return {}

    spec_of: Any = OffsetSpec  # its functions have no types

    def offsets(spec: OffsetSpec) -> dict[tuple[str, int], Any]:
        futures = client.list_offsets(dict.fromkeys(places, spec), request_timeout=timeout)
        return {(at.topic, at.partition): future.result() for at, future in futures.items()}

    lows = offsets(spec_of.earliest())
    highs = offsets(spec_of.latest())
    newest = offsets(spec_of.max_timestamp())
    groups = _group_offsets(client, {place.topic for place in places}, timeout)
    found: dict[str, TopicUse] = {}
    for topic in {place.topic for place in places}:
        numbers = [place.partition for place in places if place.topic == topic]
        stamps = [newest[topic, number].timestamp for number in numbers]
        found[topic] = TopicUse(
            ends={
                number: (lows[topic, number].offset, highs[topic, number].offset)
                for number in numbers
            },
            groups=groups.get(topic, {}),
            # -1 for a partition without records
            newest=max((stamp for stamp in stamps if stamp >= 0), default=None),
        )
    return found


def _group_offsets(
    client: AdminClient, topics: Collection[str], timeout: float
) -> dict[str, dict[str, dict[int, int]]]:
    """Topic to group to partition to next offset."""
    listed = client.list_consumer_groups(request_timeout=timeout).result()
    # One question each: Kafka's protocol takes several, librdkafka does not.
    asked: list[tuple[str, Future[Any]]] = []
    for group in sorted(listing.group_id for listing in listed.valid):
        question = ConsumerGroupTopicPartitions(group)
        futures = client.list_consumer_group_offsets([question], request_timeout=timeout)
        asked.append((group, futures[group]))
    found: dict[str, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for group, future in asked:
        for place in future.result().topic_partitions:
            if place.topic in topics and place.offset >= 0:
                found[place.topic][group][place.partition] = place.offset
    return found
