"""The ``receiver`` decorator and the registry of receivers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from django.db import DEFAULT_DB_ALIAS

from folio_events import topics
from folio_events.conf import get_settings
from folio_events.event import Event
from folio_events.exceptions import ConfigurationError
from folio_events.retry import CircuitBreaker, RetryPolicy

ReceiverFunction = Callable[[Event], object]
Order = Literal["key", "none", "partition"]
Mode = Literal["transaction", "after_commit", "manual"]
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
    retry: RetryPolicy
    order: Order
    mode: Mode
    #: Database alias of its transaction, and of the tables that keep its state.
    using: str
    #: Seconds that a run may take; None: any.
    timeout: float | None
    breaker: CircuitBreaker | None

    @property
    def group(self) -> str:
        """Consumer group; without one of its own, the setting GROUP."""
        return self.own_group or get_settings().GROUP

    @property
    def lane(self) -> str:
        """Which offset moves with it: its database's, or "" for those without a transaction."""
        return self.using if self.mode == "transaction" else ""

    def listens_to(self, topic: str) -> bool:
        return topics.matches(self.topic, topic)

    def wants(self, event: Event) -> bool:
        return self.listens_to(event.topic) and (self.types is None or event.type in self.types)


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


registry = ReceiverRegistry()


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
) -> Callable[[F], F]:
    """Register a function for the events of a topic.

    The function gets one ``Event``. In mode "transaction" it runs in a database transaction
    of ``using`` that also records that it ran: what it does there takes effect exactly
    once. It may be started twice, so it may touch nothing but that database.

    Args:
        topic: Logical topic; ``*`` stands for any characters of one segment.
        types: Event types; None for all.
        name: Stable name; defaults to the function's dotted path. Renaming it makes it
            another receiver.
        group: Consumer group; defaults to the setting GROUP.
        retry: Defaults to ``RetryPolicy()``.
        order: "key": while an event of a key failed, later ones of that key wait behind
            it. "none": later ones go on. "partition": all later ones of the partition wait.
        mode: "after_commit": runs outside any transaction, for HTTP calls and mail, after
            the receivers of mode "transaction", and is recorded afterwards: at least once.
            "manual": the same, and it records itself by ``claim()`` in its own transaction.
        using: Database alias.
        timeout: Seconds that a run may take. One that takes longer ends the process with a
            stack dump, and the run counts as an attempt.
        breaker: When the receiver is left alone; None: never.

    Raises:
        ConfigurationError: No topic can match, the name is taken, or the function is
            ``async`` or a generator.
    """

    def decorate(function: F) -> F:
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
        registry.add(
            Receiver(
                function=function,
                name=name or _path(function),
                topic=topics.validate_topic_pattern(topic),
                types=None if types is None else frozenset(types),
                own_group=group,
                retry=retry or RetryPolicy(),
                order=order,
                mode=mode,
                using=using,
                timeout=timeout,
                breaker=breaker,
            )
        )
        return function

    return decorate


def _is_any(function: ReceiverFunction, *kinds: Callable[[object], bool]) -> bool:
    return any(kind(function) or kind(type(function).__call__) for kind in kinds)


def _path(function: ReceiverFunction) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
