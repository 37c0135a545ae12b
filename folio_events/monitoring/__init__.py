"""What operators see: status, health, lag, what is overdue, the story of an event. Reads only."""

from __future__ import annotations
