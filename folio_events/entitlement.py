"""Which tenants' events this module takes: the setting TENANT_FILTER."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.module_loading import import_string

from folio_events.conf import get_settings
from folio_events.exceptions import ConfigurationError, TenantDisabledError

logger = logging.getLogger("folio_events.entitlement")

Strategy = Literal["ACCEPT", "SKIP", "FAIL"]
#: Least seconds between two log lines about the same.
_LOG_INTERVAL = 60.0


def admits(
    *,
    tenant: str | None,
    entitled: Collection[str],
    tenant_disabled_strategy: Strategy = "SKIP",
    all_tenants_disabled_strategy: Strategy = "FAIL",
) -> bool:
    """Say whether a tenant's event is taken; if not, it is passed over.

    Args:
        tenant: Blank: taken, with a warning.
        entitled: The tenants that have this module.
        tenant_disabled_strategy: What holds for a tenant that is not among them.
        all_tenants_disabled_strategy: What holds for each tenant where there are none.

    Raises:
        TenantDisabledError: The strategy is "FAIL".

    Source:
        applications-poc-tools, EnabledTenantMessageFilter.
    """
    if not tenant or not tenant.strip():
        logger.warning("A message without tenant is taken: the tenant filter says nothing of it.")
        return True
    if tenant in entitled:
        return True
    strategy = tenant_disabled_strategy if entitled else all_tenants_disabled_strategy
    if strategy == "FAIL":
        who = f"Tenant {tenant!r} is not" if entitled else "No tenant is"
        raise TenantDisabledError(f"{who} entitled to this module (TENANT_FILTER).")
    return strategy == "ACCEPT"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantFilter:
    """The setting TENANT_FILTER, read; raises ConfigurationError where it cannot be meant."""

    #: Dotted path of a function without arguments that returns the entitled tenants.
    ENTITLED: str
    TENANT_DISABLED: Strategy = "SKIP"
    ALL_TENANTS_DISABLED: Strategy = "FAIL"
    #: Seconds for which an answer of the function counts.
    REFRESH: float = 60.0

    def __post_init__(self) -> None:
        for name in ("TENANT_DISABLED", "ALL_TENANTS_DISABLED"):
            if getattr(self, name) not in get_args(Strategy):
                raise ConfigurationError(
                    f"TENANT_FILTER: {name} must be one of {', '.join(get_args(Strategy))}, "
                    f"not {getattr(self, name)!r}."
                )


@dataclass(slots=True)
class _Known:
    """What was last heard of entitlement, and what was said about it."""

    entitled: frozenset[str] | None = None
    asked_at: float = 0.0
    said_at: dict[str, float] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


_known = _Known()


def tenant_filter() -> TenantFilter | None:
    """The setting TENANT_FILTER; None where every tenant's events are taken.

    Raises:
        ConfigurationError: A key of it is unknown, missing or has no possible value.
    """
    given = get_settings().TENANT_FILTER
    if given is None:
        return None
    try:
        return TenantFilter(**given)
    except TypeError as error:
        known = ", ".join(TenantFilter.__dataclass_fields__)
        raise ConfigurationError(
            f"TENANT_FILTER must be a dict with the key ENTITLED; its keys are {known}."
        ) from error


def takes(tenant: str | None) -> bool:
    """Whether this module takes a tenant's events, by the setting TENANT_FILTER.

    Raises:
        TenantDisabledError: Not now: the event has to wait.
    """
    rules = tenant_filter()
    if rules is None or tenant is None:
        return True
    try:
        taken = admits(
            tenant=tenant,
            entitled=_entitled(rules),
            tenant_disabled_strategy=rules.TENANT_DISABLED,
            all_tenants_disabled_strategy=rules.ALL_TENANTS_DISABLED,
        )
    except TenantDisabledError as error:
        _say_at_times(f"fail {tenant}", logging.ERROR, f"waiting: {error}")
        raise
    if not taken:
        _known.skipped[tenant] += 1
        said = f"passed over {_known.skipped[tenant]} so far of tenant {tenant!r}: not entitled"
        _say_at_times(f"skip {tenant}", logging.WARNING, said)
    return taken


def skipped() -> Mapping[str, int]:
    """How many messages of each tenant this process has passed over."""
    return dict(_known.skipped)


def _entitled(rules: TenantFilter) -> frozenset[str]:
    with _known.lock:
        now = time.monotonic()
        if _known.entitled is not None and now - _known.asked_at < rules.REFRESH:
            return _known.entitled
        try:
            _known.entitled = frozenset(import_string(rules.ENTITLED)())
        except Exception as error:
            if _known.entitled is None:
                raise TenantDisabledError(
                    f"{rules.ENTITLED} does not say which tenants are entitled: "
                    f"{type(error).__name__}."
                ) from error
            # What it said last is the better guess: tenants come and go by the day.
            _say_at_times(
                "ask", logging.WARNING, f"{rules.ENTITLED} failed: {type(error).__name__}"
            )
        _known.asked_at = now
        return _known.entitled


def _say_at_times(what: str, level: int, text: str) -> None:
    now = time.monotonic()
    if now - _known.said_at.get(what, -_LOG_INTERVAL) >= _LOG_INTERVAL:
        _known.said_at[what] = now
        logger.log(level, "%s", text)


@receiver(setting_changed, dispatch_uid="folio_events.entitlement")
def _forget(*, setting: str, **_kwargs: object) -> None:
    if setting == "FOLIO_EVENTS":
        global _known
        _known = _Known()
