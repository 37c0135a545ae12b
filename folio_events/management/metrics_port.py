"""The option --metrics-port of daemons: Prometheus asks the process itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError, CommandParser

from folio_events.exceptions import ConfigurationError


def add_metrics_port(parser: CommandParser) -> None:
    """Give a command the option."""
    parser.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="answer Prometheus there (extra metrics)"
    )


@contextmanager
def metrics_port(port: int | None) -> Iterator[None]:
    """Answer Prometheus for the time of a block.

    Args:
        port: None: nobody is answered, and nothing is counted.

    Raises:
        CommandError: The extra is not installed, or the port is taken.
    """
    if port is None:
        yield
        return
    try:
        # Not at the top: the library may be missing.
        from folio_events.metrics import serve
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
    try:
        stop = serve(port)
    except OSError as error:
        raise CommandError(f"Port {port} cannot be listened to: {error.strerror}.") from error
    try:
        yield
    finally:
        stop()
