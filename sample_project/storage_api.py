"""FOLIO's storage interface over HTTP: JSON in camel case, collections, the tenant of the call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from django.db import models, transaction
from rest_framework import pagination, serializers, viewsets
from rest_framework.exceptions import ParseError
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from folio_events.exceptions import FolioEventsError, MissingTenantError
from folio_events.tenants import resolve_tenant
from sample_project.json_names import snake_case
from sample_project.records import FolioRecord

#: A segment of a topic's name.
_TENANT = re.compile(r"[A-Za-z0-9_-]+")


class RecordSerializer(serializers.ModelSerializer[Any]):
    """A FOLIO record: ``Meta.fields`` holds its JSON names, columns are their snake case.

    Fields that the model does not know are kept and given back; empty ones are left out,
    as FOLIO does.
    """

    def get_extra_kwargs(self) -> dict[str, Any]:
        options: dict[str, Any] = super().get_extra_kwargs()
        for name in self.Meta.fields:
            column = snake_case(name)
            if column != name:
                options.setdefault(name, {}).setdefault("source", column)
        return options

    def to_internal_value(self, data: Any) -> Any:
        values = super().to_internal_value(self._without_nulls(data))
        unknown = {name: value for name, value in data.items() if name not in self.fields}
        # A PUT replaces the record, a PATCH adds to it.
        before = self.instance.extra if self.partial and self.instance is not None else {}
        values["extra"] = {**before, **unknown}
        return values

    def _without_nulls(self, data: Any) -> Any:
        # FOLIO writes null where a field is empty, and text columns hold "" then.
        if not isinstance(data, Mapping):
            return data
        full = {} if self.partial else self._blanks()
        return {**full, **{name: self._blank(name) if v is None else v for name, v in data.items()}}

    def _blanks(self) -> dict[str, Any]:
        # What a PUT leaves out is emptied, not kept.
        if self.instance is None:
            return {}
        return {
            name: self._blank(name)
            for name, field in self.fields.items()
            if not field.required and not field.read_only and name != "id"
        }

    def _blank(self, name: str) -> Any:
        if name not in self.fields:
            return None
        model: type[models.Model] = self.Meta.model
        column: Any = model._meta.get_field(snake_case(name))
        return column.get_default()

    def validate_id(self, value: Any) -> Any:
        if isinstance(self.instance, FolioRecord) and value != self.instance.pk:
            raise serializers.ValidationError("The id of a record cannot be changed.")
        return value

    def to_representation(self, instance: Any) -> dict[str, Any]:
        shown = super().to_representation(instance)
        filled = {name: value for name, value in shown.items() if value not in (None, "", {})}
        return {**instance.extra, **filled}


class CollectionPagination(pagination.LimitOffsetPagination):
    """FOLIO's collections: ``{"items": [...], "totalRecords": 1}`` with limit and offset."""

    default_limit = 10
    max_limit = 10_000

    def paginate_queryset(
        self, queryset: Any, request: Request, view: Any = None
    ) -> list[Any] | None:
        self.collection = view.collection
        return super().paginate_queryset(queryset, request, view)

    def get_paginated_response(self, data: Any) -> Response:
        return Response({self.collection: data, "totalRecords": self.count})


class StorageViewSet(viewsets.ModelViewSet[Any]):
    """Create, read, update and delete the records of the tenant that the call names."""

    #: Name of the list in a collection.
    collection: ClassVar[str]
    model: ClassVar[type[FolioRecord]]
    # FOLIO's gateway checks tokens and permissions before a module sees the call.
    authentication_classes = []
    permission_classes = [AllowAny]
    pagination_class = CollectionPagination

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        try:
            tenant = resolve_tenant()
        except MissingTenantError as error:
            raise ParseError("Header X-Okapi-Tenant is missing: whose records?") from error
        except FolioEventsError as error:
            raise ParseError(str(error)) from error
        if tenant and not _TENANT.fullmatch(tenant):
            raise ParseError("Header X-Okapi-Tenant: a tenant has letters, digits, '_' and '-'.")
        if "query" in request.query_params:
            raise ParseError("CQL is not supported: leave 'query' out.")
        super().initial(request, *args, **kwargs)

    def get_queryset(self) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = self.model.objects.order_by("pk")
        # Two writers of one record must not both start from the same state.
        return rows.select_for_update(no_key=True) if self._writes() else rows

    def _writes(self) -> bool:
        return self.request.method in {"PUT", "PATCH", "DELETE"}

    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with transaction.atomic():
            return super().update(request, *args, **kwargs)

    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with transaction.atomic():
            return super().destroy(request, *args, **kwargs)
