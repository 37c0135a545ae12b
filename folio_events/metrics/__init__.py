"""Prometheus metrics (extra ``metrics``): of the database at each scrape, and of running processes."""

from __future__ import annotations

from folio_events.exceptions import ConfigurationError

try:
    from folio_events.metrics.collector import EventsCollector, metrics
    from folio_events.metrics.process import install, serve, uninstall
except ImportError as error:
    if error.name is None or error.name.partition(".")[0] != "prometheus_client":
        raise
    raise ConfigurationError(
        "Metrics need prometheus_client: pip install 'folio-events[metrics]'."
    ) from error

__all__ = ["EventsCollector", "install", "metrics", "serve", "uninstall"]
