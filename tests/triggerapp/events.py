"""The same declarations twice, once in each form of capture."""

from __future__ import annotations

from folio_events import ModelEvents, events
from tests.triggerapp.models import SignalItem, SignalPart, TriggerItem, TriggerPart


@events.register(SignalItem)
class SignalItemEvents(ModelEvents):
    topic = "forms.signal"


@events.register(TriggerItem)
class TriggerItemEvents(ModelEvents):
    topic = "forms.trigger"
    capture = "trigger"


@events.register(SignalPart)
class SignalPartEvents(ModelEvents):
    topic = "forms.signal-part"
    key = "item"
    dialect = "circulation"
    skip_unchanged = True


@events.register(TriggerPart)
class TriggerPartEvents(ModelEvents):
    topic = "forms.trigger-part"
    key = "item"
    dialect = "circulation"
    skip_unchanged = True
    capture = "trigger"
