"""What operators do: replay, reset, back-fill, reconcile, mend, erase, purge. Doors call it."""

from __future__ import annotations
