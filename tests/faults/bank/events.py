"""Events of the harness's models."""

from __future__ import annotations

from folio_events import ModelEvents, events
from tests.faults.bank.models import Account, Entry


@events.register(Account)
class AccountEvents(ModelEvents):
    topic = "bank.account"
    key = "id"
    owner = "tests"


@events.register(Entry)
class EntryEvents(ModelEvents):
    topic = "bank.entry"
    key = "account"
    owner = "tests"
