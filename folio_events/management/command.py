"""What all commands share: a fault around them and Ctrl-C end in one line, a bug in a traceback."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseError

from folio_events.database_faults import explain
from folio_events.exceptions import BrokerError, FolioEventsError

#: Exit code of a command that Ctrl-C has ended, as shells have it: 128 and the signal's number.
INTERRUPTED = 130


class EventsCommand(BaseCommand):
    """A command of folio_events. ``--traceback`` shows where its error came from, as in Django."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except KeyboardInterrupt as error:
            raise CommandError("Stopped; run it again to go on.", returncode=INTERRUPTED) from error
        except BrokerError as error:
            raise CommandError(f"{type(error).__name__}: {error}") from error
        except FolioEventsError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            # A command without --database may use several.
            fault = explain(error, options.get("database"))
            if fault is None:
                raise
            raise CommandError(fault) from error
