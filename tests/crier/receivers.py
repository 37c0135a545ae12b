"""One receiver that every process runs, and one that they share."""

from __future__ import annotations

import os
from pathlib import Path

from folio_events import Event, receiver


def _tell(kind: str, event: Event) -> None:
    file = Path(os.environ["CRIER_FOLDER"]) / f"{kind}-{os.getpid()}"
    with file.open("a") as lines:
        lines.write(f"{event.payload['number']}\n")


@receiver("library.cry", name="crier", broadcast=True, start="earliest")
def cry(event: Event) -> None:
    _tell("broadcast", event)


@receiver("library.cry", name="sharer", mode="after_commit")
def share(event: Event) -> None:
    _tell("shared", event)
