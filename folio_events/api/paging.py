"""Pages of large tables: by id, never counted, and never far beyond an index."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.db.models import Q, QuerySet
from rest_framework import serializers
from rest_framework.utils.urls import replace_query_param

from folio_events.api.resource import LARGEST, Strict

#: Most results of a page.
MOST = 200
#: Rows that one page looks at where no index serves a filter.
LOOKED_AT = 20_000


class PageQuery(Strict):
    """Which page."""

    limit = serializers.IntegerField(
        default=50, min_value=1, max_value=MOST, help_text="Most results."
    )
    before = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=LARGEST,
        help_text='Results with a lower id only; "next" of a page has it.',
    )


class Page(NamedTuple):
    """Some results, and the id before which there may be more."""

    results: list[Any]
    before: int | None


def page(rows: QuerySet[Any], query: dict[str, Any], rest: Q | None = None) -> Page:
    """Read a page of rows, the newest first.

    Args:
        rows: Filtered by what has an index, or not at all.
        query: As ``PageQuery`` read it.
        rest: Filters that no index serves. Then LOOKED_AT of the rows are looked at, so a page may
            be short, or empty, and yet have a next one.
    """
    limit, before = query["limit"], query.get("before")
    if before is not None:
        rows = rows.filter(pk__lt=before)
    last = None
    if rest:
        piece = rows.order_by("-pk").values_list("pk", flat=True)
        last = next(iter(piece[LOOKED_AT - 1 : LOOKED_AT]), None)
        rows = rows.filter(rest)
    if last is not None:
        rows = rows.filter(pk__gte=last)
    found = list(rows.order_by("-pk")[: limit + 1])
    if len(found) > limit:
        return Page(found[:limit], found[limit - 1].pk)
    return Page(found, last)


class _PageAnswer(serializers.Serializer[Any]):
    next = serializers.SerializerMethodField(help_text="URL of the next page; null: there is none.")

    def get_next(self, found: Page) -> str | None:
        if found.before is None:
            return None
        here = self.context["request"].build_absolute_uri()
        return replace_query_param(here, "before", str(found.before))


def page_of(row: type[serializers.BaseSerializer[Any]]) -> type[serializers.Serializer[Any]]:
    """The serializer of a page whose results another one shows."""
    return type(f"{row.__name__}Page", (_PageAnswer,), {"results": row(many=True)})


class Limited(Strict):
    """How many results of a list without pages."""

    limit = serializers.IntegerField(default=100, min_value=1, max_value=500)


def list_of(row: type[serializers.BaseSerializer[Any]]) -> type[serializers.Serializer[Any]]:
    """The serializer of a list without pages whose results another one shows."""
    results = row(many=True, source="*")
    return type(f"{row.__name__}List", (serializers.Serializer,), {"results": results})
