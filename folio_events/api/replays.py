"""Replays: past events that receivers run again."""

from __future__ import annotations

import threading
import time
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request

from folio_events.api.access import actor
from folio_events.api.paging import Page, PageQuery, page, page_of
from folio_events.api.problems import BadRequest, invalid
from folio_events.api.resource import (
    LARGEST,
    Reason,
    Resource,
    Settled,
    Strict,
    number,
    operation,
    reading,
    writing,
)
from folio_events.models import Replay
from folio_events.operations.criteria import Criteria
from folio_events.operations.replay import (
    cancel_replay,
    count_events,
    replay_events,
    replayed_receivers,
    resume_replay,
    warnings_about,
)

#: Seconds that one request works; a replay that is not made by then is resumed by the next.
SLICE = 10.0
_CRITERIA = (
    "since", "until", "topic", "partition", "from_offset", "to_offset", "tenant",
)  # fmt: skip


class ReplayRow(serializers.ModelSerializer[Replay]):
    """A replay."""

    class Meta:
        model = Replay
        fields = (
            "id", "state", "source", "receivers", "criteria", "passed", "unreadable", "deliveries",
            "reason", "created_by", "created_at", "updated_at", "finished_at",
        )  # fmt: skip


class ReplayBody(Strict):
    """Which events, and which receivers run them again."""

    receivers = serializers.ListField(
        child=serializers.CharField(max_length=255), min_length=1, max_length=100
    )
    since = serializers.DateTimeField(required=False, help_text="Published then or later.")
    until = serializers.DateTimeField(required=False, help_text="Published before.")
    topic = serializers.CharField(
        required=False,
        max_length=249,
        help_text="Logical, with * for any characters; or as on the broker.",
    )
    partition = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)
    from_offset = serializers.IntegerField(required=False, min_value=0, max_value=LARGEST)
    to_offset = serializers.IntegerField(
        required=False, min_value=0, max_value=LARGEST, help_text="The one after the last."
    )
    event_ids = serializers.ListField(
        child=serializers.UUIDField(), required=False, min_length=1, max_length=1000
    )
    tenant = serializers.CharField(required=False, max_length=255)
    types = serializers.ListField(
        child=serializers.CharField(max_length=100), required=False, min_length=1, max_length=100
    )
    source = serializers.ChoiceField(  # type: ignore[assignment]  # a field of the body
        [Replay.Source.BROKER.value, Replay.Source.OUTBOX.value],
        required=False,
        help_text="Where they are read; left out: the broker where it still holds them.",
    )
    rate = serializers.FloatField(
        required=False, min_value=0.01, max_value=1e6, help_text="Most deliveries made in a second."
    )
    reason = serializers.CharField(max_length=1000, help_text="Kept with it and in Django's log.")
    dry_run = serializers.BooleanField(default=False, help_text="Only count.")


class ReplayCount(serializers.Serializer[Any]):
    """What a replay would run."""

    topic = serializers.CharField(help_text="On the broker.")
    receiver = serializers.CharField()
    events = serializers.IntegerField()


class ReplayStarted(serializers.Serializer[Any]):
    """A replay, or what it would be."""

    replay = ReplayRow(allow_null=True, help_text="Null: it was a dry run.")
    deliveries = serializers.IntegerField(help_text="How many were made, or would be.")
    passed = serializers.IntegerField(help_text="Messages that were looked at.")
    unreadable = serializers.IntegerField()
    counts = ReplayCount(many=True, help_text="By topic and receiver; of a dry run.")
    warnings = serializers.ListField(
        child=serializers.CharField(), help_text="What it means for some receivers."
    )


class Resume(Strict):
    """How a replay goes on."""

    rate = serializers.FloatField(
        required=False, min_value=0.01, max_value=1e6, help_text="Most deliveries made in a second."
    )


