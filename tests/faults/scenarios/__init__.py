"""The scenarios, by subject; importing the package registers them in the order of their run."""

from __future__ import annotations

from importlib import import_module

for _subject in ("outbox", "relay", "broker", "consumer", "receivers", "database", "operations"):
    import_module(f"{__name__}.{_subject}")
