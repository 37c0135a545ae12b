"""What all resources have in common: one declaration that runs an operation and documents it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connections, router, transaction
from django.db.models import Model
from django.utils.module_loading import import_string
from rest_framework import serializers
from rest_framework.exceptions import NotFound, ParseError
from rest_framework.parsers import BaseParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from folio_events.api.access import ApiThrottle
from folio_events.api.problems import TooLarge, as_problem, invalid
from folio_events.conf import get_settings

#: Largest number that ids, offsets and limits have in the database.
LARGEST = 2**63 - 1

Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one method of a resource asks for, takes and answers."""

    #: Code names of folio_events' permissions; all of them are asked for.
    permissions: tuple[str, ...]
    #: Reads the parameters; None: there are none, and any that comes is refused.
    query: type[serializers.Serializer[Any]] | None = None
    body: type[serializers.Serializer[Any]] | None = None
    #: Shows what the method returns.
    answer: type[serializers.Serializer[Any]]
    status: int = 200
    #: Statuses of the refusals that it has besides those of every operation.
    refusals: tuple[int, ...] = ()


class Strict(serializers.Serializer[Any]):
    """Reads parameters or a body, and refuses names that mean nothing: a misspelt dry_run is none."""

    def to_internal_value(self, data: Any) -> Any:
        for name in data if isinstance(data, dict) else ():
            if name not in self.fields:
                known = ", ".join(sorted(self.fields))
                choice = f"use {known}" if known else "there are none"
                raise serializers.ValidationError({name: [f"Means nothing here: {choice}."]})
        return super().to_internal_value(data)


def operation(
    *permissions: str,
    answer: type[serializers.Serializer[Any]],
    query: type[serializers.Serializer[Any]] | None = None,
    body: type[serializers.Serializer[Any]] | None = None,
    status: int = 200,
    refusals: tuple[int, ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Response]]:
    """Declare what a method of a resource takes and answers; it gets and returns plain values.

    The method is called with the request, the parts of its path, ``query`` and ``body`` as far
    as they are declared, each a dict of what was given and is valid.

    Args:
        permissions: Code names of folio_events' permissions; all of them are asked for.
        query: Reads the parameters; others are refused.
        body: Reads the JSON body.
        answer: Shows what the method returns.
        status: Of the answer.
        refusals: Statuses besides those that every operation may answer.
    """
    what = Operation(
        permissions=permissions, query=query, body=body, answer=answer, status=status,
        refusals=refusals,
    )  # fmt: skip

    def declare(method: Callable[..., Any]) -> Callable[..., Response]:
        def respond(view: Resource, request: Request, **path: str) -> Response:
            given: dict[str, Any] = dict(path)
            parameters = _parameters(what.query, request)
            if what.query is not None:
                given["query"] = parameters
            if what.body is not None:
                given["body"] = _valid("body", what.body, request.data)
            found = method(view, request, **given)
            shown = what.answer(found, context={"request": request})
            return Response(shown.data, status=what.status)

        respond.__doc__ = method.__doc__
        respond.operation = what  # type: ignore[attr-defined]  # read below and by the schema
        return respond

    return declare


def _parameters(query: type[serializers.Serializer[Any]] | None, request: Request) -> Values:
    # A plain dict: of forms, Django REST framework takes an empty value for a missing one.
    given = request.query_params.dict()
    return _valid("query", query or Strict, given)


def _valid(place: str, kind: type[serializers.Serializer[Any]], given: Any) -> Values:
    read = kind(data=given)
    if not read.is_valid():
        raise invalid(place, read.errors)
    values: Values = read.validated_data
    return values


class JsonBody(BaseParser):
    """A JSON body in UTF-8, of any depth and any text refused rather than failed on."""

    media_type = "application/json"

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        # Django looks at it only where it parses itself.
        most: int | None = settings.DATA_UPLOAD_MAX_MEMORY_SIZE  # None: any
        data = stream.read() if most is None else stream.read(most + 1)
        if most is not None and len(data) > most:
            raise TooLarge
        try:
            return json.loads(data.decode(), parse_constant=_refuse_constant)
        except RecursionError as error:
            raise ParseError("The body is nested too deeply.") from error
        except ValueError as error:
            raise ParseError(f"The body is no JSON in UTF-8: {error}.") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class Resource(APIView):
    """A view whose methods are operations."""

    parser_classes = (JsonBody,)
    renderer_classes = (JSONRenderer,)
    throttle_classes = (ApiThrottle,)
    metadata_class = None

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """The functions that are called have transactions of their own."""
        view: Any = super().as_view(**initkwargs)
        for alias in connections:
            view = transaction.non_atomic_requests(using=alias)(view)
        return view

    #: What the request at hand asks for beside its operation.
    also_wanted: tuple[str, ...] = ()

    def wanted_permissions(self, request: Request) -> Sequence[str]:
        """Code names of folio_events' permissions that a request needs; all of them."""
        method = getattr(self, (request.method or "").lower(), None)
        found: Operation | None = getattr(method, "operation", None)
        return (*(() if found is None else found.permissions), *self.also_wanted)

    def require(self, request: Request, *permissions: str) -> None:
        """Ask for more, since the body says so.

        Raises:
            PermissionDenied: The user has not got it.
        """
        self.also_wanted = permissions
        self.check_permissions(request)

    def get_permissions(self) -> list[Any]:
        return [import_string(get_settings().API_PERMISSION)()]

    def get_exception_handler(self) -> Callable[[Exception, Mapping[str, Any]], Response | None]:
        return as_problem

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        # What a person may see is nobody else's to keep.
        response.headers["Cache-Control"] = "no-store"
        return super().finalize_response(request, response, *args, **kwargs)


def number(text: str) -> int:
    """An id in a path.

    Raises:
        NotFound: It is none, so nothing has it.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) > LARGEST:
        raise NotFound(f"{text[:50]!r} is no id.")
    return int(text)


def reading(model: type[Model]) -> str:
    """Alias of the database in which rows of a model are looked at."""
    alias: str = router.db_for_read(model)
    return alias


def writing(model: type[Model]) -> str:
    """Alias of the database in which rows of a model are settled."""
    alias: str = router.db_for_write(model)
    return alias


class Reason(Strict):
    """Why."""

    reason = serializers.CharField(
        max_length=1000, help_text="Kept in Django's log, and with what it closes."
    )


class Ids(Strict):
    """Which rows an action is for."""

    ids = serializers.ListField(
        child=serializers.IntegerField(min_value=1, max_value=LARGEST),
        min_length=1,
        max_length=1000,
        help_text="All of them, or none where one cannot be.",
    )


class IdsAndReason(Ids, Reason):
    """Which rows an action is for, and why."""


class Settled(serializers.Serializer[Any]):
    """What an action did."""

    changed = serializers.IntegerField(help_text="How many rows; ids that have none do not count.")


def settled(changed: int, ids: Iterable[int]) -> dict[str, int]:
    """The answer to an action.

    Raises:
        NotFound: It found no row at all.
    """
    if not changed:
        raise NotFound(
            f"Nothing has one of these ids: {', '.join(map(str, sorted(set(ids))[:10]))}."
        )
    return {"changed": changed}
