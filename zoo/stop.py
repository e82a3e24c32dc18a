"""Signals that ask a process to stop: Ctrl-C, SIGTERM and a closed terminal."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""Status of a command that was asked to stop."""
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""The last one comes from a terminal that is closed."""


class Stop:
    """Raises KeyboardInterrupt at a signal, and remembers it: an import may swallow the error, or make it another.

    What it hits may be left half done, such as a `__del__`, of which Python would print a traceback.
    """

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        self.asked = True
        sys.unraisablehook = lambda _: None
        raise KeyboardInterrupt


def heard() -> list[signal.Signals]:
    """The signals that the process does not ignore, as one under nohup ignores SIGHUP."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def asked() -> bool:
    """Whether a `Stop` has heard a signal."""
    return any(getattr(signal.getsignal(number), "asked", False) for number in SIGNALS)
