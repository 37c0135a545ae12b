"""Celery's queue in a folder, without the moment in which a message is half written.

kombu's own transport makes the file first and fills it then; a worker that looks in between
reads nothing, takes that for a message, and ends.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    """Writes under another name, and gives the file its own when it is whole."""

    def _put(self, queue: str, payload: Any, **_kwargs: Any) -> None:  # type: ignore[override]  # as kombu's own
        # The transport takes what belongs to a queue in the order of its names.
        name = f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        unfinished = folder / f".{name}"
        unfinished.write_text(dumps(payload))
        unfinished.rename(folder / name)

    def _queue_bind(self, exchange: str, routing_key: Any, pattern: Any, queue: str) -> None:
        self._make_table(exchange)
        super()._queue_bind(exchange, routing_key, pattern, queue)

    def _make_table(self, exchange: str) -> None:
        table = Path(self.control_folder) / f"{exchange}.exchange"
        if table.exists():
            return
        table.parent.mkdir(exist_ok=True)
        unfinished = table.with_name(f".{uuid.uuid4()}")
        unfinished.write_text(dumps([]))
        try:
            # A link, since it never replaces what another process made meanwhile.
            table.hardlink_to(unfinished)
        except FileExistsError:
            pass
        finally:
            unfinished.unlink()


class Transport(filesystem.Transport):
    """The transport to name in CELERY_BROKER_TRANSPORT, with a ``filesystem://`` URL."""

    Channel = Channel
