"""Ctrl-C and SIGTERM as requests to stop, handled between two steps."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupt:
    """While this context lasts, a first signal sets `asked`, and a second one ends the process as usual."""

    asked = False

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])
