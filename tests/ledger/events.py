"""The topic of the notes, as the project that publishes them declares it."""

from __future__ import annotations

from folio_events import declare_topic

declare_topic("library.note", partitions=2)
