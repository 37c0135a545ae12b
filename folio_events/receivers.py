"""The ``receiver`` decorator and the registry of receivers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args

from django.db import DEFAULT_DB_ALIAS

from folio_events import topics
from folio_events.conf import get_settings
from folio_events.dialects import event_type
from folio_events.event import Event
from folio_events.exceptions import ConfigurationError
from folio_events.retry import CircuitBreaker, RetryPolicy, default_policy

ReceiverFunction = Callable[[Event], object]
Order = Literal["key", "none", "partition"]
Mode = Literal["transaction", "after_commit", "manual"]
Start = Literal["latest", "earliest"]
_DEFAULT_BREAKER = CircuitBreaker()


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A function that a project runs for events of a topic."""

    function: ReceiverFunction
    #: Stable name: inbox and deliveries refer to it.
    name: str
    #: Logical topic, ``*`` standing for any characters of one segment.
    topic: str
    #: Event types it runs for; None for all.
    types: frozenset[str] | None
    own_group: str | None
    own_retry: RetryPolicy | None
    order: Order
    mode: Mode
    #: Database alias of its transaction, and of the tables that keep its state.
    using: str
    #: Seconds that a run may take; None: any.
    timeout: float | None
    breaker: CircuitBreaker | None
    #: Whether it is told of tombstones.
    tombstones: bool = False
    #: Whether each process runs it for every event.
    broadcast: bool = False
    #: Where a broadcast receiver begins.
    start: Start = "latest"
    #: JSON Schema of the payloads it expects, or the file of one.
    schema: Mapping[str, Any] | str | Path | None = field(default=None, compare=False)

    @property
    def schema_file(self) -> Path | None:
        """The file of its schema: named from the directory of its function's module."""
        if not isinstance(self.schema, (str, Path)):
            return None
        module = sys.modules[self.function.__module__]
        return Path(module.__file__ or "").parent / self.schema

    @property
    def group(self) -> str:
        """Consumer group; without one of its own, the setting GROUP."""
        settings = get_settings()
        if self.own_group is None:
            return settings.GROUP
        return topics.group_from_template(self.own_group, settings.ENV)

    @property
    def retry(self) -> RetryPolicy:
        """Policy; without one of its own, that of the settings RETRY_ATTEMPTS and RETRY_BACKOFF."""
        return self.own_retry or default_policy()

    @property
    def lane(self) -> str:
        """Which offset moves with it: its database's, or "" for those without a transaction."""
        return self.using if self.mode == "transaction" else ""

    def listens_to(self, topic: str) -> bool:
        return topics.matches(self.topic, topic)

    def wants(self, event: Event) -> bool:
        if not self.listens_to(event.topic):
            return False
        if event.is_tombstone:
            return self.tombstones
        return self.types is None or event.type in self.types


F = TypeVar("F", bound=ReceiverFunction)


