"""What the module publishes."""

from __future__ import annotations

from folio_events import declare_topic

declare_topic("library.note")
