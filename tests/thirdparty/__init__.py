"""An app whose models are built on apps from PyPI, as a user's are."""
