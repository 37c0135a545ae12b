"""Every error of the package, with when it is raised and whether trying again can help."""

from __future__ import annotations

from collections.abc import Sequence

from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured


class FolioEventsError(Exception):
    """Base of all errors of folio_events."""


class ConfigurationError(FolioEventsError, ImproperlyConfigured):
    """A setting, declaration or receiver is wrong. Trying again cannot help.

    Args:
        message: What is wrong.
        faults: The same for ``manage.py check``, each with its own id.
    """

    def __init__(self, message: str, *, faults: Sequence[CheckMessage] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults)


class EncodingError(FolioEventsError, ValueError):
    """An event cannot be written as bytes; the write that caused it is refused."""


class DecodingError(FolioEventsError, ValueError):
    """A record's bytes are no event. Trying again helps only after the code changed.

    Attributes:
        tenant: Whose record it is, where that is known all the same.
    """

    tenant: str | None = None


class OrphanError(DecodingError):
    """A message has no owner, or several. Trying again helps only once a person assigned one.

    Args:
        fault: "missing", "disagreeing" or "invalid".
        message: Who says what.
    """

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class TenantDisabledError(FolioEventsError):
    """A tenant, or every one, is not entitled to this module. Trying again helps once it is."""


class MissingTenantError(FolioEventsError):
    """An event has no tenant although tenancy is on; the write that caused it is refused."""


class OutboxFullError(FolioEventsError):
    """OUTBOX_HARD_LIMIT is reached; the write is refused. Trying again helps once the relay caught up."""


class InvalidTenantError(FolioEventsError, ValueError):
    """A tenant's name cannot be a segment of a topic; the write that caused it is refused."""


class InvalidStateError(FolioEventsError):
    """An action does not fit the state of the row, such as retrying a resolved delivery."""


class FencedError(FolioEventsError):
    """Another consumer has moved this partition on; the batch in hand is rolled back."""


class BrokerError(FolioEventsError):
    """Base of what a broker reports.

    Attributes:
        retryable: False when the broker will refuse the same message every time.
    """

    retryable = True


class BrokerUnavailableError(BrokerError):
    """The broker did not answer, or not in time. Trying again can help."""


class PublishError(BrokerError):
    """The broker answered a message with an error.

    Args:
        message: What the broker said.
        retryable: Whether the same message may be accepted later.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class MessageTooLargeError(BrokerError):
    """A message is larger than its topic takes. Trying again cannot help."""

    retryable = False


class TopicRefusedError(BrokerError):
    """The broker takes nothing of us for a topic, such as for want of a right."""

    retryable = False


class MissingTopicError(BrokerError):
    """A topic does not exist on the broker. Trying again helps once it was created."""

    retryable = False


class RetryLater(FolioEventsError):  # noqa: N818 - an instruction, not an error
    """Raised by a receiver that wants the event again at another time.

    The run counts as an attempt.

    Args:
        seconds: How long to wait, at least 0.
        reason: Shown with the delivery.
    """

    def __init__(
        self, *, seconds: float, reason: str = "the receiver asked for another time"
    ) -> None:
        super().__init__(reason)
        # Here, since a wrong type is to be the receiver's error.
        self.seconds = float(seconds)


class RejectEvent(FolioEventsError):  # noqa: N818 - an instruction, not an error
    """Raised by a receiver to send the event straight to the dead letters.

    Args:
        reason: Shown with the delivery.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
