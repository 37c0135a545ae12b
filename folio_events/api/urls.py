"""URLs of the REST API; include them at the root, or where you like."""

from __future__ import annotations

from django.urls import path

from folio_events.api import (
    backfills,
    consumers,
    dead_letters,
    deliveries,
    events,
    orphans,
    outbox,
    replays,
    status,
    topics,
    withheld,
)
from folio_events.api.resource import Resource
from folio_events.api.schema import SchemaView
from folio_events.api.tenant import TenantView

_RESOURCES: dict[str, type[Resource]] = {
    "backfills": backfills.BackfillsView,
    "backfills/<str:id>/cancel": backfills.CancelView,
    "bulk-actions": dead_letters.BulkActionsView,
    "bulk-actions/<str:id>": dead_letters.BulkActionView,
    "bulk-actions/<str:id>/cancel": dead_letters.CancelBulkActionView,
    "catalogue": topics.CatalogueView,
    "consumers": consumers.ConsumersView,
    "consumers/reset": consumers.ResetView,
    "dead-letters/groups": dead_letters.DeadLetterGroupsView,
    "dead-letters/refused": dead_letters.RefusedGroupsView,
    "deliveries": deliveries.DeliveriesView,
    "deliveries/discard": deliveries.DiscardView,
    "deliveries/repoint": deliveries.RepointView,
    "deliveries/retry": deliveries.RetryView,
    "deliveries/<str:id>": deliveries.DeliveryView,
    "deliveries/<str:id>/edit": deliveries.EditView,
    "deliveries/<str:id>/restore": deliveries.RestoreView,
    "events": events.EventsView,
    "events/<str:event_id>": events.EventView,
    "health": status.HealthView,
    "orphans": orphans.OrphansView,
    "orphans/assign": orphans.AssignView,
    "orphans/discard": orphans.DiscardView,
    "orphans/<str:id>": orphans.OrphanView,
    "outbox": outbox.OutboxView,
    "outbox/<str:id>": outbox.OutboxMessageView,
    "processes": status.ProcessesView,
    "replays": replays.ReplaysView,
    "replays/<str:id>": replays.ReplayView,
    "replays/<str:id>/cancel": replays.CancelView,
    "replays/<str:id>/resume": replays.ResumeView,
    "schema": SchemaView,
    "status": status.StatusView,
    "topics": topics.TopicsView,
    "topics/drift": topics.DriftView,
    "topics/old": topics.OldTopicsView,
    "topics/report": topics.TopicReportView,
    "withheld": withheld.WithheldMessagesView,
    "withheld/discard": withheld.DiscardView,
    "withheld/release": withheld.ReleaseView,
}

urlpatterns = [
    # Where FOLIO looks for it.
    path("_/tenant", TenantView.as_view(), name="folio_events_tenant"),
    # A prefix, since "status" and "topics" are anybody's words.
    *(path(f"folio-events/{route}", view.as_view()) for route, view in _RESOURCES.items()),
]
