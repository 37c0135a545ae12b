"""What is wrong with a database, in the words of who has to mend it."""

from __future__ import annotations

from django.db import Error as DatabaseError
from django.db import connections

from folio_events.retry import is_transient

#: SQLSTATEs of a missing table and a missing column.
_LACKING_STATES = ("42P01", "42703")
_LACKING_SQLITE = ("no such table", "no such column")
#: SQLSTATEs of faults of the server, its resources, its role in a cluster, and of rights.
_OUTER_STATES = ("08", "25006", "28", "3D", "42501", "53", "57", "58")
_OUTER_SQLITE = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_FULL", "SQLITE_IOERR")


def explain(error: DatabaseError, alias: str | None) -> str | None:
    """Say in one line what is wrong, where, and how to mend it.

    Args:
        error: As Django raised it.
        alias: None: that of any database of the project.

    Returns:
        None where nothing is wrong with the database, so that it is a bug.
    """
    state = str(getattr(error.__cause__, "sqlstate", None) or "")
    name = str(getattr(error.__cause__, "sqlite_errorname", None) or "")
    # What comes after may quote a statement with its values.
    words = str(error).strip().partition("\n")[0].rstrip(".")
    aliases = list(connections) if alias is None else [alias]
    where = f"Database {' or '.join(map(_place, aliases))}"
    if state in _LACKING_STATES or (name == "SQLITE_ERROR" and words.startswith(_LACKING_SQLITE)):
        option = f" --database {alias}" if alias not in (None, "default") else ""
        return f"{where} is not migrated: {words}. Run 'manage.py migrate{option}'."
    if state.startswith(("40", "55")) or name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"{where} is busy: {words}. Try again."
    if state.startswith(_OUTER_STATES) or name.startswith(_OUTER_SQLITE) or is_transient(error):
        return (
            f"{where} cannot be used: {words}. Start it, or mend what the setting DATABASES says "
            "of it."
        )
    return None


def _place(alias: str) -> str:
    settings = connections[alias].settings_dict
    host = f" on {settings['HOST']}" if settings.get("HOST") else ""
    return f"{alias!r} ({settings['NAME']}{host})"
