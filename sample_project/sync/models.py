"""SyncedModel: a record that knows when each of its synced fields was edited."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from django.db import models, router, transaction
from django.utils import timezone

from sample_project.json_names import snake_case
from sample_project.records import FolioRecord
from sample_project.sync.declaration import FieldSync, declared, microseconds
from sample_project.sync.rule import UNSTAMPED, Change, Stamp, SyncedField, Version, decide


class SyncedModel(FolioRecord):
    """A record with synced fields; the declared syncs of its topic say which."""

    sync_topic: ClassVar[str]

    edit_stamps = models.JSONField(
        default=dict,
        blank=True,
        editable=False,
        help_text="JSON name to the stamp of its last edit.",
    )

    class Meta:
        abstract = True

    def version(self, name: str) -> Version:
        """What this row holds under a JSON name."""
        stamp = self.edit_stamps.get(name)
        return Version(
            value=getattr(self, snake_case(name)) or "", stamp=Stamp(*stamp) if stamp else UNSTAMPED
        )

    def save(self, **kwargs: Any) -> None:
        """Save, and stamp the synced fields that differ from what the database holds."""
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        written: Collection[str] | None = kwargs.get("update_fields")
        with transaction.atomic(using=using, savepoint=False):
            stamped = self._stamp_edits(using, written)
            if written is not None and stamped:
                kwargs["update_fields"] = {*written, "edit_stamps"}
            super().save(**kwargs)

    def _stamp_edits(self, using: str, written: Collection[str] | None) -> bool:
        stored = self._stored(using)
        # Not this instance's: it may have been read before others were stamped.
        stamps = dict(stored.edit_stamps) if stored else {}
        before = dict(stamps)
        for sync in declared(self.sync_topic):
            self._stamp_fields(sync, stored, stamps, written)
        self.edit_stamps = stamps
        return stamps != before

    def _stored(self, using: str) -> SyncedModel | None:
        if self._state.adding:
            return None
        rows: models.QuerySet[SyncedModel] = type(self)._base_manager.using(using)
        return rows.select_for_update(no_key=True).filter(pk=self.pk).first()

    def _stamp_fields(
        self,
        sync: FieldSync,
        stored: SyncedModel | None,
        stamps: dict[str, Any],
        written: Collection[str] | None,
    ) -> None:
        is_linked, newly = self._linking(sync, stored, written)
        for field in sync.fields:
            name = sync.name_in(self.sync_topic, field)
            column = snake_case(name)
            before = stored.version(name) if stored else Version(value="", stamp=UNSTAMPED)
            value = before.value
            if written is None or column in written:
                if is_linked and not newly and not field.may_blank(self.sync_topic):
                    setattr(self, column, getattr(self, column) or before.value)
                value = getattr(self, column) or ""
            if value != before.value or (newly and value):
                stamps[name] = self._next_stamp(field, before.stamp)

    def _linking(
        self, sync: FieldSync, stored: SyncedModel | None, written: Collection[str] | None
    ) -> tuple[bool, bool]:
        # Whether records of the other side follow this row, and whether they begin to now.
        if self.sync_topic == sync.hub:
            return True, stored is None
        column = snake_case(sync.link)
        before = str(getattr(stored, column, None) or "")
        link = before
        if written is None or column in written:
            link = str(getattr(self, column) or "")
        return bool(link), bool(link) and link != before

    def _next_stamp(self, field: SyncedField, *earlier: Stamp) -> Stamp:
        now = microseconds(timezone.now())
        at = max(now, *(stamp.at + 1 for stamp in earlier))
        return Stamp(at, self.sync_topic == field.owner, str(self.pk))

    def take_changes(self, sync: FieldSync, changes: list[Change]) -> None:
        """Decide about each change, and save once if any of them asks for it."""
        written: set[str] = set()
        for change in changes:
            name = sync.name_in(self.sync_topic, change.field)
            local = self.version(name)
            verdict = decide(change, local)
            if verdict == "keep":
                continue
            if verdict == "take":
                setattr(self, snake_case(name), change.value)
                stamp = change.stamp
            else:
                stamp = self._next_stamp(change.field, local.stamp, change.stamp)
            self.edit_stamps = {**self.edit_stamps, name: stamp}
            written |= {snake_case(name), "edit_stamps"}
        if written:
            # Past this class's own save(): what is taken over is not stamped as an edit.
            super().save(update_fields=written)
