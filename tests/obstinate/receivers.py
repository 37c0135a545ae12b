"""What a book's title makes of its event: a plain effect, a long wait, the end of the process."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from folio_events import Event, receiver
from tests.testapp.models import Effect


@receiver("library.book", name="obstinate")
def obstinate(event: Event) -> None:
    title = (event.new or {}).get("title", "")
    Effect.objects.create(receiver="obstinate", event_id=event.id, note=title)
    folder = Path(os.environ["OBSTINATE_FOLDER"])
    if title == "wait":
        (folder / "inside").touch()
        pause = threading.Event()
        while not (folder / "go on").exists():
            pause.wait(0.01)
    if title == "die":
        os._exit(9)
