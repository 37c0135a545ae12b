"""An app that writes down each note with its tenant and topic; for commands that are real processes."""
