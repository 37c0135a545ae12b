"""Whose message it is: what its headers, body and topic say, and whether they agree."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from folio_events.exceptions import ConfigurationError, OrphanError
from folio_events.topics import validate_tenant_collection

#: The header that names a message's owner. Source: folio-kafka-wrapper, FolioKafkaHeaders.
TENANT_HEADER = "folio.tenantId"
OKAPI_TENANT = "x-okapi-tenant"
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,200}")


def is_tenant(name: str) -> bool:
    """Whether a name can stand in a topic; with a dot in it no subscription would match."""
    return _TENANT.fullmatch(name) is not None


def owner(*, headers: Mapping[str, str], body: Mapping[str, Any], segment: str | None) -> str:
    """Say whose message it is.

    Args:
        headers: As text, names in lower case.
        body: ``tenant``, ``tenantId`` and ``eventMetadata.tenantId`` count.
        segment: What stands in the tenant's place of the topic. That of a tenant collection
            says nothing; None: there is no such place.

    Raises:
        OrphanError: They name no tenant, several, or what cannot be one.
    """
    named = headers.get("folio.tenantid")
    # Nearly always so, and the consumer asks for each record: half the time of what follows.
    if (
        named
        and named == (headers.get(OKAPI_TENANT) or named)
        and named == (_body_tenant(body) or named)
        and named == (_topic_tenant(segment) or named)
        and is_tenant(named)
    ):
        return named
    said = claims(headers=headers, body=body, segment=segment)
    names = set(said.values())
    if not names:
        raise OrphanError("missing", "Neither headers nor body nor topic name a tenant.")
    if invalid := [place for place, name in said.items() if not is_tenant(name)]:
        raise OrphanError(
            "invalid",
            f"{invalid[0]} names what is no tenant: at most 200 letters, digits, '_' and '-'.",
        )
    if len(names) > 1:
        listed = ", ".join(f"{place} says {name!r}" for place, name in said.items())
        raise OrphanError("disagreeing", f"It names several tenants: {listed}.")
    return names.pop()


def claims(
    *, headers: Mapping[str, str], body: Mapping[str, Any], segment: str | None
) -> dict[str, str]:
    """Who names which tenant, of those that name one; the arguments are those of ``owner``."""
    found = {
        "header folio.tenantId": headers.get("folio.tenantid"),
        "header x-okapi-tenant": headers.get(OKAPI_TENANT),
        "the body": _body_tenant(body),
        "the topic": _topic_tenant(segment),
    }
    return {place: name for place, name in found.items() if name and name.strip()}


@functools.lru_cache(maxsize=1024)
def _is_collection(segment: str) -> bool:
    # By its form: this project's own setting says nothing of other producers'.
    try:
        validate_tenant_collection(segment)
    except ConfigurationError:
        return False
    return True


def _topic_tenant(segment: str | None) -> str | None:
    return None if segment is None or _is_collection(segment) else segment


def _body_tenant(body: Mapping[str, Any]) -> str | None:
    metadata = body.get("eventMetadata")
    inner = metadata.get("tenantId") if isinstance(metadata, dict) else None
    for name in (body.get("tenant"), body.get("tenantId"), inner):
        if isinstance(name, str) and name.strip():
            return name
    return None


def tenant_of(headers: Mapping[str, str], segment: str | None) -> str | None:
    """Whose a message seems to be, without a look at its body; for counting only."""
    return headers.get("folio.tenantid") or headers.get(OKAPI_TENANT) or _topic_tenant(segment)
