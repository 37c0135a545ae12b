"""What the broker last said of positions and lags, asked beside the page that shows it."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from django.utils import timezone

from folio_events import topics
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.conf import get_settings
from folio_events.exceptions import FolioEventsError
from folio_events.monitoring.lag import group_lag
from folio_events.monitoring.positions import GroupPosition, UnreadEvent, first_unread, positions

#: Seconds for which an answer is good.
FRESH = 4.0
#: Seconds after which a broker that was asked counts as silent.
SILENT = 3.0
#: Records that are read of a group to share out its lag under a tenant collection, and seconds.
_SAMPLE, _SAMPLE_TIMEOUT = 500, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerReport:
    """What the broker said, or why it said nothing.

    Attributes:
        positions: How far all groups are; without lags where the broker has not answered.
        unread: The first event of each partition that its group has not handled.
        tenants: By group: how many messages each tenant has waiting, or about how many.
        at: When it was asked; None: it has not answered yet.
        error: Why it does not answer; empty where it does.
    """

    positions: list[GroupPosition] = field(default_factory=list)
    unread: list[UnreadEvent] = field(default_factory=list)
    tenants: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    at: datetime | None = None
    error: str = ""


class _Inquiry:
    """One thread that asks, and what it found."""

    def __init__(self, using: str) -> None:
        self.began = time.monotonic()
        self.report: BrokerReport | None = None
        self._using = using
        self._thread = threading.Thread(
            target=self._ask, name=f"folio_events broker report {using}", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> BrokerReport | None:
        self._thread.join(seconds)
        return self.report

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def _ask(self) -> None:
        try:
            self.report = _report(get_broker(), self._using)
        except (FolioEventsError, DatabaseError) as error:
            said = str(error) if isinstance(error, FolioEventsError) else type(error).__name__
            self.report = BrokerReport(error=said or type(error).__name__)
        finally:
            connections.close_all()


class _Inquiries:
    """The inquiries of this process, one at a time for each database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[int, str], _Inquiry] = {}
        self._last: dict[tuple[int, str], tuple[float, BrokerReport]] = {}

    def report(self, using: str, patience: float) -> BrokerReport:
        # Threads do not survive fork().
        key = (os.getpid(), using)
        with self._lock:
            when, last = self._last.get(key, (0.0, None))
            if last is not None and time.monotonic() - when < FRESH:
                return last
            inquiry = self._running.get(key)
            if inquiry is None or not inquiry.is_running:
                inquiry = self._running[key] = _Inquiry(using)
        # Who has an older answer shows that rather than wait.
        found = inquiry.wait(patience if last is None or last.error else 0.05)
        if found is not None:
            with self._lock:
                self._last[key] = (inquiry.began, found)
                self._running.pop(key, None)
            return found
        waited = time.monotonic() - inquiry.began
        if last is not None and not last.error and waited < SILENT:
            return last
        said = f"no answer for {waited:.0f} s" if waited >= SILENT else "it is being asked"
        return BrokerReport(error=last.error if last is not None and last.error else said)

    def forget(self) -> None:
        with self._lock:
            self._running.clear()
            self._last.clear()


_inquiries = _Inquiries()


def broker_report(*, using: str = DEFAULT_DB_ALIAS, patience: float = 0.3) -> BrokerReport:
    """Say what the broker last said; it is asked every few seconds, while somebody looks.

    Never waits for a broker that is slow or away: a thread does.

    Args:
        using: Database alias of the offsets.
        patience: Most seconds to wait for the first answer.
    """
    found = _inquiries.report(using, patience)
    if not found.error:
        return found
    return BrokerReport(positions=positions(broker=None, using=using), error=found.error)


def _forget(*, setting: str, **_kwargs: object) -> None:
    if setting == "FOLIO_EVENTS":
        _inquiries.forget()


setting_changed.connect(_forget, dispatch_uid="folio_events.broker_report")


def _report(broker: Broker, using: str) -> BrokerReport:
    now = timezone.now()
    found = positions(broker=broker, using=using)
    return BrokerReport(
        positions=found,
        unread=first_unread(found, broker=broker),
        tenants=_tenants(found, broker),
        at=now,
    )


def _tenants(found: list[GroupPosition], broker: Broker) -> dict[str, dict[str, int]]:
    settings = get_settings()
    if settings.TENANCY is None:
        return {}
    behind = [place for place in found if place.lag]
    if settings.TENANT_COLLECTION is None:
        shares: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        for place in behind:
            tenant = topics.parse_wire_topic(place.topic).tenant or ""
            shares[place.group][tenant] += place.lag or 0
        return {group: dict(tenants) for group, tenants in shares.items()}
    return {
        group: {
            tenant: lag.messages
            for tenant, lag in group_lag(
                group, broker=broker, sample=_SAMPLE, timeout=_SAMPLE_TIMEOUT
            ).tenants.items()
        }
        for group in sorted({place.group for place in behind})
    }
