"""An app that tells of each event in a file of the process; for commands that are real processes."""
