"""``write_changes``: business transactions of every kind, until SIGTERM."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, connection, transaction

from folio_events.exceptions import FolioEventsError
from folio_events.management.shutdown import stop_on_signals
from tests.faults.bank.models import Account, Entry


class _Changed(Exception):  # noqa: N818 - no error: the writer thinks better of it
    """Rolls a transaction back."""


class Command(BaseCommand):
    help = "Change accounts and entries in transactions, some of them rolled back."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--threads", type=int, default=3)
        parser.add_argument("--rate", type=float, default=200.0, help="transactions a second")
        parser.add_argument("--hold", type=float, default=0.05, help="longest open transaction")
        parser.add_argument("--rollbacks", type=float, default=0.15)
        parser.add_argument("--bytes", type=int, default=50, help="size of a note")

    def handle(self, *_args: Any, **options: Any) -> None:
        stop = threading.Event()
        threads = [
            threading.Thread(
                target=_write, args=(random.Random(f"{options['seed']}/{n}"), stop, options)
            )
            for n in range(options["threads"])
        ]
        with stop_on_signals(stop):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


def _write(chance: random.Random, stop: threading.Event, options: dict[str, Any]) -> None:
    accounts: list[int] = []
    due = time.monotonic()
    while not stop.is_set():
        due = max(due + options["threads"] / options["rate"], time.monotonic() - 1)
        stop.wait(max(due - time.monotonic(), 0))
        try:
            accounts = accounts or sorted(Account.objects.values_list("pk", flat=True))
            _change(chance, accounts, stop, options)
        except _Changed:
            continue
        except (DatabaseError, FolioEventsError):
            # As a web worker would: the request fails, the next one gets a new connection.
            connection.close()
            stop.wait(0.1)
    connection.close()


def _change(
    chance: random.Random, accounts: list[int], stop: threading.Event, options: dict[str, Any]
) -> None:
    note = "n" * options["bytes"]
    with transaction.atomic():
        chosen = sorted(chance.sample(accounts, chance.choice([0, 1, 1, 2, 3])))
        for pk in chosen:
            account = Account.objects.select_for_update(no_key=True).get(pk=pk)
            if chance.random() < 0.1:
                _change_in_vain(account)
            for _ in range(chance.choice([1, 1, 2])):
                account.number += 1
                account.note = note
                account.save()
        for pk in sorted(chance.sample(accounts, chance.choice([0, 1, 2]))):
            for _ in range(chance.choice([1, 1, 1, 3])):
                Entry.objects.create(account_id=pk, note=note)
        if chance.random() < 0.1:
            stop.wait(chance.uniform(0, options["hold"]))
        if chance.random() < options["rollbacks"]:
            raise _Changed


def _change_in_vain(account: Account) -> None:
    """A savepoint that is rolled back; its number is below 1, so that it would be known again."""
    before = account.number
    try:
        with transaction.atomic():
            account.number = -1
            account.save()
            raise _Changed
    except _Changed:
        account.number = before
