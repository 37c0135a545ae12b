"""Errors of the API as problem details. Source: RFC 9457."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from django.core.exceptions import SuspiciousOperation
from rest_framework import serializers, status
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.response import Response
from rest_framework.views import exception_handler

from folio_events.exceptions import (
    BrokerError,
    ConfigurationError,
    InvalidStateError,
    InvalidTenantError,
    MissingTenantError,
)

CONTENT_TYPE = "application/problem+json"


class BadRequest(APIException):
    """What was asked for cannot be."""

    status_code = status.HTTP_400_BAD_REQUEST


class Conflict(APIException):
    """The action does not fit the state of a row."""

    status_code = status.HTTP_409_CONFLICT


class TooLarge(APIException):
    """The body is larger than DATA_UPLOAD_MAX_MEMORY_SIZE."""

    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_detail = "The body is larger than this server takes."


class BrokerAway(APIException):
    """The broker does not answer, or refuses; the caller may try again."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE


class Fault(serializers.Serializer[Any]):
    """One thing that is wrong with a request."""

    where = serializers.CharField(
        help_text='Such as "query.limit" or "body.ids.0"; empty: the whole.'
    )
    detail = serializers.CharField()


class Problem(serializers.Serializer[Any]):
    """Why a request was refused. Source: RFC 9457."""

    type = serializers.CharField(default="about:blank")
    title = serializers.CharField(help_text="The status in words.")
    status = serializers.IntegerField()
    detail = serializers.CharField(help_text="What is wrong and how to mend it.")
    errors = Fault(  # type: ignore[assignment]  # a field, as its name on the wire
        many=True, help_text="What is wrong where; empty unless the status is 400."
    )


def invalid(place: str, detail: Any) -> ValidationError:
    """A refusal that names the place.

    Args:
        place: "query", "body", or one of these with a dot and the field's name.
        detail: A sentence, or what a serializer says of its fields.
    """
    return ValidationError({place: detail})


def as_problem(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """Answer an error; one that nobody foresaw is left to Django."""
    response = exception_handler(_as_http(error), dict(context))
    if response is None:
        return None
    faults = list(_faults("", response.data)) if isinstance(error, ValidationError) else []
    detail = "; ".join(f"{one['where']}: {one['detail']}" for one in faults)
    response.data = {
        "type": "about:blank",
        "title": HTTPStatus(response.status_code).phrase,
        "status": response.status_code,
        "detail": detail or str(response.data.get("detail", "")),
        "errors": faults,
    }
    response.content_type = CONTENT_TYPE
    return response


def _as_http(error: Exception) -> Exception:
    match error:
        case InvalidStateError():
            return Conflict(str(error))
        case InvalidTenantError() | MissingTenantError() | ConfigurationError():
            return BadRequest(str(error))
        case BrokerError():
            return BrokerAway(f"{type(error).__name__}: {error}")
        case SuspiciousOperation():
            return BadRequest(str(error))
    return error


def _faults(place: str, said: Any) -> Iterator[dict[str, str]]:
    """The leaves of what serializers say, each with where it stands."""
    if isinstance(said, Mapping):
        for name, part in said.items():
            # What is said of a whole stands under a name of its own.
            own = name in ("non_field_errors", "")
            yield from _faults(place if own else f"{place}.{name}".lstrip("."), part)
    elif isinstance(said, list):
        for part in said:
            yield from _faults(place, part)
    else:
        yield {"where": place, "detail": str(said)}
