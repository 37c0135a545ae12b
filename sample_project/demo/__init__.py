"""The demo: a library at work as separate processes, from an empty directory to a table."""