class _Slice:
    """Ends a piece of work when its time is over."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._until = time.monotonic() + SLICE

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._until

    def advance(self, _count: int) -> None:
        if self.is_over:
            self.stop.set()

    def refuse(self, _count: int) -> None:
        if self.is_over:
            raise BadRequest(
                f"Counting takes longer than {SLICE:.0f} s. Narrow the choice, or run "
                "'manage.py replay_events --dry-run'."
            )


class ReplaysView(Resource):
    """Replays."""

    @operation("view_replay", query=PageQuery, answer=page_of(ReplayRow))
    def get(self, request: Request, *, query: dict[str, Any]) -> Page:
        """List replays, the newest first."""
        return page(Replay.objects.using(reading(Replay)).all(), query)

    @operation("run_replay", body=ReplayBody, answer=ReplayStarted, status=202, refusals=(409, 503))
    def post(self, request: Request, *, body: dict[str, Any]) -> dict[str, Any]:
        """Have receivers run past events again, or count what they would.

        Works for some seconds; a replay whose state is "running" afterwards is to be resumed.
        """
        try:
            criteria = _criteria(body)
            receivers = replayed_receivers(body["receivers"])
            warnings = warnings_about(receivers)
            if body["dry_run"]:
                return {**_count(criteria, body), "warnings": warnings}
            part = _Slice()
            replay = replay_events(
                criteria,
                body["receivers"],
                reason=body["reason"],
                source=body.get("source"),
                rate=body.get("rate"),
                by=actor(request),
                advance=part.advance,
                stop=part.stop,
            )
        except ValueError as error:
            raise invalid("body", str(error)) from error
        return {
            "replay": replay,
            "deliveries": replay.deliveries,
            "passed": replay.passed,
            "unreadable": replay.unreadable,
            "counts": [],
            "warnings": warnings,
        }


def _criteria(body: dict[str, Any]) -> Criteria:
    given = {name: body[name] for name in _CRITERIA if name in body}
    given |= {name: frozenset(body[name]) for name in ("event_ids", "types") if name in body}
    return Criteria(**given)


def _count(criteria: Criteria, body: dict[str, Any]) -> dict[str, Any]:
    found = count_events(
        criteria, body["receivers"], source=body.get("source"), advance=_Slice().refuse
    )
    return {
        "replay": None,
        "deliveries": found.deliveries,
        "passed": found.passed,
        "unreadable": found.unreadable,
        "counts": [
            {"topic": topic, "receiver": name, "events": events}
            for (topic, name), events in sorted(found.events.items())
        ],
    }


class ReplayView(Resource):
    """One replay."""

    @operation("view_replay", answer=ReplayRow, refusals=(404,))
    def get(self, request: Request, id: str) -> Replay:
        """Show how far a replay is."""
        return _find(id)


class ResumeView(Resource):
    """The resumption of a replay."""

    @operation("run_replay", body=Resume, answer=ReplayRow, status=202, refusals=(404, 409, 503))
    def post(self, request: Request, id: str, *, body: dict[str, Any]) -> Replay:
        """Go on with a replay for some seconds; a process that works on it ends."""
        part = _Slice()
        return resume_replay(
            _find(id).pk,
            rate=body.get("rate"),
            advance=part.advance,
            stop=part.stop,
            using=writing(Replay),
        )


class CancelView(Resource):
    """The end of a replay."""

    @operation("run_replay", body=Reason, answer=Settled, refusals=(404, 409))
    def post(self, request: Request, id: str, *, body: dict[str, Any]) -> dict[str, int]:
        """End a replay and discard those of its deliveries that are open."""
        changed = cancel_replay(
            _find(id).pk, reason=body["reason"], by=actor(request), using=writing(Replay)
        )
        return {"changed": changed}


def _find(text: str) -> Replay:
    found = Replay.objects.using(reading(Replay)).filter(pk=number(text)).first()
    if found is None:
        raise NotFound(f"There is no replay {text}.")
    return found
