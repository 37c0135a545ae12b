"""A message in Celery's folder is whole when a worker sees it."""

from __future__ import annotations

import threading

from kombu import Connection

MESSAGES = 1000


def test_a_worker_that_never_rests_reads_every_message_whole_and_in_order(tmp_path):
    folder = tmp_path / "queue"
    folder.mkdir()

    def connection():
        return Connection(
            "filesystem://",
            transport="sample_project.file_queue:Transport",
            transport_options={
                "data_folder_in": str(folder),
                "data_folder_out": str(folder),
                "control_folder": str(tmp_path / "control"),
                "polling_interval": 0,
            },
        )

    def put():
        with connection() as writer:
            queue = writer.SimpleQueue("work")
            for number in range(MESSAGES):
                queue.put(number)
            queue.close()

    # Two connections of one process share what kombu knows of bindings: the second to declare
    # the queue would not wait until the first has written it down.
    with connection() as first:
        first.SimpleQueue("work").close()
    writing = threading.Thread(target=put)
    writing.start()
    read: list[int] = []
    with connection() as reader:
        queue = reader.SimpleQueue("work")
        while len(read) < MESSAGES:
            message = queue.get(timeout=20)
            read.append(message.payload)
            message.ack()
        queue.close()
    writing.join()
    assert read == list(range(MESSAGES))
    assert list(folder.iterdir()) == []
