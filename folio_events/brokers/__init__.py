"""Brokers: the port and its adapters."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from folio_events.brokers.base import Broker
from folio_events.conf import get_settings
from folio_events.exceptions import ConfigurationError

__all__ = ["Broker", "get_broker"]


def get_broker() -> Broker:
    """The broker that the setting BROKER names, one for each process.

    Raises:
        ConfigurationError: BROKER has no BACKEND, or one that cannot be imported.
    """
    # A librdkafka client does not survive fork(): each child makes its own.
    return _broker_of(os.getpid())


# Never evicted: destroying a parent's client in the child would wait for threads that fork()
# left behind.
@functools.cache
def _broker_of(_pid: int) -> Broker:
    setting = get_settings().BROKER
    is_dict = isinstance(setting, Mapping)
    unknown = set(setting) - {"BACKEND", "OPTIONS"} if is_dict else set()
    if not is_dict or "BACKEND" not in setting or unknown:
        raise ConfigurationError(
            "FOLIO_EVENTS['BROKER'] must be {'BACKEND': '...', 'OPTIONS': {...}}"
            + (f", without {', '.join(sorted(unknown))}." if unknown else ".")
        )
    try:
        backend: Any = import_string(setting["BACKEND"])
    except ImportError as error:
        raise ConfigurationError(
            f"FOLIO_EVENTS['BROKER']['BACKEND'] {setting['BACKEND']!r} cannot be imported: {error}."
        ) from error
    broker: Broker = backend(setting.get("OPTIONS", {}))
    return broker


def _forget_broker(*, setting: str, **_kwargs: object) -> None:
    if setting == "FOLIO_EVENTS":
        _broker_of.cache_clear()


setting_changed.connect(_forget_broker, dispatch_uid="folio_events.brokers")
