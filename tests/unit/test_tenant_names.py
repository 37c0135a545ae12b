"""Which names a tenant may have."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from folio_events import tenant_context
from folio_events.exceptions import InvalidTenantError
from folio_events.tenants import resolve_tenant


@pytest.mark.parametrize("tenant", ["a.b", "two words", "ü", "^x$", "*", "x" * 201])
def test_a_tenant_that_cannot_be_a_segment_of_a_topic_is_refused(
    tenant: str, folio_events: Callable[..., None]
) -> None:
    """With a dot in it, its topics would match no subscription and reach nobody."""
    folio_events(TENANCY="folio")
    with tenant_context(tenant), pytest.raises(InvalidTenantError, match="segment of a topic"):
        resolve_tenant()


@pytest.mark.parametrize("tenant", ["diku", "foo-tenant", "test_tenant", "t1", "CENTRAL"])
def test_the_names_of_folio_are_taken(tenant: str, folio_events: Callable[..., None]) -> None:
    """Hyphens too, which FOLIO's own subscription pattern misses."""
    folio_events(TENANCY="folio")
    with tenant_context(tenant):
        assert resolve_tenant() == tenant
