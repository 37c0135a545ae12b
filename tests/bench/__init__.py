"""What folio_events costs and how fast it is, against the same work by hand: ``make bench``."""
