"""Daemons are asked to end by signals."""

from __future__ import annotations

import signal
import threading

import pytest

from folio_events.management.shutdown import stop_on_signals


@pytest.mark.timeout(20)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_midst_of_a_wait_is_heard(number: signal.Signals) -> None:
    """It comes at any instruction of the main thread, also where that holds the event's lock."""
    stop = threading.Event()
    with stop_on_signals(stop):
        with stop._cond:  # type: ignore[attr-defined]  # as within stop.wait()
            signal.raise_signal(number)
        assert stop.wait(10)


def test_the_handlers_of_before_are_there_afterwards() -> None:
    """A second signal does what it would have done, and so does one after the block."""
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(threading.Event()):
        assert signal.getsignal(signal.SIGTERM) is not before
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before
