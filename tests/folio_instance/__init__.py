"""An instance of a FOLIO module: all that differs from another one's is its environment."""
