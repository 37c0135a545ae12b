"""What every FOLIO record has: an id, a tenant, and fields that this project has no column for."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar, TypeVar

from django.db import models

from folio_events.tenants import resolve_tenant

M = TypeVar("M", bound=models.Model)


class TenantManager(models.Manager[M]):
    """Rows of the current tenant and no others.

    Without a current tenant each query raises ``MissingTenantError``: no row is better
    than a row of somebody else.
    """

    def get_queryset(self) -> models.QuerySet[M]:
        return super().get_queryset().filter(tenant=resolve_tenant() or "")


class FolioRecord(models.Model):
    """Base of all records."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    tenant = models.CharField(max_length=255, db_index=True, editable=False)
    extra = models.JSONField(
        default=dict, blank=True, help_text="Fields of the JSON record that have no column."
    )

    #: For the admin and for the uniqueness of ids, which spans tenants.
    all_tenants: ClassVar[models.Manager[Any]] = models.Manager()
    objects: ClassVar[TenantManager[Any]] = TenantManager()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return str(self.pk)

    def save(self, **kwargs: Any) -> None:
        """Save under the current tenant, unless the row has one already."""
        if not self.tenant:
            self.tenant = resolve_tenant() or ""
        super().save(**kwargs)
