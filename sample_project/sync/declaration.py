"""FieldSync, the declared field map of two models, and the check of its owners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.core import checks
from django.db import models

from folio_events import Event, RetryPolicy, receiver
from sample_project.json_names import snake_case
from sample_project.sync.rule import Change, Stamp, SyncedField

if TYPE_CHECKING:
    from sample_project.sync.models import SyncedModel

#: JSON name of the stamps in events.
STAMPS = "editStamps"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSync:
    """Two models whose records share facts; neither needs to know the other's code."""

    name: str
    #: Logical topics; the hub's key is the id that spokes link to.
    hub: str
    spoke: str
    #: JSON name in the spoke of the hub's id.
    link: str
    fields: tuple[SyncedField, ...]

    def name_in(self, topic: str, field: SyncedField) -> str:
        return field.hub if topic == self.hub else field.spoke

    def changes(self, event: Event) -> list[Change]:
        """List what an event changed of the synced fields."""
        if event.new is None:
            return []
        old = event.old
        if event.topic == self.spoke:
            if not event.new.get(self.link):
                return []
            if old is not None and old.get(self.link) != event.new[self.link]:
                old = None
        return list(self._compare(event, old, event.new))

    def _compare(
        self, event: Event, old: Mapping[str, Any] | None, new: Mapping[str, Any]
    ) -> Iterator[Change]:
        for field in self.fields:
            name = self.name_in(event.topic, field)
            value, stamp = new.get(name) or "", _read_stamp(new, name)
            before = None if old is None else old.get(name) or ""
            said_again = stamp is not None and (old is None or stamp != _read_stamp(old, name))
            if value == before and not said_again:
                continue
            if before is None and not value:
                continue
            if stamp is None or (not said_again and before is not None):
                # Written by something that does not stamp: the event's own time has to do.
                stamp = Stamp(
                    microseconds(event.occurred_at), event.topic == field.owner, event.key or ""
                )
            yield Change(field=field, sender=event.topic, value=value, before=before, stamp=stamp)

    def apply(self, event: Event, model: type[SyncedModel]) -> None:
        """Bring rows of one side up to date with an event of the other."""
        changes = self.changes(event)
        if changes:
            for row in self._linked(event, model):
                row.take_changes(self, changes)

    def _linked(self, event: Event, model: type[SyncedModel]) -> models.QuerySet[Any]:
        where: dict[str, Any]
        if event.topic == self.hub:
            where = {snake_case(self.link): event.key}
        else:
            where = {"pk": event.new[self.link] if event.new else None}
        # In one order everywhere, so that two receivers cannot lock each other out.
        rows: models.QuerySet[Any] = model.objects.filter(**where).order_by("pk")
        return rows.select_for_update(no_key=True)

    def follow(self, model: type[SyncedModel], *, retry: RetryPolicy | None = None) -> None:
        """Register the receiver that keeps a model up to date with the other side."""
        is_spoke = model.sync_topic == self.spoke

        @receiver(
            self.hub if is_spoke else self.spoke,
            types=["UPDATE"] if is_spoke else ["CREATE", "UPDATE"],
            name=f"{model._meta.app_label}.follow_{self.name.replace('-', '_')}",
            retry=retry,
            order="key",
        )
        def follow(event: Event) -> None:
            self.apply(event, model)


_declared: dict[str, FieldSync] = {}


def declare(sync: FieldSync) -> FieldSync:
    """Make a sync known to the models of its two topics."""
    _declared[sync.name] = sync
    return sync


def declared(topic: str) -> list[FieldSync]:
    """The syncs that a topic is a side of."""
    return [sync for sync in _declared.values() if topic in (sync.hub, sync.spoke)]


def withdraw(sync: FieldSync) -> None:
    """Forget a sync; for tests."""
    _declared.pop(sync.name, None)


def _read_stamp(state: Mapping[str, Any], name: str) -> Stamp | None:
    stamp = (state.get(STAMPS) or {}).get(name)
    return None if stamp is None else Stamp(*stamp)


def microseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


@checks.register("sync")
def check_owners(**_kwargs: object) -> list[checks.CheckMessage]:
    """Refuse a synced field without an owner, or with two."""
    found: list[checks.CheckMessage] = []
    owners: dict[tuple[str, str], tuple[str, FieldSync]] = {}
    for sync in _declared.values():
        for field in sync.fields:
            if field.owner not in (sync.hub, sync.spoke):
                found.append(
                    checks.Error(
                        f"Field {field.hub!r} of sync {sync.name!r} belongs to {field.owner!r}, which is no side of it.",
                        hint=f"Its owner is {sync.hub!r} or {sync.spoke!r}.",
                        id="sample_project.E001",
                    )
                )
            for topic in (sync.hub, sync.spoke):
                place = (topic, sync.name_in(topic, field))
                owner, first = owners.setdefault(place, (field.owner, sync))
                if owner != field.owner:
                    found.append(
                        checks.Error(
                            f"Field {place[1]!r} of {topic!r} has two owners: {owner!r} in sync "
                            f"{first.name!r}, {field.owner!r} in sync {sync.name!r}.",
                            hint="One side is the single source of a fact; name the same in both.",
                            id="sample_project.E002",
                        )
                    )
    return found
