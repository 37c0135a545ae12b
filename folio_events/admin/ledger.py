"""What all pages have in common: nothing is added, changed or deleted, and nothing counted."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin import ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.core.paginator import Paginator
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from folio_events.admin import readable
from folio_events.admin.event_page import event_link, hidden_members
from folio_events.topics import parse_wire_topic

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:  # none of them has a type parameter when it runs
    _ModelAdmin = admin.ModelAdmin
    _Paginator = Paginator

#: A page is found by reading all that come before it.
MAX_PAGES = 1000


class AtLeast(int):
    """A count of rows that stopped at the end of the page."""

    def __str__(self) -> str:
        return f"{int(self) - 1}+"


class UncountedPaginator(_Paginator):
    """Knows whether another page follows, not how many: to count a large table is slow.

    Args:
        object_list: Ordered.
        per_page: Rows of a page.
        number: The page that will be asked for.
    """

    def __init__(self, object_list: QuerySet[Any], per_page: int, *, number: int) -> None:
        super().__init__(object_list, per_page)
        self.rows = object_list
        self.number = number

    @cached_property
    def count(self) -> int:
        before = (self.number - 1) * self.per_page
        rows = self.rows.values_list("pk")[before : before + self.per_page + 1]
        count = before + len(rows)
        return AtLeast(count) if len(rows) > self.per_page else count


class LedgerChangeList(ChangeList):
    """A list that leaves out the large columns."""

    model_admin: LedgerAdmin

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        rows = super().get_queryset(request, exclude_parameters)
        return rows.defer(*self.model_admin.large_fields)


class LedgerAdmin(_ModelAdmin):
    """Rows that a program writes and a person may look at."""

    #: Columns that a list does not read.
    large_fields: tuple[str, ...] = ()
    #: Methods whose field a page leaves out where they return None.
    optional_fields: tuple[str, ...] = ()

    ordering = ["-pk"]
    # Another order than that of an index would sort the whole table.
    sortable_by = ()
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_max_show_all = 0

    class Media:
        css = {"all": ["folio_events/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        missing = {
            name for name in self.optional_fields if obj and getattr(self, name)(obj) is None
        }
        return [
            (title, {"fields": [name for name in options["fields"] if name not in missing]})
            for title, options in super().get_fieldsets(request, obj)
            if not missing.issuperset(options["fields"])
        ]

    def link(self, model: type[Model], page: str, *args: object, query: str = "") -> str:
        """The address of a page about another model, in the same admin site."""
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}"
        return reverse(name, args=args, current_app=self.admin_site.name) + query

    def list_link(self, model: type[Model], **filters: str) -> str:
        """The address of the rows of a model that its list's filters leave."""
        query = f"?{urlencode(filters)}" if filters else ""
        return self.link(model, "changelist", query=query)

    def page_context(self, request: HttpRequest, title: str) -> dict[str, Any]:
        """What each page beyond Django's own needs."""
        return {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "media": self.media,
        }

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LedgerChangeList

    def get_paginator(
        self, request: HttpRequest, queryset: QuerySet[Any], per_page: int, *_args: Any, **_kw: Any
    ) -> UncountedPaginator:
        try:
            number = int(request.GET.get(PAGE_VAR, 1))
        except ValueError:
            number = 1
        if not 1 <= number <= MAX_PAGES:
            raise IncorrectLookupParameters
        return UncountedPaginator(queryset, per_page, number=number)


class SearchedLedgerAdmin(LedgerAdmin):
    """Searched by event id and key, each exactly, so that their indexes serve."""

    change_list_template = "folio_events/admin/searched_list.html"
    # Named for the form to appear; what is done with the words is below.
    search_fields = ("event_id", "key")
    search_help_text = _("The whole event id or key.")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        where = Q(key=term)
        try:
            event_id = uuid.UUID(term)
        except ValueError:
            pass
        else:
            where |= self.with_event_id(event_id)
        return queryset.filter(where), False

    @admin.display(description=_("id"))
    def number(self, row: Any) -> str:
        return str(row.pk)

    @admin.display(description=_("key"))
    def key_whole(self, row: Any) -> SafeString | None:
        return None if row.key is None else readable.code(row.key)

    @admin.display(description=_("event id"))
    def event_id_whole(self, row: Any) -> SafeString | None:
        event_id = self.event_id_of(row)
        return None if event_id is None else event_link(self.admin_site, event_id)

    @admin.display(description=_("key, event id"))
    def key_and_event_id(self, row: Any) -> SafeString:
        return readable.stacked(readable.short_key(row.key), self.event_id_whole(row))

    def event_id_of(self, row: Any) -> uuid.UUID | None:
        found: uuid.UUID | None = row.event_id
        return found

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        row = super().get_object(request, object_id, from_field)
        if row is not None:
            row.hidden_members = hidden_members(request, self.logical_topic(row))
        return row

    def logical_topic(self, row: Any) -> str:
        return parse_wire_topic(row.topic).topic

    @admin.display(description=_("payload"))
    def body(self, row: Any) -> SafeString:
        return readable.payload_block(row.payload, row.hidden_members)

    def with_event_id(self, event_id: uuid.UUID) -> Q:
        return Q(event_id=event_id)
