"""List filters that need no look at the whole table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib.admin import FieldListFilter
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _

#: Newest rows that are looked at for values to offer, and how many values.
RECENT_ROWS, MAX_OFFERED = 1000, 12


class ExactValueFilter(FieldListFilter):
    """Offers the values of the newest rows, and takes any other that is typed in."""

    template = "folio_events/admin/exact_value_filter.html"

    def __init__(
        self,
        field: Any,
        request: HttpRequest,
        params: dict[str, Any],
        model: Any,
        model_admin: Any,
        field_path: str,
    ) -> None:
        super().__init__(field, request, params, model, model_admin, field_path)
        values: Any = self.used_parameters.get(field_path)
        self.value: str | None = values[-1] if values else None
        if self.value is not None and "\0" in self.value:
            raise IncorrectLookupParameters
        self.offered = sorted(self.offer(model_admin.get_queryset(request)))
        #: What the form has to repeat for search and other filters to stay.
        self.other_parameters: list[tuple[str, str]] = []

    def expected_parameters(self) -> list[str | None]:
        return [self.field_path]

    def offer(self, rows: QuerySet[Any]) -> Iterable[str]:
        recent = rows.order_by("-pk").values_list(self.field_path, flat=True)[:RECENT_ROWS]
        return [value for value, _times in Counter(recent).most_common(MAX_OFFERED) if value]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value:
            return queryset
        return queryset.filter(**{self.field_path: self.value})

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        name = str(self.field_path)
        self.other_parameters = [
            (parameter, value)
            for parameter, values in changelist.filter_params.items()
            if parameter != name
            for value in values
        ]
        yield {
            "selected": not self.value,
            "query_string": changelist.get_query_string(remove=[name]),
            "display": _("All"),
        }
        for value in self.offered:
            yield {
                "selected": value == self.value,
                "query_string": changelist.get_query_string({name: value}),
                "display": value,
            }
