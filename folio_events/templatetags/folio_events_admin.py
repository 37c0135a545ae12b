"""What the dashboard's templates need beyond Django's own tags."""

from __future__ import annotations

from typing import Any

from django import template
from django.template import Context

from folio_events.admin.dashboard import may_look

register = template.Library()


@register.simple_tag(takes_context=True)
def may_see_dashboard(context: Context) -> bool:
    """Whether the user of the request may see the dashboard."""
    request = context.get("request")
    return request is not None and may_look(request)


@register.filter
def grouped(number: Any) -> str:
    """A whole number with a comma between thousands; a question mark where it is unknown."""
    return "?" if number is None else f"{number:,}"


@register.filter
def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    for unit, length in (("min", 60), ("h", 3600)):
        if seconds < 90 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
