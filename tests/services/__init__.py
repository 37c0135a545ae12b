"""The real parts the tests run on: a PostgreSQL and an Apache Kafka, started here or given.

    with postgres() as server, kafka(brokers=3) as cluster:
        server.url, cluster.bootstrap
        cluster.brokers[0].kill()
        cluster.brokers[0].start()

`python -m tests.services run --postgres --kafka -- COMMAND` does it for a command.
"""

from __future__ import annotations

from tests.services.kafka_cluster import KafkaBroker, KafkaCluster, kafka
from tests.services.packages import ServiceUnavailable
from tests.services.postgres_server import PostgresServer, postgres

__all__ = [
    "KafkaBroker",
    "KafkaCluster",
    "PostgresServer",
    "ServiceUnavailable",
    "kafka",
    "postgres",
]
