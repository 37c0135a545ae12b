"""FOLIO's tenant call: what Okapi sends a module when a tenant enables, disables or purges it."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string
from rest_framework import serializers, status
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import BasePermission
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from folio_events.api.access import ApiThrottle, actor
from folio_events.api.problems import BrokerAway
from folio_events.api.resource import JsonBody
from folio_events.conf import get_settings
from folio_events.exceptions import BrokerError, InvalidTenantError
from folio_events.ownership import OKAPI_TENANT
from folio_events.provisioning import disable_tenant, enable_tenant, purge_tenant


class MayProvisionTenants(BasePermission):
    """Staff with the permission ``folio_events.provision_tenant``; superusers have it."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        user = request.user
        return user.is_staff and user.has_perm("folio_events.provision_tenant")


class Parameter(serializers.Serializer[Any]):
    """A parameter of the call; this module has use for none."""

    key = serializers.CharField()
    value = serializers.CharField(required=False, allow_blank=True)


class TenantAttributes(serializers.Serializer[Any]):
    """The body of FOLIO's ``POST /_/tenant``, interface version 2.0."""

    #: Module ids such as "mod-inventory-storage-27.1.0"; without module_to it is disabled.
    module_from = serializers.CharField(required=False, allow_null=True)
    module_to = serializers.CharField(required=False, allow_null=True)
    purge = serializers.BooleanField(default=False)
    parameters = Parameter(many=True, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs.get("module_to") and not attrs.get("module_from"):
            raise ValidationError("Give module_to to enable, module_from to disable.")
        if attrs.get("module_to") and attrs["purge"]:
            raise ValidationError("purge goes with a disable, without module_to.")
        return attrs


class TenantView(APIView):
    """Creates a tenant's topics, or deletes them; the same call again changes nothing."""

    parser_classes = (JsonBody,)
    renderer_classes = (JSONRenderer,)
    throttle_classes = (ApiThrottle,)

    def get_permissions(self) -> list[Any]:
        return [import_string(get_settings().TENANT_API_PERMISSION)()]

    def post(self, request: Request) -> Response:
        """Answer 204 when it is done; there are no jobs to ask for."""
        tenant = request.headers.get(OKAPI_TENANT, "")
        if not tenant:
            raise ValidationError(f"The header {OKAPI_TENANT} is missing.")
        body = TenantAttributes(data=request.data)
        body.is_valid(raise_exception=True)
        given = body.validated_data
        try:
            if given.get("module_to"):
                enable_tenant(tenant)
            elif given["purge"]:
                purge_tenant(tenant, by=actor(request))
            else:
                disable_tenant(tenant)
        except InvalidTenantError as error:
            raise ValidationError(str(error)) from error
        except BrokerError as error:
            raise BrokerAway(f"{type(error).__name__}: {error}") from error
        return Response(status=status.HTTP_204_NO_CONTENT)
