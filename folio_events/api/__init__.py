"""The REST API: what the admin shows and does, for programs."""
