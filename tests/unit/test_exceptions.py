"""The errors: what they are to Django and Python, and whether trying again can help."""

from __future__ import annotations

import inspect
import pickle

import pytest
from django.core.checks import Error
from django.core.exceptions import ImproperlyConfigured

from folio_events import RejectEvent, RetryLater, exceptions
from folio_events.exceptions import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    DecodingError,
    EncodingError,
    FolioEventsError,
    MessageTooLargeError,
    MissingTopicError,
    PublishError,
)

ALL = [one for _name, one in inspect.getmembers(exceptions, inspect.isclass)]
OWN = [one for one in ALL if one.__module__ == exceptions.__name__]


@pytest.mark.parametrize("error", OWN)
def test_every_error_has_one_base_and_says_when_it_is_raised(error: type[Exception]) -> None:
    """A project catches them by one name, and reads in the docstring what they mean."""
    assert issubclass(error, FolioEventsError)
    assert inspect.getdoc(error)
    assert error.__doc__ != FolioEventsError.__doc__ or error is FolioEventsError


def test_errors_are_what_they_are_to_django_and_python() -> None:
    """Code that knows nothing of the package treats them rightly."""
    assert issubclass(ConfigurationError, ImproperlyConfigured)
    assert issubclass(EncodingError, ValueError)
    assert issubclass(DecodingError, ValueError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BrokerError("x"), True),
        (BrokerUnavailableError("x"), True),
        (PublishError("x"), True),
        (PublishError("x", retryable=False), False),
        (MessageTooLargeError("x"), False),
        (MissingTopicError("x"), False),
    ],
    ids=repr,
)
def test_which_refusals_may_pass(error: BrokerError, expected: bool) -> None:
    """The relay withholds a message only when its error is not retryable."""
    assert isinstance(error, BrokerError)
    assert error.retryable is expected


def test_a_receivers_wishes_carry_time_and_reason() -> None:
    """Both show with the delivery."""
    later = RetryLater(seconds=30, reason="the piece is not there yet")

    assert (later.seconds, str(later)) == (30.0, "the piece is not there yet")
    assert "another time" in str(RetryLater(seconds=1))
    assert str(RejectEvent("no such loan")) == "no such loan"


@pytest.mark.parametrize("seconds", ["soon", None], ids=repr)
def test_a_wish_for_no_time_is_the_receivers_error(seconds: object) -> None:
    """It is raised where the receiver wrote it, not later in the consumer."""
    with pytest.raises((TypeError, ValueError)):
        RetryLater(seconds=seconds)  # type: ignore[arg-type]  # what is refused


def test_a_configuration_error_may_carry_faults_by_id() -> None:
    """``manage.py check`` shows them as they are."""
    fault = Error("wrong", hint="mend it", id="folio_events.E020")

    assert ConfigurationError("wrong", faults=[fault]).faults == [fault]
    assert ConfigurationError("wrong").faults == []


@pytest.mark.parametrize(
    "error", [ConfigurationError("x"), PublishError("x"), RejectEvent("x"), DecodingError("x")]
)
def test_errors_cross_processes(error: Exception) -> None:
    """Celery and parallel test runners pickle what a worker raised."""
    assert str(pickle.loads(pickle.dumps(error))) == "x"
