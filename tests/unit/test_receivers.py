"""The ``receiver`` decorator and its registry: names, groups, what a receiver wants."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from folio_events import Event, RetryPolicy, receiver
from folio_events.exceptions import ConfigurationError
from folio_events.receivers import Receiver, registry

pytestmark = pytest.mark.usefixtures("only_test_receivers")


def handle(event: Event) -> None: ...


class Handler:
    def __call__(self, event: Event) -> None: ...

    def method(self, event: Event) -> None: ...


def registered(**options: Any) -> Receiver:
    receiver(options.pop("topic", "inventory.item"), **options)(handle)
    (found,) = registry
    return found


def event(topic: str = "inventory.item", kind: str = "UPDATE") -> Event:
    return Event(
        id=uuid.uuid4(),
        topic=topic,
        type=kind,
        key=None,
        tenant=None,
        occurred_at=timezone.now(),
        payload={},
    )


def test_the_decorated_function_stays_a_function() -> None:
    """It can be called, and tested, as before."""
    assert receiver("inventory.item")(handle) is handle


def test_a_receiver_has_the_name_of_its_function() -> None:
    """The dotted path is stable as long as nobody moves it."""
    assert registered().name == f"{__name__}.handle"


def test_a_receiver_may_be_given_a_name() -> None:
    """Inbox and deliveries refer to it, so it may outlive the function's."""
    assert registered(name="inventory.handle").name == "inventory.handle"
    assert registry.get("inventory.handle") is not None
    assert registry.get("inventory.other") is None


def test_objects_and_methods_can_be_receivers() -> None:
    """Their names come from what they are."""
    handler = Handler()
    receiver("inventory.item")(handler)
    receiver("inventory.item")(handler.method)

    assert {one.name for one in registry} == {f"{__name__}.Handler", f"{__name__}.Handler.method"}


def test_defaults_are_the_documented_ones() -> None:
    """All types, the default policy, order by key, a transaction of the default database."""
    one = registered()

    assert (one.types, one.retry, one.order, one.mode, one.using) == (
        None,
        RetryPolicy(),
        "key",
        "transaction",
        "default",
    )
    assert one.timeout is None


def test_the_group_is_the_settings_unless_named(folio_events: Callable[..., None]) -> None:
    """A change of the setting moves receivers without a group of their own."""
    receiver("inventory.item", name="own", group="mod-search")(handle)
    receiver("inventory.item", name="shared")(handle)
    folio_events(GROUP="mod-orders")

    assert registry.groups() == ["mod-orders", "mod-search"]
    assert [one.name for one in registry.in_group("mod-search")] == ["own"]
    assert [one.name for one in registry.in_group("mod-orders")] == ["shared"]
    assert registry.in_group("nobody") == []


@pytest.mark.parametrize(
    ("topic", "types", "expected"),
    [
        ("inventory.item", None, True),
        ("inventory.*", None, True),
        ("inventory.items", None, False),
        ("orders.piece", None, False),
        ("inventory.item", ["UPDATE", "MOVED"], True),
        ("inventory.item", ["CREATE"], False),
        ("inventory.item", [], False),
    ],
)
def test_what_a_receiver_wants(topic: str, types: list[str] | None, expected: bool) -> None:
    """Topic and type decide together."""
    assert registered(topic=topic, types=types).wants(event()) is expected


def test_a_receiver_listens_to_a_topic_whatever_the_type() -> None:
    """Of a record that nobody can read, only the topic is known."""
    one = registered(types=["CREATE"])

    assert one.listens_to("inventory.item")
    assert not one.listens_to("inventory.items")


def test_receivers_without_transaction_have_a_lane_of_their_own() -> None:
    """Their offset moves apart from that of the database."""
    assert registered().lane == "default"
    registry.remove(f"{__name__}.handle")
    assert registered(mode="after_commit").lane == ""


def test_a_name_that_is_taken_is_refused() -> None:
    """The error names both functions and the way out; the first stays."""
    receiver("inventory.item", name="same")(handle)

    with pytest.raises(ConfigurationError, match=r"'same'.*\.handle and .*Handler.*name='"):
        receiver("orders.piece", name="same")(Handler())

    (kept,) = registry
    assert kept.function is handle


def test_the_same_function_twice_needs_two_names() -> None:
    """One function may serve two topics when each has its name."""
    receiver("inventory.item")(handle)
    with pytest.raises(ConfigurationError, match="Two receivers"):
        receiver("orders.piece")(handle)

    receiver("orders.piece", name="second")(handle)

    assert len(registry) == 2


async def handle_async(event: Event) -> None: ...


async def handle_stream(event: Event) -> Any:
    yield event


def handle_lazily(event: Event) -> Any:
    yield event


class AsyncHandler:
    async def __call__(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        handle_async,
        functools.partial(handle_async),
        AsyncHandler(),
        AsyncHandler().__call__,
        handle_stream,
        handle_lazily,
    ],
    ids=["async def", "partial", "object", "method", "async generator", "generator"],
)
def test_a_function_that_a_call_does_not_run_is_refused(function: Any) -> None:
    """Calling it would do nothing, and the event would count as handled."""
    with pytest.raises(ConfigurationError, match=r"async|generator"):
        receiver("inventory.item", name="lost")(function)

    assert len(registry) == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"topic": "inventory item"}, "No topic can match 'inventory item'"),
        ({"topic": "inventory..*"}, "No topic can match"),
        ({"topic": ""}, "No topic can match ''"),
        ({"types": "UPDATE"}, "types must be a list, not the text 'UPDATE'"),
        ({"order": "time"}, "order must be"),
        ({"mode": "later"}, "mode must be"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"mode": "manual", "using": "other"}, "using='other'"),
    ],
)
def test_a_receiver_that_cannot_be_is_refused(options: dict[str, Any], reason: str) -> None:
    """The error says what is wrong, when the module is imported."""
    with pytest.raises(ConfigurationError, match=reason):
        registered(**options)

    assert len(registry) == 0


def test_forgetting_a_receiver_twice_is_no_error() -> None:
    """Tests may clean up in any order."""
    registered(name="one")

    registry.remove("one")
    registry.remove("one")

    assert len(registry) == 0
