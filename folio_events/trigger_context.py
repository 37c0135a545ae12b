"""Tenant, headers and cause of the running call, for the triggers of the transaction that writes.

They travel as settings of the transaction, ahead of its first writing statement: a rollback takes
them away, and no pooled connection keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from django.db import Error as DatabaseError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from folio_events.encoding import dump
from folio_events.exceptions import (
    EncodingError,
    InvalidTenantError,
    MissingTenantError,
)
from folio_events.tenants import CallContext, current_context, resolve_tenant
from folio_events.triggers import NO_JSON, NO_TENANT, declared
from folio_events.wakeup import wake_after_commit

if TYPE_CHECKING:
    import psycopg

#: Whether the writes of this block give no events.
suppressed: ContextVar[bool] = ContextVar("folio_events_suppressed", default=False)

#: The settings of a transaction, each after ``folio_events.``.
NAMES = ("tenant", "headers", "suppressed")
_SET = "SELECT " + ", ".join(f"set_config('folio_events.{name}', {{}}, true)" for name in NAMES)
_BY_POSITION = _SET.format(*["%s"] * len(NAMES))
_BY_NAME = _SET.format(*[f"%(folio_events_{name})s" for name in NAMES])
_UNSET = ("", "", "")
#: What a statement begins with that may write rows, or undo settings.
_WRITES = frozenset(("INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "COPY", "EXECUTE", "EXPLAIN"))
#: May end transactions, which a statement that comes together with another cannot.
_PROGRAMS = frozenset(("CALL", "DO"))
_FIRST_WORD = re.compile(r"(?:\s+|--[^\n]*\n|/\*.*?\*/|\()*([A-Za-z]+)", re.DOTALL)
#: In how much of a statement the table is looked for that it writes.
_BEGINNING = 1000

_Values = tuple[str, str, str]
#: With triggers.
_tables: list[str] = []


class _Carrier:
    """Keeps the triggers of one connection informed."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        from psycopg.pq import TransactionStatus

        self._alias = connection.alias
        self._idle = TransactionStatus.IDLE
        #: What the transaction was told; None: not known.
        self._told: _Values | None = _UNSET
        self._context: CallContext | None = None
        self._headers = ""

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: Any,
        params: Any,
        many: bool,
        context: Mapping[str, Any],
    ) -> Any:
        """Tell the transaction what it does not know, together with the statement if possible."""
        cursor = context["cursor"].cursor
        link = cursor.connection
        idle = self._begin(link)
        sql = _text(sql, link)
        word = _first_word(sql)
        if word == "ROLLBACK":
            self._told = None
        elif word in _WRITES or (word in _PROGRAMS and not (idle and link.autocommit)):
            return self._write(execute, sql, params, many, context, idle)
        return execute(sql, params, many, context)

    def _begin(self, link: psycopg.Connection[Any]) -> bool:
        """Note whether a transaction has yet to begin, which then knows nothing."""
        idle = link.pgconn.transaction_status == self._idle
        if idle:
            self._told = _UNSET
        return idle

    def _write(
        self,
        execute: Callable[..., Any],
        sql: str,
        params: Any,
        many: bool,
        context: Mapping[str, Any],
        idle: bool,
    ) -> Any:
        cursor = context["cursor"].cursor
        values = self._values()
        try:
            if values == self._told or getattr(cursor, "name", None):
                found = execute(sql, params, many, context)
            elif many or not _takes_two(cursor):
                with self._telling(cursor.connection, values):
                    found = execute(sql, params, many, context)
            else:
                found = execute(*_with_values(sql, params, values, cursor), many, context)
                # The first result is the settings'.
                cursor.nextset()
                self._told = values
        except DatabaseError as error:
            refusal = _refusal(error)
            if refusal is not None:
                raise refusal from error
            raise
        self._wake(sql, values)
        return found

    @contextmanager
    def copying(self, link: psycopg.Connection[Any], statement: Any) -> Iterator[None]:
        """Run a COPY in a transaction that knows what it has to."""
        self._begin(link)
        values = self._values()
        with nullcontext() if values == self._told else self._telling(link, values):
            yield
        self._wake(_text(statement, link), values)

    @contextmanager
    def _telling(self, link: psycopg.Connection[Any], values: _Values) -> Iterator[None]:
        import psycopg

        # In autocommit the settings would be gone before the statement came.
        with link.transaction() if link.autocommit and self._begin(link) else nullcontext():
            psycopg.ClientCursor(link).execute(_BY_POSITION, values)
            self._told = values
            yield

    def _values(self) -> _Values:
        context = current_context()
        if context is not self._context:
            self._context, self._headers = context, _own_headers(context)
        try:
            tenant = resolve_tenant() or ""
        except MissingTenantError:
            tenant = ""
        except InvalidTenantError:
            # No rule of a declaration may stand in for it: the trigger refuses this one.
            tenant = "?"
        return tenant, self._headers, "on" if suppressed.get() else ""

    def _wake(self, sql: str, values: _Values) -> None:
        beginning = sql[:_BEGINNING]
        if not values[-1] and any(table in beginning for table in _tables):
            wake_after_commit(connections[self._alias])


