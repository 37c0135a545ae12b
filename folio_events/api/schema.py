"""The description of the API, as it was generated from the code."""

from __future__ import annotations

from pathlib import Path

from django.http import HttpResponse
from rest_framework.request import Request

from folio_events.api.resource import Resource

#: Written by docs/openapi_file.py.
FILE = Path(__file__).with_name("openapi.yaml")


class SchemaView(Resource):
    """The OpenAPI description."""

    schema = None

    def get(self, request: Request) -> HttpResponse:
        """Answer the file in YAML. Source of the type: RFC 9512."""
        return HttpResponse(FILE.read_bytes(), content_type="application/yaml")
