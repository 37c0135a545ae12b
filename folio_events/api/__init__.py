"""The REST API: doors to the same functions that admin and commands call."""
