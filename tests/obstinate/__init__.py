"""An app whose receivers wait, or end their process; for commands that are real processes."""