class ReceiverRegistry:
    """All receivers of the project by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, Receiver] = {}

    def add(self, receiver: Receiver) -> None:
        known = self._by_name.get(receiver.name)
        if known is not None:
            raise ConfigurationError(
                f"Two receivers have the name {receiver.name!r}: {_path(known.function)} and "
                f"{_path(receiver.function)}. Give one of them name='...'."
            )
        self._by_name[receiver.name] = receiver

    def remove(self, name: str) -> None:
        """Forget a receiver; for tests."""
        self._by_name.pop(name, None)

    def get(self, name: str) -> Receiver | None:
        return self._by_name.get(name)

    def groups(self) -> list[str]:
        return sorted({receiver.group for receiver in self})

    def in_group(self, group: str) -> list[Receiver]:
        return [receiver for receiver in self if receiver.group == group]

    def __iter__(self) -> Iterator[Receiver]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)


#: Receivers of consumer groups.
registry = ReceiverRegistry()
#: Broadcast receivers: in no group.
broadcasts = ReceiverRegistry()


def receiver(
    topic: str,
    *,
    types: Sequence[str] | None = None,
    name: str | None = None,
    group: str | None = None,
    retry: RetryPolicy | None = None,
    order: Order = "key",
    mode: Mode = "transaction",
    using: str = DEFAULT_DB_ALIAS,
    timeout: float | None = None,
    breaker: CircuitBreaker | None = _DEFAULT_BREAKER,
    tombstones: bool = False,
    broadcast: bool = False,
    start: Start | None = None,
    schema: Mapping[str, Any] | str | Path | None = None,
) -> Callable[[F], F]:
    """Register a function for the events of a topic.

    The function gets one ``Event``. In mode "transaction" it runs in a database transaction
    of ``using`` that also records that it ran: what it does there takes effect exactly
    once. It may be started twice, so it may touch nothing but that database.

    Args:
        topic: Logical topic; ``*`` stands for any characters of one segment.
        types: Event types, in the words of any dialect ("CREATE" is "CREATED"); None for all.
        name: Stable name; defaults to the function's dotted path. Renaming it makes it
            another receiver.
        group: Consumer group; defaults to the setting GROUP. ``${ENV}`` stands for the setting ENV.
        retry: Defaults to the settings RETRY_ATTEMPTS and RETRY_BACKOFF.
        order: "key": while an event of a key failed, later ones of that key wait behind
            it. "none": later ones go on. "partition": all later ones of the partition wait.
        mode: "after_commit": runs outside any transaction, for HTTP calls and mail, after
            the receivers of mode "transaction", and is recorded afterwards: at least once.
            "manual": the same, and it records itself by ``claim()`` in its own transaction.
        using: Database alias.
        timeout: Seconds that a run may take. One that takes longer ends the process with a
            stack dump, and the run counts as an attempt.
        breaker: When the receiver is left alone; None: never.
        tombstones: Whether it is told of tombstones too, whatever its types.
        broadcast: Every process runs it for every event, for what each process has of its own,
            such as a cache: without transaction, inbox and retry, and at most once.
        start: Of a broadcast receiver. "latest": events that are published while the process
            runs. "earliest": those that the topic still holds, first.
        schema: JSON Schema of the payloads that it expects, or the path of a JSON file of one
            from the directory of the function's module. What failed is held against it when a
            person looks; nothing is refused by it.

    Raises:
        ConfigurationError: No topic can match, the name is taken, options contradict each
            other, or the function is ``async`` or a generator.
    """

    def decorate(function: F) -> F:
        if not callable(function):
            raise ConfigurationError(f"@receiver({topic!r}) is for a function, not {function!r}.")
        if _is_any(function, inspect.iscoroutinefunction, inspect.isasyncgenfunction):
            raise ConfigurationError(
                f"{_path(function)} is async. Receivers run in a database transaction, which "
                "Django offers to synchronous code only: use 'def', and async_to_sync inside."
            )
        if _is_any(function, inspect.isgeneratorfunction):
            raise ConfigurationError(
                f"{_path(function)} is a generator: a call would run nothing of it. Remove 'yield'."
            )
        for word, given, known in (("order", order, Order), ("mode", mode, Mode)):
            if given not in get_args(known):
                choices = ", ".join(map(repr, get_args(known)))
                raise ConfigurationError(
                    f"{_path(function)}: {word} must be one of {choices}, not {given!r}."
                )
        if timeout is not None and timeout <= 0:
            raise ConfigurationError(
                f"{_path(function)}: timeout must be above 0, not {timeout!r}."
            )
        if mode != "transaction" and using != DEFAULT_DB_ALIAS:
            raise ConfigurationError(
                f"{_path(function)}: a receiver of mode {mode!r} has no transaction, so using={using!r} "
                "says nothing. Leave it out."
            )
        if isinstance(types, str):
            raise ConfigurationError(
                f"{_path(function)}: types must be a list, not the text {types!r}."
            )
        if not isinstance(schema, (Mapping, str, Path, NoneType)):
            raise ConfigurationError(
                f"{_path(function)}: schema must be a dict or the path of a JSON file, not "
                f"{type(schema).__name__}."
            )
        if group is not None:
            topics.group_from_template(group, get_settings().ENV)
        own = {
            "group": group,
            "retry": retry,
            "order": None if order == "key" else order,
            "mode": None if mode == "transaction" else mode,
            "using": None if using == DEFAULT_DB_ALIAS else using,
            "timeout": timeout,
            "breaker": None if breaker is _DEFAULT_BREAKER else (breaker,),
            "schema": schema,
        }
        _check_broadcast(function, broadcast, start, [n for n, v in own.items() if v is not None])
        home = broadcasts if broadcast else registry
        home.add(
            Receiver(
                function=function,
                name=name or _path(function),
                topic=topics.validate_topic_pattern(topic),
                types=None if types is None else frozenset(map(event_type, types)),
                own_group=group,
                own_retry=retry,
                order=order,
                mode=mode,
                using=using,
                timeout=timeout,
                breaker=None if broadcast else breaker,
                tombstones=tombstones,
                broadcast=broadcast,
                start=start or "latest",
                schema=schema,
            )
        )
        return function

    return decorate


def _check_broadcast(
    function: ReceiverFunction, broadcast: bool, start: str | None, given: Sequence[str]
) -> None:
    if broadcast and given:
        raise ConfigurationError(
            f"{_path(function)}: {', '.join(given)} mean nothing to a broadcast receiver. It has no "
            "group, transaction, inbox or deliveries: leave them out, or leave out broadcast=True."
        )
    if not broadcast and start is not None:
        raise ConfigurationError(
            f"{_path(function)}: start={start!r} is for broadcast receivers. A group begins where "
            "it ended, a new one where the broker's 'auto.offset.reset' says."
        )
    if start is not None and start not in get_args(Start):
        choices = ", ".join(map(repr, get_args(Start)))
        raise ConfigurationError(
            f"{_path(function)}: start must be one of {choices}, not {start!r}."
        )


def _is_any(function: ReceiverFunction, *kinds: Callable[[object], bool]) -> bool:
    return any(kind(function) or kind(type(function).__call__) for kind in kinds)


def _path(function: ReceiverFunction) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
