"""Signals of a scheduler → a flag that the loop reads between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

EXIT_CODE = 75
"""Of a run that was asked to stop and saved its state: start it again, and it goes on (EX_TEMPFAIL of sysexits.h)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """Catches SIGTERM and SIGUSR1 while it is open; a second one acts as it would have.

    Outside the main thread no signals can be caught, and none are.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """The signal that came; None before."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        """Starts to catch."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exception: object) -> None:
        """Restores what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        for caught, handler in self._before.items():
            signal.signal(caught, handler)