def _text(statement: Any, link: Any) -> str:
    if isinstance(statement, str):
        return statement
    return statement.decode() if isinstance(statement, bytes) else str(statement.as_string(link))


def _first_word(sql: str) -> str:
    # What Django writes begins with a word and a space.
    word = sql[:6]
    if word in _WRITES or word == "SELECT":
        return word
    found = _FIRST_WORD.match(sql)
    return found[1].upper() if found else ""


def _takes_two(cursor: Any) -> bool:
    """Whether two statements can go as one: where the server binds the parameters, they cannot."""
    import psycopg
    from psycopg.pq import PipelineStatus

    return (
        isinstance(cursor, psycopg.ClientCursor)
        and cursor.connection.pgconn.pipeline_status == PipelineStatus.OFF
    )


def _with_values(
    sql: str, params: Mapping[str, Any] | Sequence[Any] | None, values: _Values, cursor: Any
) -> tuple[str, Any]:
    # As parameters, since psycopg keeps what it made of a statement for its next use.
    if params is None:
        return f"{cursor.mogrify(_BY_POSITION, values)}; {sql}", None
    if isinstance(params, Mapping):
        named = {f"folio_events_{name}": value for name, value in zip(NAMES, values, strict=True)}
        return f"{_BY_NAME}; {sql}", {**params, **named}
    return f"{_BY_POSITION}; {sql}", (*values, *params)


def _own_headers(context: CallContext) -> str:
    own = list(context.headers.items())
    if context.cause_id is not None:
        own.append(("ce_causationid", str(context.cause_id)))
    return dump(own).decode() if own else ""


def _refusal(error: DatabaseError) -> Exception | None:
    """What a trigger refused, as the other form of capture would say it."""
    state = getattr(error.__cause__, "sqlstate", None)
    if state not in (NO_JSON, NO_TENANT):
        return None
    text = error.__cause__.diag.message_primary  # type: ignore[union-attr]  # psycopg's
    return EncodingError(text) if state == NO_JSON else MissingTenantError(text)


def install() -> None:
    """Have the connections to PostgreSQL carry the context, where a trigger asks for it."""
    _tables[:] = [declaration.model._meta.db_table for declaration in declared()]
    if _tables:
        connection_created.connect(_carry, dispatch_uid="folio_events.triggers")
        for connection in connections.all(initialized_only=True):
            if connection.connection is not None:
                _carry(connection)


def _carry(connection: BaseDatabaseWrapper, **_kwargs: object) -> None:
    if connection.vendor != "postgresql":
        return
    carrier = next((w for w in connection.execute_wrappers if isinstance(w, _Carrier)), None)
    if carrier is None:
        carrier = _Carrier(connection)
        # Outermost: what others make of a statement, they make of both.
        connection.execute_wrappers.insert(0, carrier)
    link = connection.connection
    # COPY goes past Django to the cursor of psycopg.
    link.cursor_factory = _copying(link.cursor_factory, carrier)


def _copying(factory: type[Any], carrier: _Carrier) -> type[Any]:
    plain = getattr(factory, "_folio_events_plain", factory)

    class Cursor(plain):  # type: ignore[misc,valid-type]  # whichever Django has chosen
        _folio_events_plain = plain

        @contextmanager
        def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with (
                carrier.copying(self.connection, statement),
                super().copy(statement, *args, **kwargs) as copy,
            ):
                yield copy

    return Cursor
