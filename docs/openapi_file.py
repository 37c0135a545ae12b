"""Writes folio_events/api/openapi.yaml, the description of the REST API, from its code.

``python docs/openapi_file.py`` after an operation, a serializer or a help text was changed.
"""

# ruff: noqa: E402 - models are imported once Django is set up
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()

from django.test import override_settings
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.settings import patched_settings
from drf_spectacular.utils import OpenApiResponse

from folio_events.api.content import Shown
from folio_events.api.problems import CONTENT_TYPE, Problem
from folio_events.api.resource import LARGEST, Operation
from folio_events.api.schema import FILE
from folio_events.api.urls import urlpatterns

_REFUSALS = {
    400: "What was sent is wrong; errors say where and how to mend it.",
    401: "Nobody is logged in.",
    403: "The user may not, or the CSRF token is missing.",
    404: "There is no such row.",
    405: "The resource does not have the method.",
    406: "The answer is to be something else than JSON.",
    409: "It does not fit the state of a row; nothing was done.",
    413: "The body is too large.",
    415: "The body is something else than JSON.",
    429: "Too many requests; Retry-After says when to come again.",
    503: "The broker does not answer.",
}
_SETTINGS = {
    "TITLE": "folio_events",
    "DESCRIPTION": "What the admin shows and does, for programs.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    # Relative to where this file is served, {mount}/folio-events/schema.
    "SERVERS": [{"url": ".."}],
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "POSTPROCESSING_HOOKS": [],
}


class OperationSchema(AutoSchema):  # type: ignore[misc]  # it has no types
    """Reads what ``@operation`` declares."""

    @property
    def _operation(self) -> Operation:
        found: Operation = getattr(self.view, self.method.lower()).operation
        return found

    def get_operation_id(self) -> str:
        words = [part for part in self.path.split("/")[2:] if not part.startswith("{")]
        if self.path.endswith("}"):
            words.append("one")
        return "_".join([self.method.lower(), *words]).replace("-", "_")

    def get_summary(self) -> str:
        return self._paragraphs()[0]

    def get_description(self) -> str:
        wanted = ", ".join(f"`{name}`" for name in self._operation.permissions)
        return " ".join([*self._paragraphs()[1:], f"Permissions: {wanted}."])

    def _paragraphs(self) -> list[str]:
        text = super().get_description().replace("``", "`")
        return [" ".join(part.split()) for part in text.split("\n\n")]

    def get_tags(self) -> list[str]:
        return [self.path.split("/")[2]]

    def get_override_parameters(self) -> list[Any]:
        query = self._operation.query
        return [] if query is None else [query]

    def get_request_serializer(self) -> Any:
        return self._operation.body

    def get_response_serializers(self) -> dict[Any, Any]:
        what = self._operation
        usual = (400, 401, 403, 405, 406, 429)
        body = (413, 415) if what.body is not None else ()
        refused = sorted({*usual, *body, *what.refusals})
        return {what.status: what.answer} | {
            (status, CONTENT_TYPE): OpenApiResponse(Problem, description=_REFUSALS[status])
            for status in refused
        }

    def _resolve_path_parameters(self, variables: list[str]) -> list[Any]:
        # In the code they are text, so that a wrong one is a problem of the API's own.
        is_uuid = "event_id" in variables or self.path.split("/")[2] == "backfills"
        schema = (
            {"type": "string", "format": "uuid"}
            if is_uuid
            else {"type": "integer", "minimum": 1, "maximum": LARGEST}
        )
        return [
            {"in": "path", "name": name, "required": True, "schema": schema} for name in variables
        ]

    def _map_serializer_field(
        self, field: Any, direction: str, bypass_extensions: bool = False
    ) -> Any:
        if not isinstance(field, Shown):
            return super()._map_serializer_field(field, direction, bypass_extensions)
        field.shape.help_text, field.shape.read_only = field.help_text, True
        return super()._map_serializer_field(field.shape, direction, bypass_extensions)


def _share_refusals(schema: dict[str, Any]) -> None:
    """Name the refusals once, instead of at each operation."""
    shared = schema["components"].setdefault("responses", {})
    for methods in schema["paths"].values():
        for method in methods.values():
            for status, response in method["responses"].items():
                if int(status) in _REFUSALS:
                    name = f"Problem{status}"  # the words of a status differ by Python's version
                    shared[name] = response
                    method["responses"][status] = {"$ref": f"#/components/responses/{name}"}


#: What says how a value is written, not how it is read; some of it differs by database.
_OF_WRITING = ("readOnly", "default", "minimum", "maximum", "minLength", "maxLength")


def _tidy_answers(schema: dict[str, Any]) -> None:
    """Say of answers what is so: all members are there, and no bounds of writing."""
    bodies = {
        method["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
        for methods in schema["paths"].values()
        for method in methods.values()
        if "requestBody" in method
    }
    bodies.add("SelectionQuery")  # a part of one
    for name, component in schema["components"]["schemas"].items():
        if name in bodies:
            component["additionalProperties"] = False
        else:
            component["required"] = list(component["properties"])
            for member in component["properties"].values():
                for word in _OF_WRITING:
                    member.pop(word, None)


def _without_marks(part: Any) -> Any:
    """Leave out the generator's own marks, and widths of numbers, which differ by database."""
    if isinstance(part, list):
        return [_without_marks(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {
        name: _without_marks(value)
        for name, value in part.items()
        if name != "x-spec-enum-id" and (name, value) != ("format", "int64")
    }


def render() -> str:
    """The file as it has to be."""
    rest = {"DEFAULT_SCHEMA_CLASS": OperationSchema}
    # FOLIO describes its tenant call itself: interface _tenant 2.0.
    patterns = [one for one in urlpatterns if not str(one.pattern).startswith("_/")]
    with override_settings(REST_FRAMEWORK=rest), patched_settings(_SETTINGS):
        schema = SchemaGenerator(patterns=patterns).get_schema(public=True)
    _share_refusals(schema)
    _tidy_answers(schema)
    text: str = yaml.safe_dump(
        _without_marks(schema), sort_keys=False, allow_unicode=True, width=100
    )
    return text


if __name__ == "__main__":
    FILE.write_text(render())
    sys.stdout.write(f"{FILE.relative_to(ROOT)}\n")
