"""What holds for every client of librdkafka in this process: its log, and what a fork does to it."""

from __future__ import annotations

import ctypes
import logging
import os
import weakref

logger = logging.getLogger("folio_events.kafka")
# librdkafka says with each new producer that the guarantee is an experiment.
logger.addFilter(
    lambda record: (
        not ("CONFWARN" in (said := record.getMessage()) and "enable.gapless.guarantee" in said)
    )
)
#: Of clients that are made only to see whether librdkafka takes their options.
silent = logging.getLogger("folio_events.kafka.check")
silent.disabled = True

_owners: weakref.WeakSet[object] = weakref.WeakSet()


def keep_after_fork(owner: object) -> None:
    """Never destroy this object's clients in a forked child."""
    _owners.add(owner)


def _leave_to_parent() -> None:
    # To destroy a client in a forked child would wait for threads that did not come along,
    # even when the child exits: what the parent has is kept there for ever.
    for owner in list(_owners):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


if hasattr(os, "register_at_fork"):  # not where there is no fork
    os.register_at_fork(after_in_child=_leave_to_parent)
